"""Runs a module over trajectories without a gradient, row by row under a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gspo_rllib import columns
from gspo_rllib.modules.prefix_attention import PrefixSharing
from gspo_rllib.modules.sharding import is_sharded, largest_over_ranks
from gspo_rllib.packing import empty_row, packed_rows
from gspo_rllib.types import TokenTrajectory

_Row = tuple[list[int], dict[str, Any]]


@torch.no_grad()
def score(
    trajectories: Sequence[TokenTrajectory],
    forward: Callable[[dict[str, Any]], Tensor],
    *,
    max_tokens: int,
    device: torch.device | str,
    sharing: PrefixSharing | None = None,
    module: torch.nn.Module | None = None,
) -> list[np.ndarray]:
    """One float32 value per sampled token.

    Args:
        trajectories: Trajectories with at least one sampled token each.
        forward: A packed row (``columns``) -> [L].
        max_tokens: Token budget of a row.
        device: Where rows are put.
        sharing: When trajectories of a group share their prompt, as ``forward``'s module says; None for never.
        module: What ``forward`` runs. Where its weights are shared between learners, all of them make as many passes
            as the one with the most rows.

    Returns:
        [L] per trajectory, in their order.
    """
    rows = packed_rows(trajectories, max_tokens=max_tokens, sharing=sharing, device=device)
    values: list[np.ndarray] = [np.zeros(0, np.float32)] * len(trajectories)
    for row, batch in rows if module is None or not is_sharded(module) else _as_many_everywhere(list(rows), device):
        value_L = forward(batch).float()
        if not row:
            continue
        counts_B = torch.bincount(batch[columns.TRAJECTORY_INDEX], minlength=len(row)).tolist()
        for i, part in zip(row, value_L.cpu().split(counts_B), strict=True):
            values[i] = part.numpy()
    return values


def _as_many_everywhere(rows: list[_Row], device: torch.device | str) -> list[_Row]:
    """These rows, and as many without a trajectory as are lacking to the learner with the most; a collective."""
    (most,) = largest_over_ranks([len(rows)], device)
    return rows + [([], empty_row(device)) for _ in range(most - len(rows))]

"""Runs a module over trajectories without a gradient, row by row under a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gspo_rllib import columns
from gspo_rllib.modules.prefix_attention import PrefixSharing
from gspo_rllib.packing import packed_rows
from gspo_rllib.types import TokenTrajectory


@torch.no_grad()
def score(
    trajectories: Sequence[TokenTrajectory],
    forward: Callable[[dict[str, Any]], Tensor],
    *,
    max_tokens: int,
    device: torch.device | str,
    sharing: PrefixSharing | None = None,
) -> list[np.ndarray]:
    """One float32 value per sampled token.

    Args:
        trajectories: Trajectories with at least one sampled token each.
        forward: A packed row (``columns``) -> [L].
        max_tokens: Token budget of a row.
        device: Where rows are put.
        sharing: When trajectories of a group share their prompt, as ``forward``'s module says; None for never.

    Returns:
        [L] per trajectory, in their order.
    """
    values: list[np.ndarray] = [np.zeros(0, np.float32)] * len(trajectories)
    for row, batch in packed_rows(trajectories, max_tokens=max_tokens, sharing=sharing, device=device):
        value_L = forward(batch).float()
        counts_B = torch.bincount(batch[columns.TRAJECTORY_INDEX], minlength=len(row)).tolist()
        for i, part in zip(row, value_L.cpu().split(counts_B), strict=True):
            values[i] = part.numpy()
    return values

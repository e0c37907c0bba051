"""Packs token trajectories into rows under a token budget: no padding, and no trajectory is ever split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gspo_rllib import columns
from gspo_rllib.types import TokenTrajectory


def plan_rows(num_tokens: Sequence[int], max_tokens: int) -> list[list[int]]:
    """First-fit decreasing: which items share a row.

    Args:
        num_tokens: Size of each item.
        max_tokens: Budget of a row. An item larger than the budget gets a row of its own.

    Returns:
        Rows as lists of indices into ``num_tokens``; every index exactly once.

    Example:
        >>> plan_rows([5, 3, 3, 9], max_tokens=8)
        [[3], [0, 1], [2]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(num_tokens)), key=lambda i: (-num_tokens[i], i)):
        size = num_tokens[index]
        fitting = next((row for row, left in enumerate(room) if left >= size), None)
        if fitting is None:
            rows.append([index])
            room.append(max_tokens - size)
        else:
            rows[fitting].append(index)
            room[fitting] -= size
    return rows


def pack(trajectories: Sequence[TokenTrajectory], device: torch.device | str = "cpu") -> dict[str, Any]:
    """One packed row; see ``columns`` for the names and shapes.

    Args:
        trajectories: At least one.
        device: Where the tensors go.
    """
    segments = [segment for t in trajectories for segment in t.segments]
    lengths = [len(segment) for segment in segments]
    token_ids = np.concatenate(segments)
    sampled = np.flatnonzero(np.concatenate([mask for t in trajectories for mask in t.loss_masks]))
    counts = [t.num_loss_tokens for t in trajectories]

    def tensor(array: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(np.asarray(array), dtype=dtype).to(device)

    def per_token(values: Sequence[Any]) -> torch.Tensor:
        return tensor(np.concatenate(values), torch.float32)

    behavior_logp = per_token([t.behavior_logp for t in trajectories])
    row = {
        columns.TOKEN_IDS: tensor(token_ids, torch.long),
        columns.POSITION_IDS: tensor(np.concatenate([np.arange(n) for n in lengths]), torch.long),
        columns.SEGMENT_LENGTHS: lengths,
        columns.LOSS_POSITIONS: tensor(sampled - 1, torch.long),
        columns.LOSS_TOKEN_IDS: tensor(token_ids[sampled], torch.long),
        columns.BEHAVIOR_LOGP: behavior_logp,
        columns.OLD_LOGP: behavior_logp,
        columns.TRAJECTORY_INDEX: tensor(np.repeat(np.arange(len(counts)), counts), torch.long),
        columns.TURN_INDEX: tensor(np.concatenate([t.turn_index for t in trajectories]), torch.long),
        columns.ADVANTAGES: per_token([t.advantages for t in trajectories]),
        columns.BEHAVIOR_VERSION: tensor([t.behavior_version for t in trajectories], torch.long),
    }
    if trajectories[0].value_targets is not None:
        row[columns.VALUE_TARGETS] = per_token([t.value_targets for t in trajectories])
    if trajectories[0].reference_logp is not None:
        row[columns.REFERENCE_LOGP] = per_token([t.reference_logp for t in trajectories])
    return row


class TokenTable:
    """Lays a row's packed values out with one line per trajectory.

    Args:
        row: What ``pack`` made.

    Attributes:
        mask_BT: Which cells of the table are filled; the sampled tokens of trajectory b are the first of line b.
    """

    def __init__(self, row: dict[str, Any]) -> None:
        trajectory_index_L, num_trajectories = row[columns.TRAJECTORY_INDEX], len(row[columns.BEHAVIOR_VERSION])
        counts_B = torch.bincount(trajectory_index_L, minlength=num_trajectories)
        longest = int(counts_B.max())
        starts_B = counts_B.cumsum(0) - counts_B
        position_L = torch.arange(len(trajectory_index_L), device=counts_B.device)
        self._slot_L = trajectory_index_L * longest + position_L - starts_B[trajectory_index_L]
        self.mask_BT = torch.arange(longest, device=counts_B.device)[None, :] < counts_B[:, None]

    def __call__(self, value_L: torch.Tensor) -> torch.Tensor:
        """[L] -> [B, T], zero where nothing goes; differentiable."""
        return value_L.new_zeros(self.mask_BT.numel()).index_put((self._slot_L,), value_L).view(self.mask_BT.shape)

"""Packs token trajectories into rows under a token budget: no padding, and no trajectory is ever split.

Trajectories of a group start with the same prompt. Where the model can and it pays, those in one row share it: its
tokens are in the row once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gspo_rllib import columns
from gspo_rllib.modules.prefix_attention import PrefixSharing
from gspo_rllib.types import TokenTrajectory


@dataclass(frozen=True, slots=True)
class Family:
    """Trajectories whose first segments share their first tokens, or one that shares none.

    Attributes:
        members: Indices of the trajectories.
        prefix_tokens: How many tokens they share; 0 for a family of one.
        num_tokens: Tokens the family takes in a row; shared ones count once.
    """

    members: tuple[int, ...]
    prefix_tokens: int
    num_tokens: int


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


def plan_families(
    trajectories: Sequence[TokenTrajectory], max_tokens: int, sharing: PrefixSharing | None
) -> list[Family]:
    """Decides which trajectories share their prompt.

    Args:
        trajectories: Trajectories of any groups, in any order.
        max_tokens: Budget of a row. A group that exceeds it is several families, each with the prompt once.
        sharing: When to share; None for never.

    Returns:
        Families in the order of their first members; every trajectory is in exactly one.
    """
    groups: dict[Any, list[int]] = {}
    for i, trajectory in enumerate(trajectories):
        groups.setdefault(trajectory.group_id if sharing else i, []).append(i)
    families: list[Family] = []
    for members in groups.values():
        sizes = [trajectories[i].num_tokens for i in members]
        prefix = _shared_tokens([trajectories[i] for i in members], sharing)
        for part in plan_rows([size - prefix for size in sizes], max_tokens - prefix):
            apart = sum(sizes[j] for j in part)
            together = apart - prefix * (len(part) - 1)
            if prefix and sharing and len(part) > 1 and apart >= sharing.min_token_ratio * together:
                families.append(Family(tuple(members[j] for j in part), prefix, together))
            else:
                families.extend(Family((members[j],), 0, sizes[j]) for j in part)
    return families


def _shared_tokens(members: Sequence[TokenTrajectory], sharing: PrefixSharing | None) -> int:
    """Tokens with which all first segments start alike; it ends before a sampled token, and before a segment's last."""
    firsts = [t.segments[0] for t in members]
    if not sharing or len(members) < 2 or max(map(len, firsts)) > (sharing.max_segment_tokens or math.inf):
        return 0
    shared = min(int(np.argmax(t.loss_masks[0])) if t.loss_masks[0].any() else len(t.segments[0]) - 1 for t in members)
    for ids in firsts[1:]:
        differs = np.flatnonzero(ids[:shared] != firsts[0][:shared])
        shared = int(differs[0]) if len(differs) else shared
    return shared


def packed_rows(
    trajectories: Sequence[TokenTrajectory],
    *,
    max_tokens: int,
    sharing: PrefixSharing | None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """All trajectories, row by row.

    Args:
        trajectories: Trajectories with at least one sampled token each.
        max_tokens: Token budget of a row; tokens that are shared count once.
        sharing: When trajectories of a group share their prompt; None for never.
        device: Where rows are put.

    Yields:
        Which trajectories are in the row, in its order, and the row (``columns``).
    """
    families = plan_families(trajectories, max_tokens, sharing)
    for chosen in plan_rows([family.num_tokens for family in families], max_tokens):
        row = [families[i] for i in chosen]
        members = [i for family in row for i in family.members]
        shared = [(len(family.members), family.prefix_tokens) for family in row]
        yield members, pack([trajectories[i] for i in members], device, shared=shared)


def pack(
    trajectories: Sequence[TokenTrajectory],
    device: torch.device | str = "cpu",
    *,
    shared: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    """One packed row; see ``columns`` for the names and shapes.

    Args:
        trajectories: The trajectories of the row, at least one, members of a family next to each other.
        device: Where the tensors go.
        shared: ``(members, shared tokens)`` of each family, in the order of the trajectories; None where nothing is
            shared.
    """
    layout = _Layout(trajectories, shared or [(1, 0)] * len(trajectories))
    token_ids = np.concatenate(layout.segments)
    counts = [t.num_loss_tokens for t in trajectories]

    def tensor(array: Any, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(np.asarray(array), dtype=dtype).to(device)

    def per_token(values: Sequence[Any]) -> torch.Tensor:
        return tensor(np.concatenate(values), torch.float32)

    behavior_logp = per_token([t.behavior_logp for t in trajectories])
    sampled = [ids[mask] for t in trajectories for ids, mask in zip(t.segments, t.loss_masks, strict=True)]
    row = {
        columns.TOKEN_IDS: tensor(token_ids, torch.long),
        columns.POSITION_IDS: tensor(np.concatenate(layout.positions), torch.long),
        columns.SEGMENT_LENGTHS: [len(segment) for segment in layout.segments],
        columns.LOSS_POSITIONS: tensor(np.concatenate(layout.loss_positions), torch.long),
        columns.LOSS_TOKEN_IDS: tensor(np.concatenate(sampled), torch.long),
        columns.BEHAVIOR_LOGP: behavior_logp,
        columns.OLD_LOGP: behavior_logp,
        columns.TRAJECTORY_INDEX: tensor(np.repeat(np.arange(len(counts)), counts), torch.long),
        columns.TURN_INDEX: tensor(np.concatenate([t.turn_index for t in trajectories]), torch.long),
        columns.ADVANTAGES: per_token([t.advantages for t in trajectories]),
        columns.BEHAVIOR_VERSION: tensor([t.behavior_version for t in trajectories], torch.long),
    }
    if max(layout.prefixes) >= 0:
        row[columns.SEGMENT_PREFIXES] = layout.prefixes
    if trajectories[0].value_targets is not None:
        row[columns.VALUE_TARGETS] = per_token([t.value_targets for t in trajectories])
    if trajectories[0].reference_logp is not None:
        row[columns.REFERENCE_LOGP] = per_token([t.reference_logp for t in trajectories])
    return row


def empty_row(device: torch.device | str = "cpu") -> dict[str, Any]:
    """A row of one sampled token of weight 0: touches every parameter, adds nothing."""
    zeros = torch.zeros(1, dtype=torch.long, device=device)
    empty: dict[str, Any] = {
        columns.TOKEN_IDS: torch.zeros(2, dtype=torch.long, device=device),
        columns.POSITION_IDS: torch.arange(2, device=device),
        columns.SEGMENT_LENGTHS: [2],
        columns.BEHAVIOR_LOGP: zeros.float(),
        columns.BEHAVIOR_VERSION: zeros,
        columns.EMPTY: True,
    }
    for name in (columns.LOSS_POSITIONS, columns.LOSS_TOKEN_IDS, columns.TRAJECTORY_INDEX, columns.TURN_INDEX):
        empty[name] = zeros
    for name in (columns.OLD_LOGP, columns.ADVANTAGES, columns.VALUE_TARGETS, columns.REFERENCE_LOGP):
        empty[name] = empty[columns.BEHAVIOR_LOGP]
    return empty


class _Layout:
    """Which segments a row has, and which cell predicts each sampled token.

    A family is its prefix, its branches and then all other segments of its members.
    """

    def __init__(self, trajectories: Sequence[TokenTrajectory], shared: Sequence[tuple[int, int]]) -> None:
        self.segments: list[np.ndarray] = []
        self.prefixes: list[int] = []
        self.positions: list[np.ndarray] = []
        self.loss_positions: list[np.ndarray] = []
        self._size = 0
        rest = iter(trajectories)
        for count, prefix_tokens in shared:
            self._add_family([next(rest) for _ in range(count)], prefix_tokens)

    def _add_family(self, members: list[TokenTrajectory], prefix_tokens: int) -> None:
        prefix, prefix_cells = -1, np.zeros(0, np.int64)
        if prefix_tokens:
            prefix, prefix_cells = len(self.segments), self._add(members[0].segments[0][:prefix_tokens])
        cells = [
            [np.append(prefix_cells, self._add(t.segments[0][prefix_tokens:], position=prefix_tokens, prefix=prefix))]
            for t in members
        ]
        for t, of_member in zip(members, cells, strict=True):
            of_member.extend(self._add(segment) for segment in t.segments[1:])
            self.loss_positions.extend(
                segment[np.flatnonzero(mask) - 1] for segment, mask in zip(of_member, t.loss_masks, strict=True)
            )

    def _add(self, ids: np.ndarray, *, position: int = 0, prefix: int = -1) -> np.ndarray:
        """Appends a segment; returns the indices in the row that its ids get."""
        self.segments.append(ids)
        self.prefixes.append(prefix)
        self.positions.append(np.arange(position, position + len(ids)))
        self._size += len(ids)
        return np.arange(self._size - len(ids), self._size)


class TokenTable:
    """Lays a row's packed values out with one line per trajectory.

    Args:
        row: A packed row, made by ``pack``.

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
        """[L] -> [B, T], zero in cells that are not filled; differentiable."""
        return value_L.new_zeros(self.mask_BT.numel()).index_put((self._slot_L,), value_L).view(self.mask_BT.shape)

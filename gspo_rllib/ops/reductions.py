"""From one value per sampled token to the scalar objective: what each token weighs.

Shapes:  B trajectories · T tokens of the longest · N turns of the longest.
Source:  trajectory mean: Zheng et al. 2025, arXiv:2507.18071v2, eq. 5 and 14; token mean: Yu et al. 2025,
         arXiv:2503.14476, §3.3 (DAPO); constant length: Liu et al. 2025, arXiv:2503.20783 (Dr. GRPO);
         token sum under a sequence ratio: arXiv:2602.05261 (LUSPO).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gspo_rllib.ops.spans import Span

Reduction = Literal["trajectory_mean", "turn_mean", "token_mean", "token_sum"]
"""What the objective is a mean over; see ``token_weights``."""


_Shares = tuple[Tensor | float | int, Tensor]


def _shares_of_trajectories(mask_BT: Tensor, turn_ids_BT: Tensor | None, fixed_length: float | int) -> _Shares:
    length_B1 = mask_BT.sum(dim=1, keepdim=True)
    return length_B1.clamp(min=1), (length_B1 > 0).sum()


def _shares_of_turns(mask_BT: Tensor, turn_ids_BT: Tensor, fixed_length: float | int) -> _Shares:
    ids_BT, counts_BN = tokens_per_turn(mask_BT, turn_ids_BT)
    return counts_BN.gather(1, ids_BT).clamp(min=1), (counts_BN > 0).sum()


def _shares_of_tokens(mask_BT: Tensor, turn_ids_BT: Tensor | None, fixed_length: float | int) -> _Shares:
    return 1.0, mask_BT.sum()


def _shares_of_a_fixed_length(mask_BT: Tensor, turn_ids_BT: Tensor | None, fixed_length: float | int) -> _Shares:
    return fixed_length, mask_BT.any(dim=1).sum()


@dataclasses.dataclass(frozen=True)
class ReductionTraits:
    """What follows from a reduction.

    Attributes:
        mean_over: What is counted for the denominator.
        shares: Mask, turn ids and ``token_sum_length`` -> what a token's weight is divided by, and that count.
        weighs_by: What a trajectory's share of the objective grows with, in words; None: all weigh the same.
        needs_turns: Whether the turn of every token must be known.
        needs_length: Whether ``token_sum_length`` has an effect.
    """

    mean_over: Span
    shares: Callable[..., _Shares]
    weighs_by: str | None
    needs_turns: bool = False
    needs_length: bool = False


REDUCTIONS: dict[str, ReductionTraits] = {
    "trajectory_mean": ReductionTraits(Span.TRAJECTORY, _shares_of_trajectories, None),
    "turn_mean": ReductionTraits(Span.TURN, _shares_of_turns, "number of turns", needs_turns=True),
    "token_mean": ReductionTraits(Span.TOKEN, _shares_of_tokens, "length"),
    "token_sum": ReductionTraits(Span.TRAJECTORY, _shares_of_a_fixed_length, "length", needs_length=True),
}
"""Every ``Reduction`` and what follows from it."""


def token_weights(
    mask_BT: Bool[Tensor, "B T"],
    *,
    reduction: Reduction = "trajectory_mean",
    turn_ids_BT: Int[Tensor, "B T"] | None = None,
    denominator: float | int | None = None,
    token_sum_length: float | int = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "B T"]:
    """What each sampled token weighs, so that the objective is the weighted sum of its per-token values.

    Args:
        mask_BT: True on sampled tokens. A row without any does not count.
        reduction: ``"trajectory_mean"``: mean over trajectories of the mean over each one's own tokens; length never
            weighs. ``"turn_mean"``: mean over all turns of the mean over each one's tokens; every turn weighs the
            same. ``"token_mean"``: mean over all tokens; a trajectory weighs by its length. ``"token_sum"``: mean
            over trajectories of the sum over tokens divided by ``token_sum_length``.
        turn_ids_BT: Turn of each sampled token, counting from 0; needed for ``"turn_mean"``.
        denominator: How many trajectories (turns for ``"turn_mean"``, tokens for ``"token_mean"``) the mean is over;
            None counts those here. Pass the whole minibatch's count when these rows are only a part of it.
        token_sum_length: Constant length (tokens, > 0) that ``"token_sum"`` divides by.
        dtype: Torch dtype of the weights.

    Returns:
        Weights, 0 where the mask is False; summing to 1 for a mean that counts for itself.

    Raises:
        ValueError: An unknown reduction, ``"turn_mean"`` without turns, or a length that is not positive.

    Example:
        >>> mask_BT = torch.tensor([[True, False, False], [True, True, True]])
        >>> token_weights(mask_BT, reduction="trajectory_mean")[:, 0]
        tensor([0.5000, 0.1667])
        >>> token_weights(mask_BT, reduction="token_mean")[:, 0]
        tensor([0.2500, 0.2500])
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}; allowed: {', '.join(REDUCTIONS)}")
    if not token_sum_length > 0:
        raise ValueError(f"token_sum_length={token_sum_length!r}; allowed: a number of tokens > 0")
    traits = REDUCTIONS[reduction]
    if traits.needs_turns and turn_ids_BT is None:
        raise ValueError(f'reduction="{reduction}" needs turn_ids_BT: the turn of every sampled token')
    divisor, counted = traits.shares(mask_BT, turn_ids_BT, token_sum_length)
    weight_BT = torch.ones(mask_BT.shape, dtype=dtype, device=mask_BT.device) / divisor
    weight_BT = weight_BT / (counted.clamp(min=1) if denominator is None else max(denominator, 1))
    return torch.where(mask_BT, weight_BT, torch.zeros_like(weight_BT))


def tokens_per_turn(
    mask_BT: Bool[Tensor, "B T"], turn_ids_BT: Int[Tensor, "B T"]
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B N"]]:
    """Turn ids that are safe to index with (0 where the mask is False), and the sampled tokens of each turn.

    Args:
        mask_BT: True on sampled tokens.
        turn_ids_BT: Turn of each sampled token, counting from 0; ignored where the mask is False.

    Example:
        >>> tokens_per_turn(torch.tensor([[True, True, False]]), torch.tensor([[0, 1, 9]]))
        (tensor([[0, 1, 0]]), tensor([[1, 1]]))
    """
    ids_BT = torch.where(mask_BT, turn_ids_BT, torch.zeros_like(turn_ids_BT)).long()
    num_turns = int(ids_BT.max()) + 1 if ids_BT.numel() else 1
    counts_BN = ids_BT.new_zeros(ids_BT.shape[0], num_turns).scatter_add(1, ids_BT, mask_BT.long())
    return ids_BT, counts_BN


def weighted_sum(value_BT: Float[Tensor, "B T"], weight_BT: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
    """Sum of weight times value over the tokens that weigh; the value of any other token may be anything.

    Args:
        value_BT: One value per token.
        weight_BT: From ``token_weights``; constant.

    Example:
        >>> weighted_sum(torch.tensor([[2.0, float("nan")]]), torch.tensor([[0.5, 0.0]]))
        tensor(1.)
    """
    zero_BT = torch.zeros_like(value_BT)
    return torch.where(weight_BT != 0, torch.where(weight_BT != 0, value_BT, zero_BT) * weight_BT, zero_BT).sum()


def reduce_tokens(
    value_BT: Float[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"],
    *,
    reduction: Reduction = "trajectory_mean",
    turn_ids_BT: Int[Tensor, "B T"] | None = None,
    denominator: float | int | None = None,
    token_sum_length: float | int = 1.0,
) -> Float[Tensor, ""]:
    """The scalar that ``policy_loss`` would make of these per-token values: for a penalty with the same token weights.

    Args:
        value_BT: One value per token; anything where the mask is False.
        mask_BT: True on sampled tokens. A row without any does not count.
        reduction: What the scalar is a mean over; see ``token_weights``.
        turn_ids_BT: Turn of each sampled token, counting from 0; needed for ``"turn_mean"``.
        denominator: How many trajectories, turns or tokens the mean is over; None counts those here.
        token_sum_length: Constant length (tokens, > 0) that ``"token_sum"`` divides by.

    Raises:
        ValueError: An unknown reduction, ``"turn_mean"`` without turns, or a length that is not positive.

    Example:
        >>> reduce_tokens(torch.tensor([[1., 9.], [2., 4.]]), torch.tensor([[True, False], [True, True]]))
        tensor(2.)
    """
    weight_BT = token_weights(
        mask_BT,
        reduction=reduction,
        turn_ids_BT=turn_ids_BT,
        denominator=denominator,
        token_sum_length=token_sum_length,
        dtype=value_BT.dtype,
    )
    return weighted_sum(value_BT, weight_BT)

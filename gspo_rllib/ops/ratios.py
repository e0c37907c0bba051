"""Importance ratios between the policy being trained and the one that sampled.

Shapes:  B trajectories · T tokens of the longest · N turns of the longest.
Source:  Zheng et al. 2025, arXiv:2507.18071v2: s_i (eq. 7) and GSPO-token (eq. 14).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gspo_rllib.ops.reductions import tokens_per_turn
from gspo_rllib.ops.spans import Span

ImportanceSamplingLevel = Literal["sequence", "sequence_token", "turn", "token"]
"""What one importance ratio spans; see ``log_ratio``."""


def sequence_log_ratio(
    logp_BT: Float[Tensor, "B T"], old_logp_BT: Float[Tensor, "B T"], mask_BT: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Mean log-ratio over each trajectory's own tokens: log s_i.

    Args:
        logp_BT: Log-probabilities (nats) of the sampled tokens under the policy being trained.
        old_logp_BT: The same tokens under the policy that sampled them; constant.
        mask_BT: True on tokens the policy sampled; prompt, environment and padding are False.

    Returns:
        log s_B, differentiable in ``logp_BT``; 0 for a row without a sampled token.

    Example:
        >>> sequence_log_ratio(torch.tensor([[-1.0, 9.0]]), torch.tensor([[-1.5, 0.0]]),
        ...                    torch.tensor([[True, False]]))
        tensor([0.5000])
    """
    token_BT = token_log_ratio(logp_BT, old_logp_BT, mask_BT)
    return token_BT.sum(dim=1) / mask_BT.sum(dim=1).clamp(min=1)


def token_log_ratio(
    logp_BT: Float[Tensor, "B T"], old_logp_BT: Float[Tensor, "B T"], mask_BT: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Log-ratio of each sampled token; exactly 0 elsewhere, whatever padding holds (NaN included)."""
    zero = torch.zeros((), dtype=logp_BT.dtype, device=logp_BT.device)
    return torch.where(mask_BT, logp_BT, zero) - torch.where(mask_BT, old_logp_BT, zero)


def turn_log_ratio(
    logp_BT: Float[Tensor, "B T"],
    old_logp_BT: Float[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"],
    turn_ids_BT: Int[Tensor, "B T"],
) -> Float[Tensor, "B T"]:
    """Mean log-ratio over the sampled tokens of each turn, spread to the turn's tokens.

    Args:
        logp_BT: Log-probabilities (nats) of the sampled tokens under the policy being trained.
        old_logp_BT: The same tokens under the policy that sampled them; constant.
        mask_BT: True on tokens the policy sampled; prompt, environment and padding are False.
        turn_ids_BT: Turn of each sampled token, counting from 0; ignored where the mask is False.

    Returns:
        One value per sampled token, equal within a turn; 0 elsewhere.
    """
    token_BT = token_log_ratio(logp_BT, old_logp_BT, mask_BT)
    ids_BT, counts_BN = tokens_per_turn(mask_BT, turn_ids_BT)
    sums_BN = token_BT.new_zeros(counts_BN.shape).scatter_add(1, ids_BT, token_BT)
    mean_BN = sums_BN / counts_BN.clamp(min=1)
    return torch.where(mask_BT, mean_BN.gather(1, ids_BT), torch.zeros_like(token_BT))


def _spread_sequence_log_ratio(logp_BT: Tensor, old_logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
    sequence_B1 = sequence_log_ratio(logp_BT, old_logp_BT, mask_BT).unsqueeze(1)
    return torch.where(mask_BT, sequence_B1.expand_as(logp_BT), torch.zeros_like(logp_BT))


def _sequence_token_log_ratio(logp_BT: Tensor, old_logp_BT: Tensor, mask_BT: Tensor) -> Tensor:
    sequence_B1 = sequence_log_ratio(logp_BT, old_logp_BT, mask_BT).unsqueeze(1)
    zero_BT = torch.zeros_like(logp_BT)
    own_BT = torch.where(mask_BT, logp_BT, zero_BT)
    return torch.where(mask_BT, sequence_B1.detach() + own_BT - own_BT.detach(), zero_BT)


@dataclasses.dataclass(frozen=True)
class RatioTraits:
    """What follows from an importance-sampling level.

    Attributes:
        span: The tokens that share one value of the ratio.
        gradient_span: The tokens whose gradients mix: each carries the mean advantage of all of them.
        log_ratio: Log-probabilities, old ones and mask -> log-ratio of every token; with the turn ids as a fourth
            argument where ``needs_turns``.
        needs_turns: Whether the turn of every token must be known.
    """

    span: Span
    gradient_span: Span
    log_ratio: Callable[..., Tensor]
    needs_turns: bool = False


IMPORTANCE_SAMPLING_LEVELS: dict[str, RatioTraits] = {
    "sequence": RatioTraits(Span.TRAJECTORY, Span.TRAJECTORY, _spread_sequence_log_ratio),
    "sequence_token": RatioTraits(Span.TRAJECTORY, Span.TOKEN, _sequence_token_log_ratio),
    "turn": RatioTraits(Span.TURN, Span.TURN, turn_log_ratio, needs_turns=True),
    "token": RatioTraits(Span.TOKEN, Span.TOKEN, token_log_ratio),
}
"""Every ``ImportanceSamplingLevel`` and what follows from it."""


def log_ratio(
    logp_BT: Float[Tensor, "B T"],
    old_logp_BT: Float[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"],
    *,
    level: ImportanceSamplingLevel,
    turn_ids_BT: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T"]:
    """The log-ratio at the chosen scope, spread to every token it applies to.

    Args:
        logp_BT: Log-probabilities (nats) under the policy being trained.
        old_logp_BT: The same tokens under the policy that sampled them; constant.
        mask_BT: True on sampled tokens.
        level: ``"sequence"``: one length-normalised ratio per trajectory (GSPO); ``"sequence_token"``: the same
            value, but each token's gradient flows through its own log-probability (GSPO-token); ``"turn"``: one
            length-normalised ratio per turn; ``"token"``: one per token (GRPO, PPO).
        turn_ids_BT: Turn of each sampled token, counting from 0; needed for ``"turn"``.

    Raises:
        ValueError: An unknown level, or ``"turn"`` without ``turn_ids_BT``.
    """
    if level not in IMPORTANCE_SAMPLING_LEVELS:
        raise ValueError(f"importance_sampling_level={level!r}; allowed: {', '.join(IMPORTANCE_SAMPLING_LEVELS)}")
    traits = IMPORTANCE_SAMPLING_LEVELS[level]
    if not traits.needs_turns:
        return traits.log_ratio(logp_BT, old_logp_BT, mask_BT)
    if turn_ids_BT is None:
        raise ValueError(f'importance_sampling_level="{level}" needs turn_ids_BT: the turn of every sampled token')
    return traits.log_ratio(logp_BT, old_logp_BT, mask_BT, turn_ids_BT)

"""Importance ratios between the policy being trained and the one that sampled.

Shapes:  B trajectories · T tokens of the longest · N turns of the longest.
Source:  Zheng et al. 2025, arXiv:2507.18071v2: s_i (eq. 7) and GSPO-token (eq. 14).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gspo_rllib.ops.reductions import tokens_per_turn

ImportanceSamplingLevel = Literal["sequence", "sequence_token", "turn", "token"]
"""What one importance ratio spans; see ``log_ratio``."""

IMPORTANCE_SAMPLING_LEVELS: tuple[str, ...] = get_args(ImportanceSamplingLevel)


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
        logp_BT: As in ``sequence_log_ratio``.
        old_logp_BT: As in ``sequence_log_ratio``.
        mask_BT: As in ``sequence_log_ratio``.
        turn_ids_BT: Turn of each sampled token, counting from 0; ignored where the mask is False.

    Returns:
        One value per sampled token, equal within a turn; 0 elsewhere.
    """
    token_BT = token_log_ratio(logp_BT, old_logp_BT, mask_BT)
    ids_BT, counts_BN = tokens_per_turn(mask_BT, turn_ids_BT)
    sums_BN = token_BT.new_zeros(counts_BN.shape).scatter_add(1, ids_BT, token_BT)
    mean_BN = sums_BN / counts_BN.clamp(min=1)
    return torch.where(mask_BT, mean_BN.gather(1, ids_BT), torch.zeros_like(token_BT))


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
        turn_ids_BT: Needed for ``"turn"``.

    Raises:
        ValueError: An unknown level, or ``"turn"`` without ``turn_ids_BT``.
    """
    if level == "token":
        return token_log_ratio(logp_BT, old_logp_BT, mask_BT)
    if level == "turn":
        if turn_ids_BT is None:
            raise ValueError('importance_sampling_level="turn" needs turn_ids_BT: the turn of every sampled token')
        return turn_log_ratio(logp_BT, old_logp_BT, mask_BT, turn_ids_BT)
    if level not in ("sequence", "sequence_token"):
        raise ValueError(f"importance_sampling_level={level!r}; allowed: {', '.join(IMPORTANCE_SAMPLING_LEVELS)}")
    sequence_B1 = sequence_log_ratio(logp_BT, old_logp_BT, mask_BT).unsqueeze(1)
    zero_BT = torch.zeros_like(logp_BT)
    if level == "sequence_token":
        own_BT = torch.where(mask_BT, logp_BT, zero_BT)
        return torch.where(mask_BT, sequence_B1.detach() + own_BT - own_BT.detach(), zero_BT)
    return torch.where(mask_BT, sequence_B1.expand_as(logp_BT), zero_BT)

"""The policy-gradient loss as one pure function; needs neither RLlib nor a config.

Shapes:  B trajectories · T tokens of the longest.
Source:  Zheng et al. 2025, arXiv:2507.18071v2, eq. 5 to 7 and 14; GRPO's token ratio: arXiv:2402.03300.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gspo_rllib.ops.ratios import ImportanceSamplingLevel, log_ratio
from gspo_rllib.ops.reductions import trajectory_mean
from gspo_rllib.ops.surrogates import binding_clip, clipped_surrogate

Reduction = Literal["trajectory_mean"]
Surrogate = Literal["clip"]

MAX_LOG_RATIO = 80.0
"""exp() stays finite in float32; no ratio a clip range would let through comes near it."""


def policy_loss(
    logp_BT: Float[Tensor, "B T"],
    old_logp_BT: Float[Tensor, "B T"],
    advantages: Float[Tensor, "*shape"],
    mask_BT: Bool[Tensor, "B T"],
    *,
    importance_sampling_level: ImportanceSamplingLevel = "sequence",
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    turn_ids_BT: Int[Tensor, "B T"] | None = None,
    reduction: Reduction = "trajectory_mean",
    surrogate: Surrogate = "clip",
    num_trajectories: int | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Negative objective of GSPO and its relatives.

    Args:
        logp_BT: Log-probabilities (nats) of the sampled tokens under the policy being trained; differentiable.
        old_logp_BT: The same tokens under the policy before this iteration's first update; constant.
        advantages: [B], one per trajectory, or [B, T], one per token.
        mask_BT: True on sampled tokens; prompt, environment and padding are False and may hold anything, NaN included.
        importance_sampling_level: Scope of the ratio: ``"sequence"`` | ``"sequence_token"`` | ``"turn"`` | ``"token"``.
        clip_low: Ratio range below 1 (dimensionless, >= 0, < 1).
        clip_high: Ratio range above 1 (dimensionless, >= 0).
        turn_ids_BT: Turn of each sampled token; needed for ``"turn"``.
        reduction: ``"trajectory_mean"``: mean over each trajectory's tokens, then over trajectories.
        surrogate: ``"clip"``: min(s A, clip(s) A).
        num_trajectories: Denominator of the mean over trajectories; None counts the rows with a sampled token.
            Pass the whole minibatch's count when these rows are only a part of it.

    Returns:
        ``(loss, statistics)``. Statistics are detached: ``ratio_B`` [B], the mean ratio over each trajectory's
        tokens; ``clipped_low_B`` and ``clipped_high_B`` [B], the fraction of each one's tokens whose gradient the
        clip has removed (all or nothing at sequence level); ``counted_B`` [B], whether the row has a sampled token.

    Raises:
        ValueError: A shape, level, reduction or surrogate that is not allowed.
    """
    if reduction != "trajectory_mean":
        raise ValueError(f"reduction={reduction!r}; allowed: 'trajectory_mean'")
    if surrogate != "clip":
        raise ValueError(f"surrogate={surrogate!r}; allowed: 'clip'")
    advantage_BT = _per_token(advantages, logp_BT)
    log_ratio_BT = log_ratio(
        logp_BT, old_logp_BT.detach(), mask_BT, level=importance_sampling_level, turn_ids_BT=turn_ids_BT
    )
    ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    # Masked tokens must not reach the surrogate: their advantage may be NaN, and NaN would survive the backward pass.
    advantage_BT = torch.where(mask_BT, advantage_BT, torch.zeros_like(advantage_BT)).detach()
    objective_BT = clipped_surrogate(ratio_BT, advantage_BT, clip_low=clip_low, clip_high=clip_high)
    loss = -trajectory_mean(objective_BT, mask_BT, num_trajectories=num_trajectories)
    return loss, _statistics(ratio_BT.detach(), advantage_BT, mask_BT, clip_low=clip_low, clip_high=clip_high)


def _per_token(advantages: Tensor, logp_BT: Tensor) -> Tensor:
    if advantages.shape == logp_BT.shape:
        return advantages
    if advantages.shape == logp_BT.shape[:1]:
        return advantages.unsqueeze(1).expand_as(logp_BT)
    raise ValueError(
        f"advantages have shape {tuple(advantages.shape)}; allowed: [B] = {tuple(logp_BT.shape[:1])} or "
        f"[B, T] = {tuple(logp_BT.shape)}"
    )


def _statistics(
    ratio_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, *, clip_low: float, clip_high: float
) -> dict[str, Tensor]:
    length_B = mask_BT.sum(dim=1)
    low_BT, high_BT = binding_clip(ratio_BT, advantage_BT, clip_low=clip_low, clip_high=clip_high)

    def mean_B(value_BT: Tensor) -> Tensor:
        return torch.where(mask_BT, value_BT.to(ratio_BT.dtype), 0.0).sum(dim=1) / length_B.clamp(min=1)

    return {
        "ratio_B": mean_B(ratio_BT),
        "clipped_low_B": mean_B(low_BT),
        "clipped_high_B": mean_B(high_BT),
        "counted_B": length_B > 0,
    }

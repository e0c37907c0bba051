"""The policy-gradient loss as one pure function; needs neither RLlib nor a config.

Shapes:  B trajectories · T tokens of the longest.
Source:  Zheng et al. 2025, arXiv:2507.18071v2, eq. 5 to 7 and 14; GRPO's token ratio: arXiv:2402.03300.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gspo_rllib.ops.ratios import ImportanceSamplingLevel, log_ratio, sequence_log_ratio
from gspo_rllib.ops.reductions import Reduction, token_weights, weighted_sum
from gspo_rllib.ops.surrogates import Surrogate, SurrogateKnobs, surrogate_objective, surrogate_traits

MAX_LOG_RATIO = 80.0
"""exp() stays finite in float32; no ratio a clip range would let through comes near it."""


def policy_loss(
    logp_BT: Float[Tensor, "B T"],
    old_logp_BT: Float[Tensor, "B T"],
    advantages: Float[Tensor, "*shape"],
    mask_BT: Bool[Tensor, "B T"],
    *,
    importance_sampling_level: ImportanceSamplingLevel = "sequence",
    clip_low: Float[Tensor, " B"] | Float[Tensor, "B T"] | float | int = 3e-4,
    clip_high: Float[Tensor, " B"] | Float[Tensor, "B T"] | float | int = 4e-4,
    turn_ids_BT: Int[Tensor, "B T"] | None = None,
    reduction: Reduction = "trajectory_mean",
    surrogate: Surrogate = "clip",
    denominator: float | int | None = None,
    token_sum_length: float | int = 1.0,
    dual_clip: float | int = 3.0,
    sapo_temperature_positive: float | int = 1.0,
    sapo_temperature_negative: float | int = 1.05,
    weights_BT: Float[Tensor, "B T"] | None = None,
    max_log_ratio: float | int = MAX_LOG_RATIO,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Negative objective of GSPO and its relatives.

    Args:
        logp_BT: Log-probabilities (nats) of the sampled tokens under the policy being trained; differentiable.
        old_logp_BT: The same tokens under the policy before this iteration's first update; constant.
        advantages: [B], one per trajectory, or [B, T], one per token.
        mask_BT: True on sampled tokens; prompt, environment and padding are False and may hold anything, NaN included.
        importance_sampling_level: Scope of the ratio: ``"sequence"`` | ``"sequence_token"`` | ``"turn"`` | ``"token"``.
        clip_low: Ratio range below 1 (dimensionless, >= 0); a number, or one per trajectory or token. For
            ``"log_clip"``: range of a token's log-ratio below 0 (nats).
        clip_high: Ratio range above 1 (dimensionless, >= 0); a number, or one per trajectory or token. For
            ``"log_clip"``: range of a token's log-ratio above 0 (nats).
        turn_ids_BT: Turn of each sampled token; needed for ``"turn"`` and for ``"turn_mean"``.
        reduction: What the objective is a mean over, see ``token_weights``: ``"trajectory_mean"`` (the paper's) |
            ``"turn_mean"`` | ``"token_mean"`` | ``"token_sum"``.
        surrogate: ``"clip"``: min(s A, clip(s) A) | ``"dual_clip"``: the same, at least c A | ``"cispo"``: constant
            clip(s) times A log p | ``"sapo"``: a soft gate | ``"policy_gradient"``: s A | ``"log_clip"``: s A, where s
            is made of token ratios that were clipped one by one, in log space.
        denominator: How many trajectories, turns or tokens the reduction is a mean over; None counts those here. Pass
            the whole minibatch's count when these rows are only a part of it.
        token_sum_length: Constant length (tokens) that ``"token_sum"`` divides by.
        dual_clip: c of ``"dual_clip"``; > 1.
        sapo_temperature_positive: tau of ``"sapo"`` where A > 0.
        sapo_temperature_negative: tau of ``"sapo"`` elsewhere.
        weights_BT: Constant off-policy weights (``rollout_correction``), multiplied into the objective; they change
            neither ratio nor length nor denominator.
        max_log_ratio: Log-ratios above it (nats; > 0, <= 80) count as this and have no gradient.

    Returns:
        ``(loss, statistics)``. Statistics are detached, [B]: ``ratio_B``, the mean ratio over each trajectory's
        tokens (``"log_clip"``: after its clip); ``abs_log_ratio_B``, |log s| before any clip, whatever the ratio's
        scope; ``clipped_low_B`` and ``clipped_high_B``, the fraction of each one's tokens whose gradient the clip has
        removed (``"cispo"``: whose weight it has changed; ``"sapo"`` and ``"policy_gradient"`` have no clip: 0);
        ``counted_B``, whether the row has a sampled token.

    Raises:
        ValueError: A shape, name or number that is not allowed.

    Example:
        >>> logp_BT = torch.tensor([[-1.0, -2.0]], requires_grad=True)
        >>> loss, _ = policy_loss(logp_BT, logp_BT.detach(), torch.tensor([1.0]), torch.tensor([[True, True]]))
        >>> torch.autograd.grad(loss, logp_BT)[0]
        tensor([[-0.5000, -0.5000]])
    """
    if not 0 < max_log_ratio <= MAX_LOG_RATIO:
        raise ValueError(f"max_log_ratio={max_log_ratio!r}; allowed: > 0 and <= {MAX_LOG_RATIO:g}, where exp is finite")
    weight_BT = token_weights(
        mask_BT, reduction=reduction, turn_ids_BT=turn_ids_BT, denominator=denominator,
        token_sum_length=token_sum_length, dtype=logp_BT.dtype,
    )  # fmt: skip
    if weights_BT is not None:
        weight_BT = weight_BT * _masked(weights_BT.detach(), mask_BT)
    # Masked tokens must not reach the surrogate: their advantage may be NaN, and NaN would survive the backward pass.
    advantage_BT = _masked(_per_token(advantages, logp_BT).detach(), mask_BT)
    low, high = _bound("clip_low", clip_low), _bound("clip_high", clip_high)
    traits, knobs = surrogate_traits(surrogate), SurrogateKnobs(low, high, dual_clip)
    held_BT, held = logp_BT, None
    if traits.hold is not None:
        held_BT, held = traits.hold(logp_BT, old_logp_BT.detach(), advantage_BT, knobs)
    log_ratio_BT = log_ratio(
        held_BT, old_logp_BT.detach(), mask_BT, level=importance_sampling_level, turn_ids_BT=turn_ids_BT
    )
    ratio_BT = log_ratio_BT.clamp(max=max_log_ratio).exp()
    objective_BT = surrogate_objective(
        ratio_BT, advantage_BT, _masked(logp_BT, mask_BT), surrogate=surrogate, clip_low=low, clip_high=high,
        dual_clip=dual_clip, sapo_temperature_positive=sapo_temperature_positive,
        sapo_temperature_negative=sapo_temperature_negative,
    )  # fmt: skip
    clipped = traits.binding(ratio_BT.detach(), advantage_BT, knobs) if held is None else held
    log_s_B = sequence_log_ratio(logp_BT.detach(), old_logp_BT.detach(), mask_BT)
    return -weighted_sum(objective_BT, weight_BT), _statistics(ratio_BT.detach(), clipped, log_s_B, mask_BT)


def _masked(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return torch.where(mask_BT, value_BT, torch.zeros_like(value_BT))


def _per_token(advantages: Tensor, logp_BT: Tensor) -> Tensor:
    if advantages.shape == logp_BT.shape:
        return advantages
    if advantages.shape == logp_BT.shape[:1]:
        return advantages.unsqueeze(1).expand_as(logp_BT)
    raise ValueError(
        f"advantages have shape {tuple(advantages.shape)}; allowed: [B] = {tuple(logp_BT.shape[:1])} or "
        f"[B, T] = {tuple(logp_BT.shape)}"
    )


def _bound(name: str, value: Tensor | float) -> Tensor | float:
    if isinstance(value, Tensor):
        return value.detach().unsqueeze(1) if value.dim() == 1 else value.detach()
    if not value >= 0:
        raise ValueError(f"{name}={value!r}; allowed: >= 0, how far the ratio may be from 1")
    return value


def _statistics(
    ratio_BT: Tensor, clipped: tuple[Tensor, Tensor], log_s_B: Tensor, mask_BT: Tensor
) -> dict[str, Tensor]:
    length_B = mask_BT.sum(dim=1)

    def mean_B(value_BT: Tensor) -> Tensor:
        return _masked(value_BT.to(ratio_BT.dtype), mask_BT).sum(dim=1) / length_B.clamp(min=1)

    return {
        "ratio_B": mean_B(ratio_BT),
        "abs_log_ratio_B": log_s_B.abs(),
        "clipped_low_B": mean_B(clipped[0]),
        "clipped_high_B": mean_B(clipped[1]),
        "counted_B": length_B > 0,
    }

"""The mathematics: pure functions on tensors, each with its source; no config, logger, device or global inside."""

from gspo_rllib.ops.advantages import (
    group_mean_baseline,
    group_z_score,
    leave_one_out,
    returns_to_go,
    reward_parts_z_score,
    step_groups,
    trajectory_mean_advantages,
    turn_returns,
)
from gspo_rllib.ops.clip_scaling import length_clip_scale, next_clip_scale
from gspo_rllib.ops.corrections import (
    CORRECTION_LEVELS,
    CORRECTION_MODES,
    CorrectionLevel,
    CorrectionMode,
    rollout_correction,
)
from gspo_rllib.ops.divergences import KL_ESTIMATORS, KLEstimator, k1, k2, k3, kl_estimate
from gspo_rllib.ops.length_penalties import soft_overlong_penalty
from gspo_rllib.ops.policy_loss import MAX_LOG_RATIO, policy_loss
from gspo_rllib.ops.ratios import (
    IMPORTANCE_SAMPLING_LEVELS,
    ImportanceSamplingLevel,
    RatioTraits,
    log_ratio,
    sequence_log_ratio,
    token_log_ratio,
    turn_log_ratio,
)
from gspo_rllib.ops.reductions import (
    REDUCTIONS,
    Reduction,
    ReductionTraits,
    reduce_tokens,
    token_weights,
    tokens_per_turn,
    weighted_sum,
)
from gspo_rllib.ops.spans import Span
from gspo_rllib.ops.surrogates import (
    SURROGATES,
    Surrogate,
    SurrogateTraits,
    binding_clip,
    cispo_surrogate,
    clip_span,
    clipped_surrogate,
    dual_clipped_surrogate,
    soft_gated_surrogate,
    surrogate_objective,
)
from gspo_rllib.ops.token_clip import hold_clipped_tokens
from gspo_rllib.ops.token_logprobs import token_logprobs
from gspo_rllib.ops.value_estimates import gae

__all__ = [
    "CORRECTION_LEVELS",
    "CORRECTION_MODES",
    "IMPORTANCE_SAMPLING_LEVELS",
    "KL_ESTIMATORS",
    "MAX_LOG_RATIO",
    "REDUCTIONS",
    "SURROGATES",
    "CorrectionLevel",
    "CorrectionMode",
    "ImportanceSamplingLevel",
    "KLEstimator",
    "RatioTraits",
    "Reduction",
    "ReductionTraits",
    "Span",
    "Surrogate",
    "SurrogateTraits",
    "binding_clip",
    "cispo_surrogate",
    "clip_span",
    "clipped_surrogate",
    "dual_clipped_surrogate",
    "gae",
    "group_mean_baseline",
    "group_z_score",
    "hold_clipped_tokens",
    "k1",
    "k2",
    "k3",
    "kl_estimate",
    "leave_one_out",
    "length_clip_scale",
    "log_ratio",
    "next_clip_scale",
    "policy_loss",
    "reduce_tokens",
    "returns_to_go",
    "reward_parts_z_score",
    "rollout_correction",
    "sequence_log_ratio",
    "soft_gated_surrogate",
    "soft_overlong_penalty",
    "step_groups",
    "surrogate_objective",
    "token_log_ratio",
    "token_logprobs",
    "token_weights",
    "tokens_per_turn",
    "trajectory_mean_advantages",
    "turn_log_ratio",
    "turn_returns",
    "weighted_sum",
]

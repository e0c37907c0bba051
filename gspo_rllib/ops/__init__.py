"""The mathematics: pure functions on tensors, each with its source; no config, logger, device or global inside."""

from gspo_rllib.ops.advantages import group_z_score
from gspo_rllib.ops.divergences import k3
from gspo_rllib.ops.policy_loss import policy_loss
from gspo_rllib.ops.ratios import (
    IMPORTANCE_SAMPLING_LEVELS,
    ImportanceSamplingLevel,
    log_ratio,
    sequence_log_ratio,
    token_log_ratio,
    turn_log_ratio,
)
from gspo_rllib.ops.reductions import trajectory_mean
from gspo_rllib.ops.surrogates import binding_clip, clipped_surrogate
from gspo_rllib.ops.token_logprobs import token_logprobs

__all__ = [
    "IMPORTANCE_SAMPLING_LEVELS",
    "ImportanceSamplingLevel",
    "binding_clip",
    "clipped_surrogate",
    "group_z_score",
    "k3",
    "log_ratio",
    "policy_loss",
    "sequence_log_ratio",
    "token_log_ratio",
    "token_logprobs",
    "trajectory_mean",
    "turn_log_ratio",
]

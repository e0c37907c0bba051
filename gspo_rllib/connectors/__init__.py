"""Learner connector pieces: from finished episodes to what the learner packs."""

from gspo_rllib.connectors.episodes_to_tokens import EpisodesToTokens, token_trajectory
from gspo_rllib.connectors.gae import GeneralAdvantageEstimation
from gspo_rllib.connectors.group_advantages import (
    ADVANTAGE_ESTIMATORS,
    AdvantageTraits,
    GroupAdvantages,
    group_estimator,
)
from gspo_rllib.connectors.reference_log_probs import ReferenceLogProbs
from gspo_rllib.connectors.reward_shaping import KLPenalty, OverlongPenalty

__all__ = [
    "ADVANTAGE_ESTIMATORS",
    "AdvantageTraits",
    "EpisodesToTokens",
    "GeneralAdvantageEstimation",
    "GroupAdvantages",
    "KLPenalty",
    "OverlongPenalty",
    "ReferenceLogProbs",
    "group_estimator",
    "token_trajectory",
]

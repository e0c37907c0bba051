"""Learner connector pieces: from finished episodes to what the learner packs."""

from gspo_rllib.connectors.episodes_to_tokens import EpisodesToTokens as EpisodesToTokens
from gspo_rllib.connectors.episodes_to_tokens import token_trajectory as token_trajectory
from gspo_rllib.connectors.gae import GeneralAdvantageEstimation as GeneralAdvantageEstimation
from gspo_rllib.connectors.group_advantages import ADVANTAGE_ESTIMATORS as ADVANTAGE_ESTIMATORS
from gspo_rllib.connectors.group_advantages import AdvantageTraits as AdvantageTraits
from gspo_rllib.connectors.group_advantages import GroupAdvantages as GroupAdvantages
from gspo_rllib.connectors.group_advantages import group_estimator as group_estimator
from gspo_rllib.connectors.reference_log_probs import ReferenceLogProbs as ReferenceLogProbs
from gspo_rllib.connectors.reward_shaping import KLPenalty as KLPenalty
from gspo_rllib.connectors.reward_shaping import OverlongPenalty as OverlongPenalty

"""Learner connector pieces: from finished episodes to what the learner packs."""

from gspo_rllib.connectors.episodes_to_tokens import EpisodesToTokens, token_trajectory
from gspo_rllib.connectors.group_advantages import GroupAdvantages

__all__ = ["EpisodesToTokens", "GroupAdvantages", "token_trajectory"]

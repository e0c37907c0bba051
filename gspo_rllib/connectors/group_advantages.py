"""Learner connector piece: scores every trajectory against the others of its group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib import columns
from gspo_rllib.ops import group_z_score
from gspo_rllib.types import group_episodes


class GroupAdvantages(ConnectorV2):
    """Puts one advantage per episode into ``batch["advantages"]``, keyed by episode id.

    It takes the slot that generalised advantage estimation has in RLlib's PPO.

    Args:
        estimator: Returns [K] of one group -> advantages [K].
    """

    def __init__(self, *args: Any, estimator: Callable[[torch.Tensor], torch.Tensor] = group_z_score, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._estimator = estimator

    def __call__(
        self,
        *,
        rl_module: RLModule,
        batch: dict[str, Any],
        episodes: list[SingleAgentEpisode],
        explore: bool | None = None,
        shared_data: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See ``ConnectorV2``; the episodes must be whole groups."""
        advantages: dict[str, float] = {}
        for group in group_episodes(episodes):
            # float64: a z-score of returns that differ in the last bits must not turn rounding into an advantage.
            return_K = torch.tensor([episode.get_return() for episode in group.episodes], dtype=torch.float64)
            for episode, advantage in zip(group.episodes, self._estimator(return_K).tolist(), strict=True):
                advantages[episode.id_] = advantage
        batch[columns.ADVANTAGES] = advantages
        return batch

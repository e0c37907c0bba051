"""Learner connector piece: RLlib episodes of text turns become token trajectories."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib import columns
from gspo_rllib.types import GROUP, TokenTrajectory, turn_rewards, turns


class EpisodesToTokens(ConnectorV2):
    """Replaces the batch by ``{module: {"trajectories": [TokenTrajectory, …]}}``, one per episode, in their order.

    The pieces behind it fill in what the trajectories are still missing: their advantages are 0 here.
    """

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
        """See ``ConnectorV2``."""
        return {DEFAULT_MODULE_ID: {columns.TRAJECTORIES: [token_trajectory(episode) for episode in episodes]}}


def token_trajectory(episode: SingleAgentEpisode, *, advantage: float = 0.0) -> TokenTrajectory:
    """Concatenates a trajectory's turns.

    Args:
        episode: Finished, with a ``Turn`` per step.
        advantage: Of every sampled token.
    """
    taken = list(turns(episode))
    ids = [part for turn in taken for part in (turn.prompt_token_ids, turn.action_token_ids)]
    sampled = [flag for turn in taken for flag in (np.zeros(len(turn.prompt_token_ids), bool), _ones(turn))]
    behavior_logp = np.concatenate([turn.action_logp for turn in taken]).astype(np.float32)
    return TokenTrajectory(
        group_id=episode.custom_data[GROUP].group_id,
        index=episode.custom_data[GROUP].index,
        segments=(np.concatenate(ids).astype(np.int32),),
        loss_masks=(np.concatenate(sampled),),
        turn_index=np.repeat(np.arange(len(taken), dtype=np.int32), [len(turn.action_token_ids) for turn in taken]),
        behavior_logp=behavior_logp,
        behavior_version=min(turn.policy_version for turn in taken),
        turn_rewards=turn_rewards(episode),
        advantages=np.full(len(behavior_logp), advantage, dtype=np.float32),
    )


def _ones(turn: Any) -> np.ndarray:
    return np.ones(len(turn.action_token_ids), bool)

"""Learner connector piece: RLlib episodes of text turns become token trajectories."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModule
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib import columns
from gspo_rllib.types import GROUP, TokenTrajectory, Turn, turn_rewards, turns


class EpisodesToTokens(ConnectorV2):
    """Replaces the batch by ``{module: {"trajectories": [TokenTrajectory, …]}}``, one per episode, in their order.

    The pieces that follow fill in what the trajectories still lack; their advantages are 0 here.
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
        episode: A finished episode with a ``Turn`` per step.
        advantage: Advantage of every sampled token.
    """
    taken = list(turns(episode))
    starts = [0, *(i for i, turn in enumerate(taken) if i and turn.starts_segment), len(taken)]
    segments = [_segment(taken[start:end]) for start, end in itertools.pairwise(starts)]
    behavior_logp = np.concatenate([turn.action_logp for turn in taken]).astype(np.float32)
    return TokenTrajectory(
        group_id=episode.custom_data[GROUP].group_id,
        index=episode.custom_data[GROUP].index,
        segments=tuple(ids for ids, _ in segments),
        loss_masks=tuple(sampled for _, sampled in segments),
        turn_index=np.repeat(np.arange(len(taken), dtype=np.int32), [len(turn.action_token_ids) for turn in taken]),
        behavior_logp=behavior_logp,
        behavior_version=min(turn.policy_version for turn in taken),
        turn_rewards=turn_rewards(episode),
        advantages=np.full(len(behavior_logp), advantage, dtype=np.float32),
    )


def _segment(taken: Sequence[Turn]) -> tuple[np.ndarray, np.ndarray]:
    """The ids of one contiguous context, and which of them were sampled in it."""
    ids = [part for turn in taken for part in (turn.prompt_token_ids, turn.action_token_ids)]
    lengths = [len(part) for part in ids]
    return np.concatenate(ids).astype(np.int32), np.repeat(np.arange(len(ids)) % 2 == 1, lengths)

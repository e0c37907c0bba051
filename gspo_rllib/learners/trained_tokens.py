"""What an update did with single tokens, asked of a learner after it: advantages, and the new log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib import columns
from gspo_rllib.connectors.episodes_to_tokens import token_trajectory
from gspo_rllib.types import TokenTrajectory

if TYPE_CHECKING:
    from gspo_rllib.learners.language_learner import LanguageLearner


class TrainedTokens(NamedTuple):
    """One trajectory, L sampled ids.

    Attributes:
        advantage_L: float32, as its loss had them; None where they are not known any more.
        logp_L: float32, nats, under the policy after the update.
    """

    advantage_L: np.ndarray | None
    logp_L: np.ndarray


def trained_tokens(
    learner: LanguageLearner,
    episodes: Sequence[SingleAgentEpisode],
    wanted: Sequence[int],
    *,
    temperature: float,
    knows_advantages: bool,
) -> list[TrainedTokens]:
    """What became of trajectories that were trained on.

    Args:
        learner: Any of the learners: none of the others takes part.
        episodes: Whole groups, as they were trained on, each trajectory with a sampled id.
        wanted: Places of those that are asked about; the others are what their advantages compare with.
        temperature: What they were sampled at, > 0.
        knows_advantages: Whether they can be worked out again: not a critic's, which has changed since.

    Returns:
        One for each that is wanted.
    """
    asked: list[TokenTrajectory] = [token_trajectory(episodes[place]) for place in wanted]
    advantages: list[np.ndarray | None] = [None] * len(asked)
    if knows_advantages:
        # The pipeline that the update's came from. Its timers are the update's, so it is given no metrics.
        batch = learner._learner_connector(rl_module=learner.module, batch={}, episodes=list(episodes), shared_data={})
        trained = batch[DEFAULT_MODULE_ID][columns.TRAJECTORIES]
        advantages = [trained[place].advantages for place in wanted]
    scored = learner.score(asked, [temperature] * len(asked))
    return [TrainedTokens(advantage, logp) for advantage, logp in zip(advantages, scored, strict=True)]

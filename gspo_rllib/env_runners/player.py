"""What an env runner needs of whatever plays its groups, environments or agents."""

from __future__ import annotations

from typing import Protocol

import gymnasium as gym
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.env_runners.group_scheduler import GroupScheduler
from gspo_rllib.env_runners.rollout_stats import RolloutStats


class Slots(Protocol):
    """Places in which trajectories are played; they outlive a rollout."""

    def wake(self) -> None:
        """Ends a wait for something to happen in them, or the next one; may be called from any thread."""

    def env(self, slot: int) -> gym.Env | None:
        """The environment in a slot, for callbacks, where it can be had."""

    def close(self) -> None:
        """Abandons all that is played in them; returns at once."""


class GroupPlayer(Protocol):
    """Plays groups of trajectories on an engine.

    Attributes:
        holds_turns: While True no new turn reaches the engine, so that it becomes idle.
    """

    holds_turns: bool

    def run(self, scheduler: GroupScheduler[SingleAgentEpisode]) -> RolloutStats:
        """Plays until every group is complete or given up; returns the groups and what playing them took."""

    def begin(self, scheduler: GroupScheduler[SingleAgentEpisode]) -> None:
        """From now on ``advance`` plays the groups of this scheduler, those added to it later included."""

    def advance(self) -> bool:
        """One step of the engine and of what plays; returns whether anything is left to play."""

    def collect(self) -> RolloutStats:
        """What happened since the last call, with the groups completed since; it is forgotten here."""

    def end(self) -> None:
        """Abandons every trajectory that is still being played."""

"""What an env runner tells the driver about the groups it was asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.types import TrajectoryGroup


@dataclass(frozen=True, slots=True)
class SampleReport:
    """What came of sampling, in one call or since the last report.

    Attributes:
        groups: Complete groups in the order they were asked for.
        given_up: Ids of the groups that could not be completed.
        errors: Distinct messages of the failures behind these groups, oldest first.
        metrics: The result of ``get_metrics``; empty when no group was completed or given up.
        weights_version: Version of the weights that the engine holds, or held last while it is loading others.
        num_in_flight: Groups asked for and neither completed nor given up yet.
    """

    groups: list[TrajectoryGroup] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    weights_version: int | None = None
    num_in_flight: int = 0

    @property
    def episodes(self) -> list[SingleAgentEpisode]:
        """The trajectories of the groups: group by group, by index within a group."""
        return [episode for group in self.groups for episode in group.episodes]

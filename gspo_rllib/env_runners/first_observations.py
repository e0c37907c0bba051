"""Watches that the members of a group meet one task: the same seed must give the same first observation."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ray.util import log_once

from gspo_rllib.env_runners.group_scheduler import Assignment

logger = logging.getLogger(__name__)


class FirstObservations:
    """The first observation of every group being played."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[int, str]] = {}

    def differ(self, assignment: Assignment, observation: str) -> bool:
        """Whether another member of the group saw something else; the first time, the log says so.

        Args:
            assignment: The trajectory that starts.
            observation: The first observation of that trajectory.
        """
        replacement, first = self._first.get(assignment.group_id, (-1, ""))
        if replacement != assignment.replacement:
            self._first[assignment.group_id] = (assignment.replacement, observation)
            return False
        if first == observation:
            return False
        if log_once("gspo_rllib_mixed_tasks"):
            logger.warning(
                "Trajectories of one group started from different observations although reset(seed=...) got one seed "
                "(%d): %.200r and %.200r. Group advantages compare trajectories of one task: derive the task from the "
                "seed (self.np_random), not from a global random state.",
                assignment.task_seed,
                first,
                observation,
            )
        return True

    def forget(self, group_ids: Iterable[str]) -> None:
        """Forgets groups that are played no more."""
        for group_id in group_ids:
            self._first.pop(group_id, None)

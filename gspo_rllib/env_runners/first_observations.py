"""Watches that the members of a group meet one task: the same seed must give the same first observation.

A task may be hidden by its first observation ("guess the number"), so the same first reply must be answered alike, too.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from ray.util import log_once

from gspo_rllib.env_pool.calls import EnvAnswer
from gspo_rllib.env_runners.group_scheduler import Assignment

logger = logging.getLogger(__name__)


class FirstObservations:
    """The first observation of every group being played, and what its first replies were answered.

    Args:
        deterministic: Whether equal replies must be answered alike; False where chance is part of the environment.
    """

    def __init__(self, *, deterministic: bool = True) -> None:
        self._first: dict[str, tuple[int, str]] = {}
        self._answers: dict[str, dict[tuple[int, str], tuple[str, float, bool, bool]]] = {}
        self._deterministic = deterministic

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

    def answers_differ(self, assignment: Assignment, reply: str, answer: EnvAnswer) -> bool:
        """Whether another member of the group was answered otherwise; the first time, the log says so.

        Args:
            assignment: The trajectory that took its first turn.
            reply: What it said.
            answer: What the environment made of it.
        """
        if not self._deterministic:
            return False
        answers = self._answers.setdefault(assignment.group_id, {})
        said = (answer.observation, answer.reward, answer.terminated, answer.truncated)
        known = answers.setdefault((assignment.replacement, reply), said)
        if known == said:
            return False
        if log_once("gspo_rllib_mixed_answers"):
            logger.warning(
                "Trajectories of one group began alike, and to the same first reply, %.200r, the environment said "
                "%.200r (reward %g) to one and %.200r (reward %g) to another, although reset(seed=...) got one seed "
                "(%d). Group advantages compare trajectories of one task: draw all of the task from the seed "
                "(self.np_random), not from a global random state. Where chance is part of every step, declare it: "
                'metadata["deterministic"] = False.',
                reply,
                *known[:2],
                *said[:2],
                assignment.task_seed,
            )
        return True

    def forget(self, group_ids: Iterable[str]) -> None:
        """Forgets groups that are played no more."""
        for group_id in group_ids:
            self._first.pop(group_id, None)
            self._answers.pop(group_id, None)

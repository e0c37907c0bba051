"""Watches for a run that learns nothing because there is nothing to learn from, and says why, with a reply to look at.

Groups whose members all did equally well have no advantage: minutes may pass at 0 % success without one gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

from gspo_rllib.types import TrajectoryGroup, succeeded

PATIENCE = 3
"""Consecutive iterations without a trajectory to learn from before the run says so."""

_SHOWN = 200  # characters of a reply


class IdleMonitor:
    """Counts iterations that could teach nothing.

    Attributes:
        num_idle: Consecutive ones up to the latest.
    """

    def __init__(self) -> None:
        self.num_idle = 0
        self._drawn: list[TrajectoryGroup] = []

    def draw(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Takes notice of groups that were sampled in this iteration, before any is left out."""
        self._drawn += groups

    def check(self, num_informative: float, *, num_stale: int = 0) -> str | None:
        """Ends an iteration.

        Args:
            num_informative: Trajectories with an advantage that it trained on.
            num_stale: Groups that were dropped since they were too old.

        Returns:
            What to warn about: once, when it becomes clear, and again after it has gone.
        """
        drawn, self._drawn = self._drawn, []
        self.num_idle = 0 if num_informative else self.num_idle + 1
        if self.num_idle != PATIENCE:
            return None
        return f"{PATIENCE} iterations without a trajectory to learn from: {_why(drawn, num_stale)}"


def _why(drawn: Sequence[TrajectoryGroup], num_stale: int) -> str:
    episodes = [episode for group in drawn for episode in group.episodes]
    if num_stale and not episodes:
        return (
            f"all {num_stale} finished groups were older than training.max_staleness. Raise it, sample with fewer "
            "trajectories at a time, or lower groups_per_iteration."
        )
    if not episodes:
        return "no group was completed. See the env runners' errors."
    outcomes = {succeeded(episode) for episode in episodes}
    if outcomes == {True}:
        return f"all {len(episodes)} trajectories succeeded. The task is mastered: make it harder, or stop."
    reply = str(episodes[-1].get_actions(-1))
    shown = repr(reply if len(reply) <= _SHOWN else f"{reply[:_SHOWN]}…")
    if outcomes == {False}:
        return (
            f"all {len(episodes)} trajectories failed. The last reply of one: {shown}. If that is not what the "
            "environment understands, correct its prompt or warm-start the policy (gspo-rllib warmstart); if it is, "
            "make the task easier, or reward parts of it."
        )
    return (
        f"within each of {len(drawn)} groups all trajectories did equally well. The last reply of one: {shown}. Raise "
        "training.group_size, or choose tasks that the policy solves now and then."
    )

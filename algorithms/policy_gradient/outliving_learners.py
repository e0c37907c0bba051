"""The part of an algorithm that goes on when its learners were lost, and says what it takes to go on when it cannot."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gspo_rllib.driver.fixed_lag import FixedLag
from gspo_rllib.driver.fleet import Fleet
from gspo_rllib.driver.group_file import save_groups
from gspo_rllib.driver.learner_team import LearnerTeam
from gspo_rllib.driver.protocol import GroupSource
from gspo_rllib.driver.recorded import RecordedGroups
from gspo_rllib.errors import GSPOError, LearnersLostError
from gspo_rllib.metrics import NUM_LEARNER_REBUILDS, NUM_UPDATES_REPEATED, RECOVERY
from gspo_rllib.types import TrajectoryGroup
from gspo_rllib.weight_sync import Weights

if TYPE_CHECKING:
    from ray.rllib.env.env_runner_group import EnvRunnerGroup


class OutlivesLearners:
    """What ``PolicyGradient`` does about learners that are lost; ``LearnerTeam`` rebuilds them.

    Attributes:
        failed_updates: Folder that the groups of an update go to that failed twice; None for RLlib's ``logdir``.
    """

    failed_updates: str | os.PathLike[str] | None = None

    env_runner_group: EnvRunnerGroup
    learner_group: Any
    logdir: str
    metrics: Any
    _source: GroupSource
    _taken: list[str]
    _unfinished: list[str]
    _weights: Weights
    _rebuilds_seen: int = 0

    def _update_learners(self, groups: Sequence[TrajectoryGroup], **kwargs: Any) -> Any:
        """One update of the learners; what it was to train on is kept where it fails for good.

        Args:
            groups: What ``training_data`` holds.
            kwargs: Arguments of ``LearnerGroup.update``.

        Raises:
            LearnersLostError: It failed twice.
        """
        try:
            return self.learner_group.update(**kwargs)
        except LearnersLostError as error:
            if isinstance(self._source, FixedLag):
                self._source.put_back()
            elif not isinstance(self._source, RecordedGroups):
                # A resumed run plays them again.
                self._unfinished, self._taken = self._taken + self._unfinished, []
            raise LearnersLostError(f"{error} {self._kept_for_replay(groups)}") from error

    def _kept_for_replay(self, groups: Sequence[TrajectoryGroup]) -> str:
        folder = pathlib.Path(self.failed_updates or self.logdir)
        file = folder / f"failed_update_{self._weights.version:06d}.jsonl"
        try:
            file.unlink(missing_ok=True)
            save_groups(file, groups)
        except (GSPOError, OSError) as error:
            return f"The update's groups could not be written ({error})."
        return f"The update's groups are in {file}: load_groups reads them, train_on trains on them."

    def _give_rebuilt_weights(self) -> None:
        """Has every engine hold what learners that were rebuilt hold: where rounding depends on chance, another bit."""
        if isinstance(self.learner_group, LearnerTeam) and self.learner_group.num_rebuilds != self._rebuilds_seen:
            self._take_weights()
            with self._source.paused():
                self._weights.push(Fleet.of(self.env_runner_group), force=True)
            self._source.advance(self._weights)

    def _take_weights(self) -> None:
        self._weights = Weights(self.learner_group)
        self._rebuilds_seen = self.learner_group.num_rebuilds

    def _log_recovery(self) -> None:
        team = self.learner_group
        if team.is_remote:
            self.metrics.log_value((RECOVERY, NUM_LEARNER_REBUILDS), team.num_rebuilds, window=1)
            self.metrics.log_value((RECOVERY, NUM_UPDATES_REPEATED), team.num_updates_repeated, window=1)

"""The part of an algorithm that keeps groups in a file, and trains on groups that were made elsewhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from gspo_rllib.connectors.group_advantages import ADVANTAGE_ESTIMATORS
from gspo_rllib.driver.group_file import drop_groups, save_groups
from gspo_rllib.driver.group_passes import GroupPasses
from gspo_rllib.driver.protocol import GroupSource
from gspo_rllib.driver.recorded import Behavior, RecordedGroups, check_recorded, with_own_behavior
from gspo_rllib.env_runners.engine_spec import longest_context, vocabulary_size
from gspo_rllib.env_runners.group_names import number_of
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.types import TokenTrajectory, TrajectoryGroup
from gspo_rllib.weight_sync import Weights

if TYPE_CHECKING:
    import numpy as np

    from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
    from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings

logger = logging.getLogger("gspo_rllib")


class TrainsOnRecorded:
    """What ``PolicyGradient`` can do with groups beyond sampling them."""

    config: PolicyGradientConfig
    iteration: int
    train: Callable[[], dict[str, Any]]
    _first_learner: Callable[[Callable[[Any], Any]], list[Any]]
    _settings: TrainingSettings
    _source: GroupSource
    _next_group: int
    _unfinished: list[str]
    _weights: Weights
    _record: str | os.PathLike[str] | None = None
    _record_goes_on: bool = False
    _passes: GroupPasses | None = None

    def train_on(
        self, groups: Sequence[TrajectoryGroup] | Iterator[TrajectoryGroup], *, behavior: Behavior = "recorded"
    ) -> dict[str, Any]:
        """One ordinary iteration, on groups that were made elsewhere instead of sampled ones.

        Selection, update, weights, metrics, evaluation and checkpoints are those of ``train``. What env runners are
        sampling meanwhile stays in flight.

        Args:
            groups: Any number of groups, such as those of ``load_groups``, each of any size from 2, or from 1 where
                an advantage needs no group; taken whole or not at all.
            behavior: ``"unknown"`` takes trajectories without log-probabilities too, with the learner's own in their
                place: their ratio starts at 1, whatever wrote the text.

        Returns:
            What ``train`` returns.

        Raises:
            RecordError: A group cannot be trained on; nothing was changed.
        """
        with self._in_place_of_sampling(list(groups) if isinstance(groups, Iterator) else groups, behavior):
            return self.train()

    def _groups_of_file(self) -> AbstractContextManager[None]:
        """Has one training step take the next groups of ``training.recorded_groups``, if there is such a file."""
        path = self._settings.recorded_groups
        if path is None or isinstance(self._source, RecordedGroups):
            return nullcontext()
        if self._passes is None:
            self._passes = GroupPasses(path, self.config)
        groups = self._passes.take(self._settings.groups_per_iteration, taken=self._next_group)
        return self._in_place_of_sampling(groups, self._settings.recorded_behavior)

    @contextmanager
    def _in_place_of_sampling(self, groups: Sequence[TrajectoryGroup], behavior: Behavior) -> Iterator[None]:
        """Checks groups, and has what is trained within take them."""
        version, model = self._weights.version, self.config.model_config
        check_recorded(
            groups,
            version=version,
            vocab_size=vocabulary_size(model),
            longest=longest_context(model),
            smallest=2 if ADVANTAGE_ESTIMATORS[self._settings.advantage_estimator].needs_group else 1,
            reward_parts=self._settings.reward_part_weights or (),
            behavior=behavior,
        )
        temperature = float(self.config.settings(GenerationSettings).temperature)

        def score(trajectories: list[TokenTrajectory]) -> list[np.ndarray]:
            (scored,) = self._first_learner(
                lambda learner: learner.score(trajectories, [temperature] * len(trajectories))
            )
            return list(scored)

        filled, num_unknown = with_own_behavior(groups, version=version, score=score)
        sampling = self._source
        self._source = RecordedGroups(filled, sampling, num_unknown=num_unknown)
        self._next_group += len(filled)
        try:
            yield
        finally:
            self._source = sampling

    def record_groups(self, file: str | os.PathLike[str] | None, *, goes_on: bool = False) -> None:
        """Writes every group that is sampled from now on, as ``save_groups`` does; what is there stays.

        Args:
            file: A JSONL file, added to before each update; None ends it.
            goes_on: Whether the file is that of this very run, which goes on from a checkpoint: what it holds of groups
                that are sampled again is taken out.
        """
        self._record = file
        self._record_goes_on = goes_on

    def _keep(self, groups: Sequence[TrajectoryGroup]) -> None:
        """Writes groups that were sampled to the file that was asked for, if one was; without room, says so."""
        if self._record is None:
            return
        try:
            if self._record_goes_on:
                again = {*self._source.unfinished, *self._unfinished, *(group.group_id for group in groups)}
                drop_groups(self._record, lambda name: name in again or (number_of(name) or 0) >= self._next_group)
                self._record_goes_on = False
            save_groups(self._record, groups, append=True)
        except OSError as error:
            # They are trained all the same: what a run is for does not end with its record.
            logger.warning("%d groups of iteration %d are not recorded: %s", len(groups), self.iteration + 1, error)

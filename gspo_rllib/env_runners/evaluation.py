"""Evaluation by runners that train: one of its own config beside each, on the same engine.

A model in memory twice, and an idle engine beside busy ones, is what evaluation in runners of its own costs. A training
runner has an engine that holds the policy already, so it makes a second runner in its process and plays with that.
"""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from gspo_rllib.engines import registry
from gspo_rllib.engines.proof import Conversation, EngineSample
from gspo_rllib.env_runners.engine_user import EngineUser
from gspo_rllib.env_runners.sample_report import SampleReport


class LendsItsEngine(EngineUser):
    """The part of an env runner that plays evaluations for the algorithm between two iterations of training."""

    _evaluator: Any = None

    def evaluate_groups(self, group_ids: list[str], config: AlgorithmConfig, *, weights_version: int) -> SampleReport:
        """Plays these groups under an evaluation config; how the driver evaluates where it has no runners for it.

        Args:
            group_ids: Names of the groups.
            config: The evaluation config; the first one that is given is kept. Where it describes another engine than
                this runner's, that one is made, and given the weights of every sync, too.
            weights_version: See ``sample_groups``.

        Raises:
            SettingError: A group is asked for twice.
            EngineError: A thread is sampling on this engine, and is not paused.
            EnvError: The evaluation's environment cannot be used.
        """
        if self._evaluator is None:
            self._evaluator = self._make_evaluator(config)
        report: SampleReport = self._evaluator.sample_groups(group_ids, weights_version=weights_version)
        return report

    def converse(self, conversation: Conversation) -> EngineSample | None:
        """See ``EngineUser.converse``; once this engine is proven, of one that evaluation has of its own, if any."""
        sample = super().converse(conversation)
        if sample is None and self._evaluates_elsewhere:
            return self._evaluator.converse(conversation)  # type: ignore[no-any-return]  # a runner like this one
        return sample

    def mark_proven(self) -> None:
        """Notes that what ``converse`` returned was found to be the learner's policy."""
        if registry.is_proven(self._acquire_engine()) and self._evaluates_elsewhere:
            self._evaluator.mark_proven()
        else:
            super().mark_proven()

    def rest_engine(self) -> None:
        """See ``EngineUser.rest_engine``; likewise an engine that evaluation has of its own."""
        super().rest_engine()
        if self._evaluates_elsewhere:
            self._evaluator.rest_engine()

    @property
    def _evaluates_elsewhere(self) -> bool:
        return self._evaluator is not None and self._evaluator._acquire_engine() is not self._acquire_engine()

    def _make_evaluator(self, config: AlgorithmConfig) -> Any:
        """A runner like this one, with another config."""
        raise NotImplementedError

    def _load_for_evaluation(self, named_weights: Any, version: int) -> None:
        """Loads weights into the engine that evaluation has of its own, if it has."""
        if self._evaluates_elsewhere:
            self._evaluator.set_weights(named_weights, version)

    def _stop_evaluator(self) -> None:
        """Ends what ``evaluate_groups`` began; the next one begins anew."""
        evaluator, self._evaluator = self._evaluator, None
        if evaluator is not None:
            evaluator.stop()

"""The part of an algorithm that evaluates: fixed tasks, played by the env runners and on the engines that are there."""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, EVALUATION_RESULTS

from gspo_rllib.driver.evaluation import evaluate
from gspo_rllib.driver.evaluation_scores import estimate_metrics
from gspo_rllib.driver.failures import raise_engine_failures
from gspo_rllib.driver.fleet import Fleet
from gspo_rllib.driver.protocol import GroupSource
from gspo_rllib.errors import shown
from gspo_rllib.weight_sync import Weights


class EvaluatesTasks(Algorithm):
    """What ``PolicyGradient`` does in an evaluation."""

    _source: GroupSource
    _weights: Weights

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """RLlib's evaluation, with the current weights: the same tasks every time, however many runners there are.

        With ``evaluation_num_env_runners=0`` the training runners play it on the engines they have, and training groups
        that are in flight wait meanwhile.

        What a ``custom_evaluation_function`` returns is part of the result; RLlib itself drops it.

        Raises:
            EngineError: An engine failed; RLlib itself would pass over it.
            ValueError: A ``custom_evaluation_function`` returned something else than it has to.
        """
        self._returned: dict[str, Any] = {}
        try:
            with self._source.paused() if self.eval_env_runner_group is None else contextlib.nullcontext():
                measured = super().evaluate(*args, **kwargs)
                return self._returned | measured
        finally:
            raise_engine_failures(self.eval_env_runner_group or self.env_runner_group)

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: AlgorithmConfig) -> bool:
        # Without remote ones RLlib would make one in this process, which loads a second engine beside the runners'.
        return bool(eval_config.evaluation_num_env_runners)

    def _before_evaluate(self) -> None:
        # RLlib's own sync is fire-and-forget; once every runner has acknowledged, it has nothing left to do.
        self._weights.push(Fleet.of(self.eval_env_runner_group or self.env_runner_group))

    def _evaluate_on_local_env_runner(self, env_runner: Any) -> tuple[None, int, int, list[Any]]:
        return self._evaluate_with_fixed_duration()

    def _evaluate_with_custom_eval_function(self) -> tuple[dict[str, Any], int, int]:
        function = self.config.custom_evaluation_function
        found = function(self, self.eval_env_runner_group or self.env_runner_group)
        match found:
            case (dict() as measured, int() as env_steps, int() as agent_steps):
                self._returned = measured
                return measured, env_steps, agent_steps
        raise ValueError(
            f"evaluation(custom_evaluation_function={shown(function)}) returned {shown(found)}. Return a tuple: a dict "
            "of metrics, and how many environment steps and agent steps were played, two int."
        )

    @cached_property
    def _evaluation_duration(self) -> int:
        if not self.config.plays_all_tasks:
            return int(self.config.evaluation_duration)
        count = self.evaluation_config.num_tasks
        assert count is not None, "checked by the config"
        return int(count * self.evaluation_config.group_size)

    def _evaluate_with_fixed_duration(self) -> tuple[None, int, int, list[Any]]:
        groups, metrics = evaluate(
            self.eval_env_runner_group or self.env_runner_group,
            self._weights,
            self.evaluation_config,
            duration=self._evaluation_duration,
            unit=self.config.evaluation_duration_unit,
        )
        measured = [*metrics, estimate_metrics(groups)]
        self.metrics.aggregate(measured, key=(EVALUATION_RESULTS, ENV_RUNNER_RESULTS))
        num_turns = sum(len(episode) for group in groups for episode in group.episodes)
        return None, num_turns, num_turns, []

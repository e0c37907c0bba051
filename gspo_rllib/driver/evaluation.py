"""Plays an evaluation: groups by name, so that the tasks are the same whoever plays them, and however many do."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from gspo_rllib.driver.lockstep import Lockstep
from gspo_rllib.env_runners.group_names import evaluation_group
from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.types import TrajectoryGroup
from gspo_rllib.weight_sync import Weights

logger = logging.getLogger(__name__)


def evaluate(
    runners: EnvRunnerGroup, weights: Weights, config: AlgorithmConfig, *, duration: int, unit: str
) -> tuple[list[TrajectoryGroup], list[Any]]:
    """Plays the evaluation's first groups; the same ones every time.

    Args:
        runners: Evaluation runners, or training runners, which then play on the engines they have.
        weights: What every runner's engine holds.
        config: The evaluation config.
        duration: How much to play.
        unit: ``"episodes"``, rounded up to whole groups, or ``"timesteps"``, turns, rounded up to whole rounds of as
            many groups as a runner plays at a time.

    Returns:
        The groups in order, less those that were given up; and the runners' metrics.

    Raises:
        NoProgressError: Not a single group could be completed.
    """
    names = _names()
    lent = not runners._remote_config.in_evaluation

    def play(runner: Any, group_ids: list[str], version: int) -> SampleReport:
        report: SampleReport = (
            runner.evaluate_groups(group_ids, config, weights_version=version)
            if lent
            else runner.sample_groups(group_ids, weights_version=version)
        )
        return report

    source = Lockstep(runners, draw=lambda count: [next(names) for _ in range(count)], weights=weights, play=play)

    def take(count: int) -> tuple[list[TrajectoryGroup], list[Any]]:
        groups, metrics = source.take(count)
        if len(groups) < count:
            logger.warning(
                "evaluation: %d of %d tasks could not be played, and the scores are of the others: %s",
                count - len(groups),
                count,
                "; ".join(source.last_errors[:3]),
            )
        return groups, metrics

    if unit == "episodes":
        return take(math.ceil(duration / config.group_size))
    groups: list[TrajectoryGroup] = []
    metrics: list[Any] = []
    while sum(len(episode) for group in groups for episode in group.episodes) < duration:
        played, measured = take(math.ceil(config.num_envs_per_env_runner / config.group_size))
        groups += played
        metrics += measured
    return groups, metrics


def _names() -> Iterator[str]:
    number = 0
    while True:
        yield evaluation_group(number)
        number += 1

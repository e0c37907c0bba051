"""Scores with their error, over tasks and not over trajectories, and what counts as a collapse."""

from __future__ import annotations

import math
import random

import pytest

from gspo_rllib.cli.best import EVALUATED, SAMPLED, Score, has_collapsed
from gspo_rllib.env_runners.rollout_stats import RolloutStats
from gspo_rllib.types import TrajectoryGroup
from tests.episodes import make_episode


def _flat(outcomes: list[list[bool]]) -> dict[str, float]:
    """What a runner reports about groups with these outcomes."""
    from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

    groups = []
    for number, members in enumerate(outcomes):
        episodes = [make_episode(str(number), index, [(3, 2)], 0.0) for index in range(len(members))]
        for episode, success in zip(episodes, members, strict=True):
            episode.infos[-1]["success"] = success
        groups.append(TrajectoryGroup(str(number), episodes))
    logger = MetricsLogger(root=True)
    RolloutStats(groups=groups).log(logger)
    return {"training_iteration": 3} | {
        f"env_runners/{name}": logger.peek(name) for name in ("success_mean", "success_group_square_mean", "num_groups")
    }


def test_the_error_is_that_of_a_mean_over_tasks() -> None:
    """Eight trajectories of one task are not eight tasks."""
    draw = random.Random(0)
    chances = [draw.random() for _ in range(20)]
    outcomes = [[draw.random() < chance for _ in range(8)] for chance in chances]
    shares = [sum(members) / 8 for members in outcomes]
    mean = sum(shares) / 20
    by_hand = math.sqrt(sum((share - mean) ** 2 for share in shares) / 19 / 20)
    score = Score.of(_flat(outcomes), SAMPLED)
    assert score is not None
    assert score.value == pytest.approx(mean)
    assert score.error == pytest.approx(by_hand)
    binomial = math.sqrt(mean * (1 - mean) / 160)
    assert score.error > 1.5 * binomial


def test_a_result_without_an_evaluation_has_no_score_and_one_group_no_error() -> None:
    assert Score.of(_flat([[True], [False]]), EVALUATED) is None
    alone = Score.of(_flat([[True, False]]), SAMPLED)
    assert alone is not None
    assert math.isnan(alone.error)
    assert str(alone) == "50%"


@pytest.mark.parametrize(
    ("now", "best", "lost"),
    [((0.39, 0.01), (0.8, 0.01), True), ((0.41, 0.01), (0.8, 0.01), False), ((0.0, 0.0), (0.1, 0.05), False)],
)
def test_a_collapse_is_half_of_the_best_and_no_luck(
    now: tuple[float, float], best: tuple[float, float], lost: bool
) -> None:
    assert has_collapsed(Score(2, *now, True), Score(1, *best, True)) is lost

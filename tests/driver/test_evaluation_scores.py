"""Accuracy, pass@k and maj@k against definitions written out, with intervals that resample tasks."""

from __future__ import annotations

import itertools
import random

import pytest

from gspo_rllib.driver.evaluation_scores import Sample, Task, estimates, pass_at_k, tasks_of
from gspo_rllib.types import TrajectoryGroup
from tests.episodes import make_episode


def _task(outcomes: list[bool], answers: list[str | None] | None = None) -> Task:
    answers = answers or [None] * len(outcomes)
    samples = [Sample("", 0.0, success, answer, 1, 1, None) for success, answer in zip(outcomes, answers, strict=True)]
    return Task(None, "?", samples)


@pytest.mark.parametrize(("samples", "right", "k"), [(5, 2, 1), (5, 2, 3), (8, 1, 4), (4, 4, 2), (3, 0, 2), (6, 3, 6)])
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_one(samples: int, right: int, k: int) -> None:
    outcomes = [True] * right + [False] * (samples - right)
    draws = list(itertools.combinations(outcomes, k))
    assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_the_majority_counts_answers_and_not_samples_that_state_none() -> None:
    def majority(answers: list[str | None], right: str) -> float:
        return estimates([_task([answer == right for answer in answers], answers)])[f"maj@{len(answers)}"].value

    assert majority(["4", "5", "4"], right="4") == 1.0
    assert majority(["4", "5", "5"], right="4") == 0.0
    assert majority(["5", "4"], right="5") == 1.0, "the first of two that are equally frequent"
    assert majority([None, None, "4"], right="4") == 1.0
    assert "maj@2" not in estimates([_task([True, False])])


def test_the_interval_covers_the_truth_and_is_that_of_tasks() -> None:
    """Ten samples of one task say little about other tasks: an interval over samples would be too narrow."""
    draw = random.Random(0)
    covered, widths = 0, []
    for trial in range(60):
        chances = [draw.random() for _ in range(40)]
        tasks = [_task([draw.random() < chance for _ in range(10)]) for chance in chances]
        estimate = estimates(tasks, seed=trial)["accuracy"]
        covered += estimate.low <= 0.5 <= estimate.high
        widths.append(estimate.high - estimate.low)
    assert covered >= 51
    over_samples = 2 * 1.96 * (0.25 / 400) ** 0.5
    assert min(widths) > 1.2 * over_samples


def test_the_same_seed_gives_the_same_interval_and_silence_about_success_gives_none() -> None:
    tasks = [_task([True]), _task([False]), _task([True])]
    assert estimates(tasks, seed=3) == estimates(tasks, seed=3)
    assert list(estimates(tasks)) == ["accuracy"]
    assert estimates([Task(None, "?", [Sample("", 1.0, None, None, 1, 1, None)])]) == {}


def test_answers_and_names_of_tasks_are_texts_whatever_an_environment_says() -> None:
    episodes = [make_episode("0", index, [(3, 2)], 1.0) for index in range(3)]
    for episode, answer in zip(episodes, (5, [1, 2], "5"), strict=True):
        episode.infos[0]["task_id"] = 7
        episode.infos[-1].update(success=True, stated_answer=answer)
    (task,) = tasks_of([TrajectoryGroup("0", episodes)])
    assert (task.task_id, [sample.answer for sample in task.samples]) == ("7", ["5", "[1, 2]", "5"])
    assert estimates([task])["maj@3"].value == 1.0

"""The lessons of a warm start: when they end, and what is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from gspo_rllib.warmstart.success import PlayReport
from gspo_rllib.warmstart.teaching import Progress, Teacher


class FakeStudent:
    """Stands in for minutes of imitation; what it was asked is in ``calls``."""

    turns_per_demonstration = 5.0
    mistake_rate = 0.0
    batch_size = 16
    is_long = False
    reach: int | None = None
    seconds_per_task: float | None = None
    estimate = 0.0

    def __init__(self) -> None:
        self.calls: list[str] = []

    def next_batch(self) -> list[Any]:
        return []

    def learn(self, batch: list[Any], lr: float) -> tuple[float, float]:
        return 0.0, self.estimate

    def look_further(self) -> None:
        assert self.reach is not None
        self.reach = 2 * self.reach if self.reach < 512 else None

    def success(self) -> float:
        return 0.0

    def play(self, tasks: range, temperature: float, *, bound: float, stop: Callable[[], bool]) -> PlayReport:
        self.calls.append("play")
        return PlayReport(len(tasks), self.success(), 0.0, 5.0, 10.0, 10)

    def save(self) -> None:
        self.calls.append("save")

    def restore_saved(self) -> None:
        self.calls.append("restore")

    def state(self) -> dict[str, Any]:
        return {}


class ForgivenStudent(FakeStudent):
    """It succeeds unless four replies in five of its expert are mistakes."""

    def success(self) -> float:
        return 0.3 if self.mistake_rate > 0.8 else 0.9


def teacher_of(student: Any, said: list[str], **changes: Any) -> Teacher:
    options = {
        "target": 0.35, "careless": False, "temperature": 1.0, "lr": 1e-3, "started": time.monotonic(),
        "seconds": 30.0, "say": said.append, "save_state": lambda state: student.calls.append("state"), **changes,
    }  # fmt: skip
    return Teacher(student, **options)


def test_where_mistakes_are_forgiven_the_expert_errs_until_success_falls() -> None:
    student, said = ForgivenStudent(), []
    teacher = teacher_of(student, said, careless=True)
    assert teacher.teach()
    assert teacher.progress.reached
    rates = [line for line in said if "are mistakes" in line]
    # One mistake in five turns would cost 0.8 * 0.35 of the episodes: 22 %; then half as many again, each time.
    assert [line.partition("now on ")[2].partition(" of")[0] for line in rates] == ["22%", "34%", "51%", "76%", "90%"]


def test_it_is_saved_and_said_before_it_is_evaluated() -> None:
    student, said = FakeStudent(), []
    student.estimate = 0.3
    teacher = teacher_of(student, said, seconds=0.2)
    assert teacher.teach()
    assert not teacher.progress.reached
    first = student.calls.index("play")
    assert student.calls[first - 2 : first] == ["save", "state"]
    line = next(index for index, text in enumerate(said) if "playing up to 128 tasks" in text)
    assert "sampled success 0%" in said[line + 1]
    assert max(map(len, said)) <= 80


def test_time_is_kept_for_the_final_evaluation() -> None:
    student = FakeStudent()
    student.seconds_per_task = 0.001  # 256 tasks: 0.26 s, and a margin
    began = time.monotonic()
    assert teacher_of(student, [], seconds=1.0).teach()
    assert 0.5 < time.monotonic() - began < 0.9


def test_the_beginnings_of_long_demonstrations_come_first() -> None:
    student, said = FakeStudent(), []
    student.reach, student.estimate = 256, 0.2
    teacher = teacher_of(student, said, seconds=0.2)
    teacher.teach()
    assert student.reach is None
    assert [line.partition("now on ")[2] for line in said if "now on" in line] == [
        "the first 512 tokens of demonstrations",
        "whole demonstrations",
    ]
    slow = FakeStudent()
    slow.reach = 512
    teacher = teacher_of(slow, [], progress=Progress(steps=1_000, reach_began=700), seconds=0.05)
    teacher.teach()
    assert slow.reach is None, "an expert that has a choice is never copied often"


def test_a_model_that_got_worse_is_not_what_is_kept() -> None:
    student = FakeStudent()
    teacher = teacher_of(student, [], seconds=0.0, progress=Progress(steps=30, best=0.2, estimates=[0.1]))
    assert teacher.teach()
    assert student.calls == ["restore", "state"]


@pytest.mark.parametrize(("stage", "student"), [("learn", FakeStudent()), ("err", ForgivenStudent())])
def test_one_whose_time_was_over_takes_further_steps_when_it_goes_on(stage: str, student: FakeStudent) -> None:
    now = Progress(stage, steps=30)
    assert teacher_of(student, [], careless=stage == "err", seconds=0.0, progress=now).teach()
    assert (now.stage, now.reached, now.steps) == (stage, False, 30)
    teacher_of(student, [], careless=stage == "err", seconds=0.05, progress=now).teach()
    assert now.steps > 30


def test_whoever_asks_to_stop_finds_all_saved() -> None:
    student = FakeStudent()
    teacher = teacher_of(student, [], interrupted=lambda: True)
    assert not teacher.teach()
    assert teacher.progress.steps == 1
    assert student.calls == ["save", "state"]


def test_an_evaluation_that_was_cut_short_is_the_first_thing_when_it_goes_on() -> None:
    student, asked = FakeStudent(), []
    student.estimate = 0.3
    student.play = lambda *args, **kwargs: asked.append("stop")  # type: ignore[method-assign]
    teacher = teacher_of(student, [], interrupted=lambda: bool(asked))
    assert not teacher.teach()
    again = FakeStudent()
    steps = teacher.progress.steps
    going_on = teacher_of(again, [], progress=teacher.progress, interrupted=lambda: "play" in again.calls)
    going_on.teach()
    assert "play" in again.calls
    assert going_on.progress.steps == steps


def test_what_an_erring_expert_made_is_kept_as_it_is_when_time_is_over() -> None:
    student = FakeStudent()
    progress = Progress(stage="err", steps=30, best=0.9, estimates=[0.1])
    assert teacher_of(student, [], careless=True, seconds=0.0, progress=progress).teach()
    assert "restore" not in student.calls

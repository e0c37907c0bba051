"""The lessons of a warm start: which steps to take, when to evaluate, and when it is enough.

Every batch is played afresh by the expert, so the probability the model gives the expert's whole trajectory, before it
learns from it, is an unbiased estimate of how often it would sample that trajectory. It costs nothing, and says when
real evaluations are worth their time and when to take smaller steps. What counts is a real evaluation: sampled play on
tasks no batch ever holds.

Long demonstrations are imitated from their beginning: the first tokens until the model copies them often enough, or for
long enough, then twice as many, up to all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gspo_rllib.warmstart.student import Student
    from gspo_rllib.warmstart.success import PlayReport

TASKS = range(128)
"""Numbers of the tasks that lessons are evaluated on."""
FINAL_TASKS = range(128, 384)
"""Numbers of the tasks that the final figure is of, used for nothing else."""

_WARMUP_STEPS = 20
_STEPS_BETWEEN_LINES = 25
_STEPS_BETWEEN_EVALUATIONS = 4
# An expert's path may not be the only good one, so a policy is also evaluated from time to time where the estimate is
# still low.
_STEPS_BETWEEN_BLIND_EVALUATIONS = 200
# A step takes longer where demonstrations are long, and there are more ways to the same end.
_STEPS_BETWEEN_BLIND_EVALUATIONS_OF_LONG = 100
_ESTIMATE_BATCHES = 8
# Beginnings are copied this often before twice as much is shown; an expert that has a choice is copied less often.
_LOOK_FURTHER_AT, _MOST_STEPS_OF_A_REACH = 0.1, 300
# As fractions of the target. At full speed a step moves the success by tens of percent; a quarter of it does not.
_SLOW_DOWN_AT, _SLOW = 0.25, 0.25
# Mistakes are learnt faster than anything: a step at a tenth of the learning rate costs ten percent of success, and the
# next one would more likely than not go too far.
_SLOWEST, _NEAR_ENOUGH = 0.1, 1.15
_EVALUATE_AT = 0.6
_MASTERED = 0.85
# Success of the erring expert, as a fraction of the target: below it, so that a student that comes to imitate this
# expert passes the target on its way.
_ERRING_SUCCESS = 0.8
# Evaluations without a new low after which the expert errs more often.
_STALLED, _MORE, _MOST_MISTAKES = 6, 1.5, 0.9
_SECONDS_BETWEEN_SAVES = 20.0
# A policy that is not good yet plays longer than the expert, and turn by turn; used until an evaluation was timed.
_PLAY_COST, _MARGIN, _MOST_FOR_FINAL = 3.0, 1.15, 0.4


@dataclass(slots=True)
class Progress:
    """Where a warm start stands, besides weights, optimiser and random numbers.

    Attributes:
        stage: ``"learn"`` the skill; then, in a careless warm start, ``"err"``; ``"done"`` once an evaluation reached
            the target, and not before.
        steps: Optimiser steps taken.
        reach_began: The step at which what is shown of a demonstration last changed.
        evaluated: The step of the last evaluation.
        success: What it found.
        slow: Whether steps are small from now on.
        estimates: Probability of the expert's trajectories in the last batches.
        best: Estimate of the model that was saved last.
        wait: Steps between evaluations while the expert errs.
        lowest: Lowest success while it errs.
        stalled: Evaluations since.
        seconds: Wall time of earlier sittings.
    """

    stage: str = "learn"
    steps: int = 0
    reach_began: int = 0
    evaluated: int = 0
    success: float = 0.0
    slow: bool = False
    estimates: list[float] = field(default_factory=list)
    best: float = -1.0
    wait: int = _STEPS_BETWEEN_EVALUATIONS
    lowest: float = 1.0
    stalled: int = 0
    seconds: float = 0.0

    @property
    def reached(self) -> bool:
        """Whether an evaluation reached the target."""
        return self.stage == "done"


class Teacher:
    """Runs the optimiser steps, saves what they made, and tells how it goes.

    Args:
        student: Learns.
        target: The success that is asked for.
        careless: Whether it is approached from above.
        temperature: Sampling temperature of evaluations.
        lr: Peak learning rate.
        started: When the sitting began, on the monotonic clock.
        seconds: How long it may take, the final evaluation included.
        say: Called with lines of text.
        save_state: Called with what it takes to go on.
        interrupted: Whether somebody asked to stop.
        progress: Where to go on from; None for the beginning.
    """

    def __init__(
        self,
        student: Student,
        *,
        target: float,
        careless: bool,
        temperature: float,
        lr: float,
        started: float,
        seconds: float,
        say: Callable[[str], object],
        save_state: Callable[[Mapping[str, Any]], object],
        interrupted: Callable[[], bool] = lambda: False,
        progress: Progress | None = None,
    ) -> None:
        self.progress = progress or Progress()
        self._student = student
        self._target = target
        self._careless = careless
        self._temperature = temperature
        self._lr = lr
        self._started = started
        self._seconds = seconds
        self._say = say
        self._save_state = save_state
        self._interrupted = interrupted
        self._saved = time.monotonic()
        self._loss = 0.0
        self._seconds_per_demonstration = 0.0

    def teach(self) -> bool:
        """Steps until the target is reached, time is over or somebody asks to stop; the best model is then saved.

        Returns:
            Whether the student is finished: False when somebody asked to stop.
        """
        now = self.progress
        while now.stage == "learn" and (now.steps == 0 or self._goes_on()):
            self._learn()
        while now.stage == "err" and self._goes_on():
            self._err()
        interrupted = self._interrupted()
        if not (interrupted or self._is_best()):
            self._student.restore_saved()
        self.save()
        return now.reached or not interrupted

    def save(self) -> None:
        """Writes the model, if it is the best so far, and what it takes to go on from here."""
        self._saved = time.monotonic()
        if self._is_best():
            self.progress.best = self._expected
            self._student.save()
        state = asdict(self.progress) | {"seconds": self.progress.seconds + self._saved - self._started}
        self._save_state({"progress": state, "student": self._student.state()})

    def play_final_tasks(self) -> PlayReport | None:
        """How good the student is on fresh tasks, as many as there is time for; None where there is none."""
        return self._student.play(FINAL_TASKS, self._temperature, stop=self._is_over)

    @property
    def resumed(self) -> str:
        """Where it goes on, as words to append; empty at the beginning."""
        return f"; goes on after step {self.progress.steps}" if self.progress.steps else ""

    @property
    def is_interrupted(self) -> bool:
        """Whether somebody asked to stop."""
        return self._interrupted()

    def _is_over(self) -> bool:
        return self._interrupted() or time.monotonic() - self._started > self._seconds

    def _learn(self) -> None:
        """Looks at what the last step made of the student, and takes the next."""
        now = self.progress
        if now.steps:
            self._judge()
            if now.stage != "learn" or not self._goes_on():
                return
        self._step(_SLOW if now.slow else 1.0)

    def _judge(self) -> None:
        """Decides whether the student knows enough, and how to go on."""
        now, bound = self.progress, _MASTERED if self._careless else self._target
        if self._student.reach is not None:
            self._look_further()
            return
        known = max(self._expected, now.success)
        now.slow = now.slow or (not self._careless and known >= _SLOW_DOWN_AT * self._target)
        near = not self._careless and known >= _EVALUATE_AT * self._target
        wait = self._between_evaluations(near=near)
        if not (self._careless and self._expected >= _MASTERED) and self._evaluate_after(wait, bound) < bound:
            return
        if self._careless:
            now.stage = "err"
            # The next evaluation is of what erring makes.
            now.evaluated = max(now.evaluated, now.steps + 1 - now.wait)
            # The rate if every mistake costs the episode; it is raised below where the environment forgives mistakes.
            self._err_at(1.0 - (_ERRING_SUCCESS * self._target) ** (1.0 / self._student.turns_per_demonstration))
        else:
            now.stage = "done"

    def _err(self) -> None:
        """The same with an expert that errs."""
        self._judge_erring()
        if self.progress.stage == "err" and self._goes_on():
            self._step(_SLOWEST)

    def _judge_erring(self) -> None:
        now, student = self.progress, self._student
        success = self._evaluate_after(now.wait, _NEAR_ENOUGH * self._target)
        if success < 0.0:
            return
        if success <= _NEAR_ENOUGH * self._target:
            now.stage = "done"
            return
        if success < _MASTERED:
            now.wait = 1
        now.stalled = 0 if success < now.lowest else now.stalled + 1
        now.lowest = min(now.lowest, success)
        if now.stalled == _STALLED:
            self._err_at(min(_MORE * student.mistake_rate, _MOST_MISTAKES))
            now.stalled = 0

    def _err_at(self, rate: float) -> None:
        self._student.mistake_rate = rate
        self._say(f"warm start: the skill is there; from now on {rate:.0%} of replies are mistakes")

    def _step(self, speed: float) -> None:
        now = self.progress
        now.steps += 1
        lr = self._lr * speed * min(1.0, now.steps / _WARMUP_STEPS)
        began = time.monotonic()
        batch = self._student.next_batch()
        self._loss, estimate = self._student.learn(batch, lr)
        self._seconds_per_demonstration = (time.monotonic() - began) / max(1, len(batch))
        now.estimates = [*now.estimates, estimate][-_ESTIMATE_BATCHES:]
        if now.steps % _STEPS_BETWEEN_LINES == 0:
            self._say(self._line())
        if time.monotonic() - self._saved > _SECONDS_BETWEEN_SAVES:
            self.save()

    def _look_further(self) -> None:
        now = self.progress
        copied = len(now.estimates) == _ESTIMATE_BATCHES and self._mean_estimate >= _LOOK_FURTHER_AT
        if copied or now.steps - now.reach_began >= _MOST_STEPS_OF_A_REACH:
            self._student.look_further()
            now.reach_began, now.evaluated, now.estimates = now.steps, now.steps, []
            reach = self._student.reach
            shown = "whole demonstrations" if reach is None else f"the first {reach} tokens of demonstrations"
            self._say(f"warm start: step {now.steps}, from now on {shown}")

    def _between_evaluations(self, *, near: bool) -> int:
        """Steps from one evaluation to the next."""
        student = self._student
        if not student.is_long:
            return _STEPS_BETWEEN_EVALUATIONS if near else _STEPS_BETWEEN_BLIND_EVALUATIONS
        # Playing takes as long as learning: near the target, as many tasks are played as demonstrations learnt from.
        return len(TASKS) // student.batch_size if near else _STEPS_BETWEEN_BLIND_EVALUATIONS_OF_LONG

    def _evaluate_after(self, steps: int, bound: float) -> float:
        """Sampled success, or -1 when the last evaluation was fewer steps ago, or this one came to nothing."""
        now = self.progress
        if now.steps - now.evaluated < steps:
            return -1.0
        # First, and as it stands: whoever goes on from here begins with this evaluation.
        self.save()
        self._say(f"{self._line()}; playing up to {len(TASKS)} tasks")
        report = self._student.play(TASKS, self._temperature, bound=bound, stop=lambda: not self._goes_on())
        if report is None or self._interrupted():
            return -1.0
        now.evaluated, now.success = now.steps, report.success
        of = "" if report.num_tasks == len(TASKS) else f" of {report.num_tasks} tasks"
        self._say(f"warm start: step {now.steps}, sampled success {report.success:.0%}{of}")
        return report.success

    def _goes_on(self) -> bool:
        """Whether there is time for more than the final evaluation, and nobody asked to stop."""
        each = self._student.seconds_per_task or _PLAY_COST * self._seconds_per_demonstration
        kept = min(_MARGIN * each * len(FINAL_TASKS), _MOST_FOR_FINAL * self._seconds)
        return not self._interrupted() and time.monotonic() - self._started < self._seconds - kept

    def _is_best(self) -> bool:
        """Whether the present weights are those to keep: while the expert errs, every step leads towards the target."""
        return self.progress.stage == "err" or self.progress.reached or self._expected >= self.progress.best

    @property
    def _mean_estimate(self) -> float:
        estimates = self.progress.estimates
        return sum(estimates) / len(estimates) if estimates else 0.0

    @property
    def _expected(self) -> float:
        """The share of the expert's whole episodes the student would copy."""
        return self._mean_estimate if self._student.reach is None else 0.0

    def _line(self) -> str:
        reach = self._student.reach
        what = "" if reach is None else f" of the first {reach} tokens"
        steps, copied = self.progress.steps, self._mean_estimate
        return f"warm start: step {steps}, loss {self._loss:.3f}, copies {copied:.0%}{what}"

"""Warm start: a small model, built from nothing, imitates an environment's expert until it succeeds often enough.

Every batch is played afresh by the expert, so the probability the model gives the expert's whole trajectory, before it
learns from it, is an unbiased estimate of how often it would sample that trajectory. It costs nothing, and says when
real evaluations are worth their time and when to take smaller steps. What counts is a real evaluation: sampled play on
tasks no batch ever holds.

A policy can be at 35 % in two ways. Halfway through learning the skill, it fails because it does not know better, which
is slow to mend by trial and error. Or it has the skill and is careless: it imitates the expert to the end, and then an
expert that errs just often enough. Reinforcement learning cures the second quickly.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.errors import SettingError, did_you_mean
from gspo_rllib.warmstart.models import ARCHITECTURES, Architecture, check_sizes

if TYPE_CHECKING:
    from gspo_rllib.warmstart.student import Student

REPORT_NAME = "warmstart.json"

_TASKS = range(128)
_FINAL_TASKS = range(128, 384)
_WARMUP_STEPS = 20
_STEPS_BETWEEN_LINES = 25
_STEPS_BETWEEN_EVALUATIONS = 4
# An expert's path may not be the only good one, so a policy is also evaluated from time to time where the estimate is
# still low.
_STEPS_BETWEEN_BLIND_EVALUATIONS = 200
_ESTIMATE_BATCHES = 8
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


@dataclass(frozen=True, kw_only=True)
class WarmstartResult:
    """What a warm start made; also written to ``warmstart.json`` in its folder.

    Attributes:
        path: The Hugging Face folder.
        env: The environment's id or class, as text.
        env_config: Keyword arguments of the environment.
        architecture: ``"qwen3"`` or ``"qwen3_moe"``.
        seed: Seed of the weights, the tasks and the samples.
        temperature: Sampling temperature at which success was measured.
        target_success: The success rate that was asked for, 0 … 1.
        careless: Whether it was approached from above, with demonstrations that hold mistakes.
        reached: Whether an evaluation reached the target in time.
        success: Sampled success on 256 tasks used for nothing else, 0 … 1.
        mean_turns: Mean number of turns of the trajectories on these tasks.
        mean_tokens: Mean length of their contexts, in tokens.
        num_parameters: Number of parameters of the model.
        steps: Optimiser steps taken.
        seconds: Wall time of the whole warm start.
    """

    path: str
    env: str
    env_config: dict[str, Any]
    architecture: str
    seed: int
    temperature: float
    target_success: float
    careless: bool
    reached: bool
    success: float
    mean_turns: float
    mean_tokens: float
    num_parameters: int
    steps: int
    seconds: float


def warmstart(
    env: str | type,
    env_config: Mapping[str, Any] | None,
    out: str | Path,
    *,
    target_success: float = 0.35,
    careless: bool = False,
    architecture: Architecture = "qwen3",
    sizes: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    lr: float = 1e-3,
    seed: int = 0,
    max_minutes: float = 15.0,
    device: str = "cpu",
    progress: Callable[[str], object] | None = print,
) -> WarmstartResult:
    """Builds a small chat model and tokenizer, and teaches it an environment until a chosen success rate.

    Args:
        env: Gymnasium id, best as ``"module:id"``, or an environment class; its ``expert()`` is imitated.
        env_config: Keyword arguments of the environment.
        out: Folder to write. It must be new, empty, or hold an earlier warm start, which is then replaced.
        target_success: Imitation stops at the first evaluation whose sampled success is at least this (no longer
            above it by more than 15 %, if ``careless``); above 0, at most 1.
        careless: Learn the skill first, to a success of about 85 %, then from demonstrations with mistakes, until
            success has fallen to the target.
        architecture: ``"qwen3"`` or ``"qwen3_moe"``.
        sizes: Keyword arguments of ``build_model``, e.g. ``{"hidden_size": 64, "num_layers": 2}``; the context
            (``max_position_embeddings``) defaults to twice the longest demonstration, 512 tokens at least.
        temperature: Sampling temperature of the evaluations.
        lr: Peak learning rate of AdamW.
        seed: Fixes the weights, the tasks and the samples.
        max_minutes: Stop by then, at whatever success was reached.
        device: Torch device.
        progress: Called with a line of text from time to time; None for no calls.

    Returns:
        What was made and how well it plays.

    Raises:
        EnvError: The environment cannot be made, is not a text environment, or has no ``expert()``.
        SettingError: An argument is illegal, or ``out`` holds something else.
    """
    started = time.monotonic()
    _check_arguments(target_success, architecture, sizes or {})
    folder = Path(out)
    _check_replaceable(folder)

    from gspo_rllib.warmstart.student import Student

    say = progress or (lambda _: None)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    student = Student(
        env, env_config or {}, partial, architecture=architecture, sizes=sizes or {}, seed=seed, device=device
    )
    say(
        f"warm start: {student.num_parameters:,} parameters, {student.tokens_per_demonstration:.0f} tokens per expert "
        f"episode, target {target_success:.0%} sampled success"
    )
    try:
        teacher = _Teacher(student, temperature, lr, started + 60.0 * max_minutes, say)
        if careless:
            reached = teacher.master() and teacher.lower_success(target_success)
        else:
            reached = teacher.raise_success(target_success)
        report = student.play(_FINAL_TASKS, temperature)
        student.save()
    finally:
        student.close()
    result = WarmstartResult(
        path=str(folder),
        env=str(env),
        env_config=dict(env_config or {}),
        architecture=architecture,
        seed=seed,
        temperature=temperature,
        target_success=target_success,
        careless=careless,
        reached=reached,
        success=report.success,
        mean_turns=report.mean_turns,
        mean_tokens=report.mean_tokens,
        num_parameters=student.num_parameters,
        steps=teacher.steps,
        seconds=round(time.monotonic() - started, 1),
    )
    _publish(partial, folder, result)
    outcome = "" if reached else ", short of the target: allow more minutes, or a larger model"
    say(
        f"warm start: {result.success:.1%} sampled success on {len(_FINAL_TASKS)} fresh tasks after {result.steps} "
        f"steps and {result.seconds:.0f} s{outcome}; saved to {folder}"
    )
    return result


class _Teacher:
    """Runs the optimiser steps, and tells how it goes."""

    def __init__(
        self, student: Student, temperature: float, lr: float, deadline: float, say: Callable[[str], object]
    ) -> None:
        self.steps = 0
        self.in_time = True
        self._student = student
        self._temperature = temperature
        self._lr = lr
        self._deadline = deadline
        self._say = say
        self._estimates: deque[float] = deque(maxlen=_ESTIMATE_BATCHES)
        self._evaluated = 0

    def raise_success(self, target: float) -> bool:
        """Steps until sampled success is at least the target; whether it was reached in time."""
        speed = 1.0
        while self.in_time:
            expected = self._step(speed)
            if expected >= _SLOW_DOWN_AT * target:
                speed = _SLOW
            near = expected >= _EVALUATE_AT * target
            wait = _STEPS_BETWEEN_EVALUATIONS if near else _STEPS_BETWEEN_BLIND_EVALUATIONS
            if self._evaluate_after(wait) >= target:
                return True
        return False

    def master(self) -> bool:
        """Steps until the student is nearly as good as the expert; whether it was reached in time."""
        while self.in_time:
            if self._step(1.0) >= _MASTERED or self._evaluate_after(_STEPS_BETWEEN_BLIND_EVALUATIONS) >= _MASTERED:
                return True
        return False

    def lower_success(self, target: float) -> bool:
        """Steps with an expert that errs until sampled success is at most the target; whether it was, in time."""
        # The rate if every mistake costs the episode; it is raised below where the environment forgives mistakes.
        self._err(1.0 - (_ERRING_SUCCESS * target) ** (1.0 / self._student.turns_per_demonstration))
        wait, lowest, stalled = _STEPS_BETWEEN_EVALUATIONS, 1.0, 0
        while self.in_time:
            self._step(_SLOWEST)
            success = self._evaluate_after(wait)
            if success < 0.0:
                continue
            if success <= _NEAR_ENOUGH * target:
                return True
            if success < _MASTERED:
                wait = 1
            stalled = 0 if success < lowest else stalled + 1
            lowest = min(lowest, success)
            if stalled == _STALLED:
                self._err(min(_MORE * self._student.mistake_rate, _MOST_MISTAKES))
                stalled = 0
        return False

    def _err(self, rate: float) -> None:
        self._student.mistake_rate = rate
        self._say(f"warm start: the skill is there; from now on {rate:.0%} of the expert's replies are mistakes")

    def _step(self, speed: float) -> float:
        """One optimiser step; returns the share of the expert's episodes the student would copy."""
        self.steps += 1
        lr = self._lr * speed * min(1.0, self.steps / _WARMUP_STEPS)
        self._loss, estimate = self._student.learn(self._student.next_batch(), lr)
        self._estimates.append(estimate)
        self._expected = sum(self._estimates) / len(self._estimates)
        if self.steps % _STEPS_BETWEEN_LINES == 0:
            self._say(self._line())
        self.in_time = time.monotonic() < self._deadline
        return self._expected

    def _evaluate_after(self, steps: int) -> float:
        """Sampled success, or -1 when the last evaluation was fewer steps ago."""
        if self.steps - self._evaluated < steps:
            return -1.0
        self._evaluated = self.steps
        success = self._student.play(_TASKS, self._temperature).success
        self._say(f"{self._line()}, sampled success {success:.0%}")
        return success

    def _line(self) -> str:
        copies = f"copies {self._expected:.0%} of the expert's episodes"
        return f"warm start: step {self.steps}, loss {self._loss:.3f}, {copies}"


def _check_arguments(target_success: float, architecture: str, sizes: Mapping[str, Any]) -> None:
    if not 0.0 < target_success <= 1.0:
        raise SettingError(f"target_success={target_success}: must be above 0 and at most 1.")
    if architecture not in ARCHITECTURES:
        raise SettingError(f"architecture={architecture!r}: {did_you_mean(str(architecture), ARCHITECTURES)}")
    check_sizes(sizes)


def _check_replaceable(folder: Path) -> None:
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not (folder / REPORT_NAME).is_file():
        raise SettingError(
            f"out={str(folder)!r} exists and is not an earlier warm start (it has no {REPORT_NAME}), so it is not "
            "replaced. Choose a new folder, or remove it."
        )


def _publish(partial: Path, folder: Path, result: WarmstartResult) -> None:
    """Moves the finished folder into place, so that an interrupted warm start never looks like a finished one."""
    (partial / REPORT_NAME).write_text(json.dumps(asdict(result), indent=2, default=str) + "\n")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)

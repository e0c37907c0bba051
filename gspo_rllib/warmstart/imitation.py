"""Warm start: a small model, built from nothing, imitates an environment's expert until it succeeds often enough.

Every batch is played afresh by the expert, so the probability the model gives the expert's whole trajectory, before it
learns from it, is an unbiased estimate of how often it would sample that trajectory. It costs nothing, and says when
real evaluations are worth their time and when to take smaller steps. What counts is a real evaluation: sampled play on
tasks no batch ever holds.
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
# An expert's path may not be the only good one, so a policy is also evaluated now and then without the estimate's word.
_STEPS_BETWEEN_BLIND_EVALUATIONS = 200
_ESTIMATE_BATCHES = 8
# As fractions of the target. At full speed a step moves the success by tens of percent; a quarter of it does not.
_SLOW_DOWN_AT, _SLOW = 0.25, 0.25
_EVALUATE_AT = 0.6


@dataclass(frozen=True, kw_only=True)
class WarmstartResult:
    """What a warm start made; also written to ``warmstart.json`` in its folder.

    Attributes:
        path: The Hugging Face folder.
        env: As passed.
        env_config: As passed.
        architecture: As passed.
        seed: As passed.
        temperature: At which success was measured.
        target_success: As passed.
        mistake_rate: As passed.
        reached: Whether an evaluation reached the target in time.
        success: Sampled success on 256 tasks used for nothing else.
        mean_turns: Of those trajectories.
        mean_tokens: Mean length of their contexts, in tokens.
        num_parameters: Of the model.
        steps: Optimiser steps.
        seconds: Wall time of everything.
    """

    path: str
    env: str
    env_config: dict[str, Any]
    architecture: str
    seed: int
    temperature: float
    target_success: float
    mistake_rate: float
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
    architecture: Architecture = "qwen3",
    sizes: Mapping[str, Any] | None = None,
    temperature: float = 1.0,
    mistake_rate: float = 0.0,
    lr: float = 2e-3,
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
        target_success: Imitation stops at the first evaluation whose sampled success is at least this; above 0, at
            most 1.
        architecture: ``"qwen3"`` or ``"qwen3_moe"``.
        sizes: Keyword arguments of ``build_model``, e.g. ``{"hidden_size": 64, "num_layers": 2}``; the context
            (``max_position_embeddings``) defaults to twice the longest demonstration, 512 tokens at least.
        temperature: Of the sampled evaluation.
        mistake_rate: Probability that a demonstrated reply is one that was right elsewhere, 0 to below 1. With an
            imperfect demonstrator the policy ends up skilled but careless, which is where reinforcement learning
            helps quickly; with a perfect one it stops halfway through learning the skill itself.
        lr: Peak learning rate of AdamW.
        seed: Fixes the weights, the tasks and the samples.
        max_minutes: Stop by then, at whatever success was reached.
        device: Torch device.
        progress: Is told one line now and then; None for silence.

    Returns:
        What was made and how well it plays.

    Raises:
        EnvError: The environment cannot be made, is not a text environment, or has no ``expert()``.
        SettingError: An argument is illegal, or ``out`` holds something else.
    """
    started = time.monotonic()
    _check_arguments(target_success, mistake_rate, architecture, sizes or {})
    folder = Path(out)
    _check_replaceable(folder)

    from gspo_rllib.warmstart.student import Student

    say = progress or (lambda _: None)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    student = Student(
        env,
        env_config or {},
        partial,
        architecture=architecture,
        sizes=sizes or {},
        mistake_rate=mistake_rate,
        seed=seed,
        device=device,
    )
    say(
        f"warm start: {student.num_parameters:,} parameters, {student.tokens_per_demonstration:.0f} tokens per expert "
        f"episode, target {target_success:.0%} sampled success"
    )
    try:
        deadline = started + 60.0 * max_minutes
        steps, reached = _imitate(student, target_success, temperature, lr, deadline, say)
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
        mistake_rate=mistake_rate,
        reached=reached,
        success=report.success,
        mean_turns=report.mean_turns,
        mean_tokens=report.mean_tokens,
        num_parameters=student.num_parameters,
        steps=steps,
        seconds=round(time.monotonic() - started, 1),
    )
    _publish(partial, folder, result)
    outcome = "" if reached else ", short of the target: allow more minutes, or a larger model"
    say(
        f"warm start: {result.success:.1%} sampled success on {len(_FINAL_TASKS)} fresh tasks after {steps} steps and "
        f"{result.seconds:.0f} s{outcome}; saved to {folder}"
    )
    return result


def _imitate(
    student: Student, target: float, temperature: float, lr: float, deadline: float, say: Callable[[str], object]
) -> tuple[int, bool]:
    """Learns until the target or the deadline; returns the steps taken and whether the target was reached."""
    estimates: deque[float] = deque(maxlen=_ESTIMATE_BATCHES)
    slow = False
    evaluated = 0
    for step, batch in enumerate(student.batches(), start=1):
        rate = lr * min(1.0, step / _WARMUP_STEPS) * (_SLOW if slow else 1.0)
        loss, estimate = student.learn(batch, rate)
        estimates.append(estimate)
        expected = sum(estimates) / len(estimates)
        slow = slow or expected >= _SLOW_DOWN_AT * target
        line = f"warm start: step {step}, loss {loss:.3f}, copies {expected:.0%} of the expert's episodes"
        near = expected >= _EVALUATE_AT * target
        if step - evaluated >= (_STEPS_BETWEEN_EVALUATIONS if near else _STEPS_BETWEEN_BLIND_EVALUATIONS):
            evaluated = step
            success = student.play(_TASKS, temperature).success
            say(f"{line}, sampled success {success:.0%}")
            if success >= target:
                return step, True
        elif step % _STEPS_BETWEEN_LINES == 0:
            say(line)
        if time.monotonic() > deadline:
            return step, False
    raise AssertionError("batches never end")


def _check_arguments(target_success: float, mistake_rate: float, architecture: str, sizes: Mapping[str, Any]) -> None:
    if not 0.0 <= mistake_rate < 1.0:
        raise SettingError(f"mistake_rate={mistake_rate}: must be at least 0 and below 1.")
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

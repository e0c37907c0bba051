"""Warm start: a small model, built from nothing, imitates an environment's expert until it succeeds often enough.

A policy can be at 35 % in two ways. Halfway through learning the skill, it fails because it does not know better, which
is slow to mend by trial and error. Or it has the skill and is careless: it imitates the expert to the end, and then an
expert that errs just often enough. Reinforcement learning cures the second quickly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.claims import held
from gspo_rllib.errors import SettingError, did_you_mean, shown
from gspo_rllib.knobs import check, knob
from gspo_rllib.learners.settings import HIGHEST_LR
from gspo_rllib.places import check_folder
from gspo_rllib.value_forms import torch_device
from gspo_rllib.warmstart.models import ARCHITECTURES, Architecture, check_sizes

if TYPE_CHECKING:
    from gspo_rllib.warmstart.student import Student
    from gspo_rllib.warmstart.success import PlayReport
    from gspo_rllib.warmstart.teaching import Teacher


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
        num_tasks: Tasks, used for nothing else, that the next three are of: 256, or as many as there was time for.
        success: Sampled success on these tasks, 0 … 1; None where there was no time to play any.
        mean_turns: Mean number of turns of the trajectories on these tasks.
        mean_tokens: Mean length of their contexts, in tokens.
        num_parameters: Number of parameters of the model.
        steps: Optimiser steps taken.
        seconds: Wall time of the whole warm start, earlier sittings included.
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
    num_tasks: int
    success: float | None
    mean_turns: float | None
    mean_tokens: float | None
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
    interrupted: Callable[[], bool] = lambda: False,
) -> WarmstartResult:
    """Builds a small chat model and tokenizer, and teaches it an environment until a chosen success rate.

    Until it is finished, the best model so far stands in a folder beside ``out``, with ``.partial`` behind its name. A
    warm start that was interrupted there is gone on with by the same call: its next step is the one that would have
    followed.

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
        max_minutes: Stop by then, the evaluations included, at whatever success was reached.
        device: Torch device.
        progress: Called with a line of text from time to time; None for no calls.
        interrupted: Asked all the time; once it is true, everything is saved and ``KeyboardInterrupt`` is raised.

    Returns:
        What was made and how well it plays.

    Raises:
        EnvError: The environment cannot be made, is not a text environment, or has no ``expert()``.
        SettingError: An argument is illegal, ``out`` holds something else, an interrupted warm start had others, or
            another process is making this one.
        KeyboardInterrupt: Somebody asked to stop; the same call goes on.
    """
    started = time.monotonic()
    given = dict(temperature=temperature, lr=lr, seed=seed, max_minutes=max_minutes, device=device)
    _check_arguments(given | {"target_success": target_success}, architecture, sizes or {})
    _check_place(Path(out))

    from gspo_rllib.warmstart.student import Student
    from gspo_rllib.warmstart.teaching import FINAL_TASKS, Progress, Teacher
    from gspo_rllib.warmstart.unfinished import Unfinished

    say = progress or (lambda _: None)
    common = _common(env, env_config, architecture=architecture, seed=seed, careless=careless)
    with _made_by_nobody_else(Path(out)):
        unfinished = Unfinished(Path(out), {**common, "sizes": dict(sizes or {}), "lr": lr})
        state = unfinished.state or {}
        student = Student(
            env,
            env_config or {},
            unfinished.folder,
            architecture=architecture,
            sizes=sizes or {},
            seed=seed,
            held_out=range(FINAL_TASKS.stop),
            device=device,
            state=state.get("student"),
        )
        try:
            teacher = Teacher(
                student,
                target=target_success,
                careless=careless,
                temperature=temperature,
                lr=lr,
                started=started,
                seconds=60.0 * max_minutes,
                say=say,
                save_state=unfinished.save_state,
                interrupted=interrupted,
                progress=Progress(**state.get("progress", {})),
            )
            say(_beginning(student, teacher, target_success))
            report = _taught(teacher, unfinished.folder, say)
        finally:
            student.close()
        result = WarmstartResult(
            path=str(Path(out)),
            **common,
            temperature=temperature,
            target_success=target_success,
            reached=teacher.progress.reached,
            num_tasks=report.num_tasks if report else 0,
            success=report.success if report else None,
            mean_turns=report.mean_turns if report else None,
            mean_tokens=report.mean_tokens if report else None,
            num_parameters=student.num_parameters,
            steps=teacher.progress.steps,
            seconds=round(teacher.progress.seconds + time.monotonic() - started, 1),
        )
        unfinished.publish(asdict(result), reached=result.reached)
        say(_outcome(result))
        return result


def _made_by_nobody_else(out: Path) -> AbstractContextManager[None]:
    out.parent.mkdir(parents=True, exist_ok=True)
    claim = out.with_name(f".{out.name}.making")
    return held(claim, f"{out} is being made", otherwise=", or choose another `out`")


def _common(env: str | type, env_config: Mapping[str, Any] | None, **others: Any) -> dict[str, Any]:
    """What the report says and a warm start that goes on must have in common."""
    return {"env": str(env), "env_config": dict(env_config or {}), **others}


def _taught(teacher: Teacher, folder: Path, say: Callable[[str], object]) -> PlayReport | None:
    """Teaches until it is enough, and says how good that is; None where no time was left to see."""
    if teacher.teach():
        say(f"warm start: saved after step {teacher.progress.steps}; playing fresh tasks")
    report = teacher.play_final_tasks()
    if teacher.is_interrupted:
        say(
            f"warm start: interrupted after step {teacher.progress.steps}; the model so far is in {folder}, and the "
            "same command goes on"
        )
        raise KeyboardInterrupt
    return report


def _beginning(student: Student, teacher: Teacher, target: float) -> str:
    return (
        f"warm start: {student.num_parameters:,} parameters, {student.tokens_per_demonstration:.0f} tokens per "
        f"episode, target {target:.0%} success{teacher.resumed}"
    )


def _outcome(result: WarmstartResult) -> str:
    how_good = "no time was left to measure success"
    if result.success is not None:
        how_good = f"{result.success:.1%} sampled success on {result.num_tasks} fresh tasks"
    short = "" if result.reached else ", short of the target: the same command goes on; or try a larger model"
    after = f"after {result.steps} steps and {result.seconds:.0f} s"
    return f"warm start: {how_good} {after}{short}\nwarm start: saved to {result.path}"


def _check_place(out: Path) -> None:
    """Refuses a folder that cannot be written, before anything is taught."""
    if not out.name:
        raise SettingError(f"out={str(out)!r}: it must be the name of a folder to write.")
    check_folder(out.with_name(out.name + ".partial"), "out")


_ARGUMENTS: dict[str, tuple[type, Any]] = {
    "temperature": (float, knob(1.0, "", low=0.0, high=100.0, source="")),
    "lr": (float, knob(1e-3, "", low=0.0, high=HIGHEST_LR, low_open=True, source="")),
    "seed": (int, knob(0, "", low=0, high=2**32 - 1, source="")),
    "max_minutes": (float, knob(15.0, "", low=0.0, high=1e6, source="")),
    "device": (str, knob("cpu", "", form=torch_device, source="")),
}
"""Type and range of the arguments that are not checked elsewhere."""


def _check_arguments(arguments: Mapping[str, Any], architecture: str, sizes: Mapping[str, Any]) -> None:
    target = arguments["target_success"]
    if isinstance(target, bool) or not isinstance(target, int | float) or not 0.0 < target <= 1.0:
        raise SettingError(f"target_success={shown(target)}: must be above 0 and at most 1.")
    for name, (hint, field) in _ARGUMENTS.items():
        check(name, arguments[name], hint, field.metadata)
    if architecture not in ARCHITECTURES:
        raise SettingError(f"architecture={architecture!r}: {did_you_mean(str(architecture), ARCHITECTURES)}")
    check_sizes(sizes)

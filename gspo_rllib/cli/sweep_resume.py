"""Sweeps that were cut short: which trials are left, and how they go on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from gspo_rllib.algorithms.policy_gradient.task_record import changed_tasks, task_sets
from gspo_rllib.cli.sweep_points import Point, moved
from gspo_rllib.cli.sweep_trials import Points
from gspo_rllib.errors import SettingError

if TYPE_CHECKING:
    from gspo_rllib.configs import Run

_PLAYED = {"env", "env_config", "evaluation_config", "curriculum", "recorded_groups", "play", "tasks"}
"""Attributes that say what is played."""


def unfinished(folder: str, results: tune.ResultGrid, points: Sequence[Point]) -> list[tuple[Point, Path | None]]:
    """The trials that are not at their end, those included that were never started, and each one's latest checkpoint.

    A trial that a scheduler has moved has the settings of now, which its checkpoint was trained with or is to be.

    Args:
        folder: The sweep's folder.
        results: What Tune returned.
        points: The trials.
    """
    trials = tune.ExperimentAnalysis(folder, trials=None).trials or []
    ended = {str(trial) for trial in trials if trial.status in ("TERMINATED", "ERROR")}
    saved = {Path(result.path).name: Path(result.checkpoint.path) for result in results if result.checkpoint}
    now = {Path(result.path).name: result.config or {} for result in results}
    return [
        (moved(point, now.get(point.folder, {}), points), saved.get(point.folder))
        for point in points
        if point.label not in ended
    ]


def going_on_in(folder: Path, run: Run, space: dict[str, Any]) -> tune.Tuner:
    """Tune on a sweep that was cut short: trials that ended stay as they are, the others go on or begin.

    Args:
        folder: The sweep's folder; as all that Tune writes, it holds pickles.
        run: What all trials share.
        space: The same as Tune takes it: for trials that are made now, since Tune keeps no objects of before.

    Raises:
        SettingError: It was cut short before Tune had written anything down.
    """
    name = run.config.algo_class.__name__
    if not list(folder.glob("experiment_state-*.json")):
        raise SettingError(f"--resume: {folder} was cut short before any trial began. Start the sweep anew.")
    Points.goes_on = True
    return tune.Tuner.restore(str(folder), name, resume_unfinished=True, resume_errored=True, param_space=space)


def check_tasks(folder: Path, run: Run, points: Sequence[Point]) -> None:
    """Refuses to continue a sweep with other tasks: its trials could not be compared.

    Args:
        folder: The sweep's folder.
        run: What all trials share.
        points: The trials; where they differ in what is played, nothing is compared.

    Raises:
        SettingError: A file of tasks was changed since a checkpoint.
    """
    if _PLAYED & set(points[0].values):
        return
    tasks = task_sets(run.config)
    for trial in sorted({saved.parent for saved in folder.glob("*/checkpoint_*")}):
        for checkpoint in sorted(trial.glob("checkpoint_*"), reverse=True):
            try:
                news = changed_tasks(checkpoint, tasks)
            except (ValueError, TypeError):  # half a copy: Tune had no room for more
                continue
            if news:
                raise SettingError(
                    f"--resume: {trial} has other tasks now than it was trained on ({news}). Put the file back as it "
                    "was, or start the sweep anew."
                )
            break


def going_on(point: Point, config: str, checkpoint: str | None) -> str:
    """The command that goes on with a trial by itself, or begins it where there is no checkpoint.

    Example:
        >>> going_on(Point("lr=1e-05", {}, ["training.lr=1e-5", "run.iterations=9"]), "my.yaml", "results/a b/c")
        "gspo-rllib train my.yaml training.lr=1e-5 run.iterations=9 --resume 'results/a b/c'"
    """
    resume = [] if checkpoint is None else ["--resume", checkpoint]
    return shlex.join(["gspo-rllib", "train", config, *point.overrides, *resume])

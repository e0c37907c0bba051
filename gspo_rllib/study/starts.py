"""The models that a study's trials begin with: one per task, start and seed, made by imitation and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from gspo_rllib.errors import SettingError
from gspo_rllib.study.design import Trial, slug
from gspo_rllib.warmstart.unfinished import STATE_NAME

MOST_TIMES = 4
"""How often a warm start is given its ``max_minutes`` before it is given up; a busy machine takes longer."""


def start_folder(folder: Path, trial: Trial) -> Path | None:
    """Where a trial's start model is; None where it begins with its config's own.

    Args:
        folder: The study's.
        trial: Any of its trials.
    """
    if trial.start is None:
        return None
    config = trial.run(None).config
    what = json.dumps([str(config.env), config.env_config, dict(trial.start.options)], sort_keys=True, default=str)
    digest = hashlib.sha256(what.encode()).hexdigest()[:8]
    return (
        folder / "starts" / f"{slug(str(config.env).rsplit('/', 1)[-1])}-{slug(trial.start.name)}-{digest}-{trial.seed}"
    )


def make_start(folder: Path, trial: Trial, say: Callable[[str], object]) -> Path | None:
    """Makes a trial's start model, unless it is there. One short of its target is gone on with, since trials from it
    would not be like the others.

    Args:
        folder: The study's.
        trial: Whose.
        say: Called with a line of text from time to time.

    Returns:
        The folder of that model; None where the trial begins with its config's own model.

    Raises:
        SettingError: An option is not one of a warm start, or the time was over before it had reached its success.
    """
    path = start_folder(folder, trial)
    if path is None or ((path / "config.json").exists() and not (path / STATE_NAME).exists()):
        return path
    from gspo_rllib.warmstart import warmstart

    assert trial.start is not None
    config, name = trial.run(None).config, trial.start.name
    say(f"start model {name!r}, seed {trial.seed}: {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(MOST_TIMES):
        try:
            result = warmstart(
                config.env, config.env_config, path, seed=trial.seed, progress=None, **trial.start.options
            )
        except TypeError as error:
            raise SettingError(f"study: starts.{name}: {error}.") from error
        say(f"  success {result.success}, {result.num_parameters:,} parameters, {result.seconds:.0f} s")
        if result.reached:
            return path
        say(f"  its time was over before its target of {result.target_success:.2f}: going on")
    raise SettingError(
        f"study: starts.{name}, seed {trial.seed}: the warm start had its time {MOST_TIMES} times and is short of its "
        f"target of {result.target_success:.2f} (its success: {result.success or 'not tried yet'}). Raise max_minutes "
        "there, on a busy machine, or choose other sizes; the same command goes on."
    )

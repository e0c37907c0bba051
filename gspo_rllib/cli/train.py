"""``gspo-rllib train``: trains what a YAML file describes, showing one line per iteration."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli.interrupts import StopRequest
from gspo_rllib.cli.recorder import RunRecorder, new_run_folder
from gspo_rllib.cli.training_loop import TrainingLoop
from gspo_rllib.errors import SettingError

if TYPE_CHECKING:
    from gspo_rllib.algorithms import PolicyGradient
    from gspo_rllib.configs import Run, RunSettings

_RUN_OPTIONS = {
    "algorithm": ("NAME", "GSPO (default), GRPO, …; see `gspo-rllib list`"),
    "name": ("TEXT", "name of the run; results go to STORAGE/NAME-TIME"),
    "storage": ("DIR", "folder that results are written under"),
    "iterations": ("N", "stop after this many iterations"),
    "minutes": ("N", "stop after this much wall time"),
    "success": ("SHARE", "stop when this share of the trajectories succeeded, e.g. 0.9"),
    "evaluate_every": ("N", "iterations between evaluations on a fixed set of tasks; default: none"),
    "evaluate_tasks": ("N", "tasks of that set; default 128"),
    "checkpoint_every": ("N", "iterations between checkpoints"),
}


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("train", help="train what a YAML file describes", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--resume", metavar="CHECKPOINT", help="continue from this checkpoint")
    parser.set_defaults(run=run)


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the config, its overrides and one option per ``run:`` setting."""
    parser.add_argument("config", metavar="CONFIG", help="YAML file, or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help="e.g. training.lr=2e-5")
    for key, (metavar, text) in _RUN_OPTIONS.items():
        parser.add_argument(f"--{key.replace('_', '-')}", metavar=metavar, help=text)
    parser.add_argument("--verbose", action="store_true", help="show what env runners and learners print")


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """The overrides, with the options that are short for ``run.key=value``."""
    options = [f"run.{key}={getattr(arguments, key)}" for key in _RUN_OPTIONS if getattr(arguments, key) is not None]
    return [*arguments.overrides, *options]


def check_limits(limits: RunSettings, what: str) -> None:
    """Refuses what would never end.

    Raises:
        SettingError: The ``run:`` section has no limit.
    """
    if limits.iterations is None and limits.minutes is None and limits.success is None:
        raise SettingError(f"run: nothing would end {what}; set run.iterations, run.minutes or run.success.")


def run(arguments: argparse.Namespace) -> int:
    """Trains until a limit of the ``run:`` section, Ctrl-C or SIGTERM; always leaves a checkpoint."""
    from gspo_rllib import checkpoints
    from gspo_rllib.cli.cluster import ray_session, required_cpus
    from gspo_rllib.cli.quiet import hush
    from gspo_rllib.configs import load_run

    loaded = load_run(arguments.config, overrides_of(arguments))
    check_limits(loaded.settings, "this run")
    hush(loaded.config, verbose=arguments.verbose)
    loaded.config.validate()
    resume = checkpoints.verify(arguments.resume) if arguments.resume else None
    print("starting Ray, learners, env runners and their engines …", flush=True)
    with ray_session(required_cpus(loaded.config), verbose=arguments.verbose):
        algorithm = loaded.config.build_algo()
        try:
            if resume is not None:
                algorithm.restore_from_path(str(resume))
        except BaseException:
            algorithm.stop()
            raise
        return _train(algorithm, loaded)


def _train(algorithm: PolicyGradient, loaded: Run) -> int:
    folder = new_run_folder(loaded.settings.storage, loaded.name)
    recorder = RunRecorder(folder, loaded.sections)
    print(f"results: {_short(folder)}", flush=True)
    with StopRequest() as request:
        loop = TrainingLoop(loaded, algorithm, recorder, interrupted=lambda: request.signal is not None)
        try:
            checkpoint, reason = loop.run()
        finally:
            recorder.close()
            loop.close()
            _draw(recorder, loaded.name)
    print(f"stopped: {reason}\ncheckpoint: {_short(checkpoint)}")
    if loop.best is not None:
        print(f"best: {loop.best} evaluated at iteration {loop.best.iteration}, {_short(loop.best_checkpoint)}")
    print(f"curve: {_short(folder / 'learning_curve.png')}")
    return request.exit_code


def _draw(recorder: RunRecorder, name: str) -> None:
    if not recorder.history:
        return
    from gspo_rllib.cli.curve import write_curve

    try:
        write_curve(recorder.history, recorder.folder / "learning_curve.png", title=name)
    except ModuleNotFoundError as error:
        print(f"no learning curve: {error}; pip install 'gspo-rllib[plot]'", file=sys.stderr)


def _short(path: Path) -> str:
    """The path as seen from here, where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)

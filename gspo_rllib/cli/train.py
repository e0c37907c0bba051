"""``gspo-rllib train``: trains what a YAML file describes, showing one line per iteration."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli import progress
from gspo_rllib.cli.interrupts import StopRequest
from gspo_rllib.cli.recorder import Result, RunRecorder, flatten, new_run_folder
from gspo_rllib.errors import SettingError

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

    from gspo_rllib.configs import Run, RunSettings

HEADER_EVERY = 25

_RUN_OPTIONS = {
    "algorithm": ("NAME", "GSPO (default), GRPO, …; see `gspo-rllib list`"),
    "name": ("TEXT", "name of the run; results go to STORAGE/NAME-TIME"),
    "storage": ("DIR", "folder that results are written under"),
    "iterations": ("N", "stop after this many iterations"),
    "minutes": ("N", "stop after this much wall time"),
    "success": ("SHARE", "stop when this share of an iteration's trajectories succeeded, e.g. 0.9"),
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


def run(arguments: argparse.Namespace) -> int:
    """Trains until a limit of the ``run:`` section, Ctrl-C or SIGTERM; always leaves a checkpoint."""
    from gspo_rllib import checkpoints
    from gspo_rllib.cli.cluster import ray_session, required_cpus
    from gspo_rllib.cli.quiet import hush
    from gspo_rllib.configs import load_run

    loaded = load_run(arguments.config, overrides_of(arguments))
    limits = loaded.settings
    if limits.iterations is None and limits.minutes is None and limits.success is None:
        raise SettingError("run: nothing would end this run; set run.iterations, run.minutes or run.success.")
    hush(loaded.config, verbose=arguments.verbose)
    loaded.config.validate()
    resume = checkpoints.verify(arguments.resume) if arguments.resume else None
    print("starting Ray, learners, env runners and their engines …", flush=True)
    with ray_session(required_cpus(loaded.config), verbose=arguments.verbose):
        algorithm = loaded.config.build_algo()
        try:
            if resume is not None:
                algorithm.restore_from_path(str(resume))
            return _train(algorithm, loaded)
        finally:
            algorithm.stop()
            # RLlib makes a folder of its own for results, which this command writes elsewhere.
            with contextlib.suppress(OSError):
                os.rmdir(algorithm.logdir)


def _train(algorithm: Algorithm, loaded: Run) -> int:
    folder = new_run_folder(loaded.settings.storage, loaded.name)
    recorder = RunRecorder(folder, loaded.sections)
    print(f"results: {_short(folder)}", flush=True)
    try:
        with StopRequest() as request:
            checkpoint, reason = _loop(algorithm, recorder, loaded.settings, request)
    finally:
        recorder.close()
        _draw(recorder, loaded.name)
    print(f"stopped: {reason}\ncheckpoint: {_short(checkpoint)}\ncurve: {_short(folder / 'learning_curve.png')}")
    return request.exit_code


def _loop(algorithm: Algorithm, recorder: RunRecorder, limits: RunSettings, request: StopRequest) -> tuple[Path, str]:
    seconds = 0.0
    shown = 0
    while True:
        result = algorithm.train()
        recorder.record(result)
        if shown % HEADER_EVERY == 0:
            print(progress.header())
        shown += 1
        print(progress.line(result), flush=True)
        seconds += result["time_this_iter_s"]
        reason = stop_reason(result, limits, minutes=seconds / 60)
        if request.signal is not None:
            reason = "interrupted"
        iteration = result["training_iteration"]
        if reason or (limits.checkpoint_every and iteration % limits.checkpoint_every == 0):
            checkpoint = save_checkpoint(algorithm, recorder.folder / "checkpoints", iteration)
        if reason:
            return checkpoint, reason


def stop_reason(result: Result, limits: RunSettings, *, minutes: float) -> str | None:
    """Which limit a result has reached, in words; None to go on.

    Args:
        result: What ``Algorithm.train`` returned.
        limits: The ``run:`` section.
        minutes: Wall time spent training in this process.
    """
    flat = flatten(result)
    success = flat.get("env_runners/success_mean")
    if limits.success is not None and success is not None and success >= limits.success:
        return f"success {success:.1%} reached {limits.success:.1%}"
    if limits.iterations is not None and flat["training_iteration"] >= limits.iterations:
        return f"{limits.iterations} iterations done"
    if limits.minutes is not None and minutes >= limits.minutes:
        return f"{limits.minutes:g} minutes are over"
    return None


def save_checkpoint(algorithm: Algorithm, folder: Path, iteration: int) -> Path:
    """Writes a checkpoint that appears under its final name only when it is whole.

    Args:
        algorithm: The algorithm to save.
        folder: Holds the run's checkpoints; made if missing.
        iteration: Number of the last finished iteration; names the checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"iteration_{iteration:06d}"
    partial = folder / f".writing_{iteration:06d}"
    algorithm.save_to_path(str(partial))
    partial.rename(final)
    return final


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

"""``gspo-rllib train``: trains what a YAML file describes, showing one line per iteration."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib import checkpoints
from gspo_rllib.checkpoints.pickled import check_trusted
from gspo_rllib.cli.cluster_address import add_address, address_of
from gspo_rllib.cli.interrupts import StopRequest
from gspo_rllib.cli.policy_source import add_trust_pickle
from gspo_rllib.cli.provenance import run_record
from gspo_rllib.cli.recorder import RunRecorder, new_run_folder, write_run_record
from gspo_rllib.cli.resume import Resume, find_resume, is_run, name_of
from gspo_rllib.cli.run_claim import claimed
from gspo_rllib.cli.seed_model import load_with_model
from gspo_rllib.cli.terminal import tell
from gspo_rllib.cli.training_loop import TrainingLoop
from gspo_rllib.errors import SettingError
from gspo_rllib.places import check_folder, named_path
from gspo_rllib.remote_checkpoints import check_storage, download, is_remote

if TYPE_CHECKING:
    from gspo_rllib.algorithms import PolicyGradient
    from gspo_rllib.cli.trackers import Tracker
    from gspo_rllib.configs import Run, RunSettings

RUN_OPTIONS = {
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
"""Options that are short for ``run.NAME=value``: what stands for the value, and what it does."""


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("train", help="train what a YAML file describes", description=__doc__)
    add_config_arguments(parser, config="?")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="continue this run in its folder, CONFIG left out; or continue from a CHECKPOINT in a new folder",
    )
    add_trust_pickle(parser)
    add_address(parser)
    parser.add_argument(
        "--min-nodes",
        type=int,
        default=1,
        metavar="N",
        help="wait, for 10 minutes at most, until the cluster has so many nodes; default 1",
    )
    add_quiet(parser)
    parser.set_defaults(run=run, usage_error=parser.error)


def add_config_arguments(parser: argparse.ArgumentParser, *, config: str | None = None) -> None:
    """Adds the config, its overrides and one option per ``run:`` setting.

    Args:
        parser: The sub-command's parser.
        config: ``nargs`` of the config; None for one that is needed.
    """
    parser.add_argument("config", nargs=config, metavar="CONFIG", help="YAML file, or the name of a shipped config")
    parser.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help="e.g. training.lr=2e-5")
    for key, (metavar, text) in RUN_OPTIONS.items():
        parser.add_argument(f"--{key.replace('_', '-')}", metavar=metavar, help=text)
    parser.add_argument("--verbose", action="store_true", help="show what env runners and learners print")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Adds the option that leaves only the end of the output."""
    parser.add_argument("--quiet", action="store_true", help="print only how it ended, and where the results are")


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """The overrides, with the options that are short for ``run.key=value``."""
    options = [f"run.{key}={getattr(arguments, key)}" for key in RUN_OPTIONS if getattr(arguments, key) is not None]
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
    with contextlib.ExitStack() as held:
        return _run(arguments, held)


def _run(arguments: argparse.Namespace, held: contextlib.ExitStack) -> int:
    from gspo_rllib.cli.cluster import ray_session, required_cpus
    from gspo_rllib.cli.preflight import preflight, wait_for_nodes
    from gspo_rllib.cli.quiet import each_warning_once, hush

    if arguments.min_nodes < 1:
        raise SettingError(f"--min-nodes: expected a whole number >= 1, got {arguments.min_nodes}.")
    address = address_of(arguments)  # first: it takes no import of a framework to be refused
    if arguments.resume and not is_remote(arguments.resume) and is_run(arguments.resume):
        folder = named_path(arguments.resume).resolve()
        otherwise = f", or go on in a new folder: gspo-rllib train {short(folder / 'config.yaml')} --resume CHECKPOINT"
        held.enter_context(claimed(folder, otherwise=otherwise))
    loaded, resume = _what_to_train(arguments)
    hush(loaded.config, verbose=arguments.verbose)
    starting = held.enter_context(contextlib.ExitStack())
    starting.enter_context(each_warning_once())
    loaded.config.validate()
    if resume is not None:
        resume.check_tasks(loaded.config)
        resume.check_policy(loaded.config)
    followed = trackers_of(loaded)
    say = _silent if arguments.quiet else tell
    say(f"starting Ray, learners, env runners and their engines: {_engine(loaded)} …")
    # Not beside the imports above: whatever registers itself with Tune while Ray is starting starts another one.
    with ray_session(required_cpus(loaded.config), address=address, verbose=arguments.verbose):
        storage = resume.folder if resume is not None and resume.folder is not None else loaded.settings.storage
        wait_for_nodes(arguments.min_nodes)
        preflight(loaded.config, storage=storage, always=address is not None)
        algorithm = loaded.config.build_algo()
        starting.close()
        try:
            if resume is not None:
                algorithm.restore_from_path(str(resume.checkpoint), trust_pickle=arguments.trust_pickle)
                resume = dataclasses.replace(resume, iteration=algorithm.iteration)
        except BaseException:
            algorithm.stop()
            raise
        return _train(algorithm, loaded, resume, followed, held, say=say)


def trackers_of(run: Run) -> list[Tracker]:
    """What is to follow a run; each has looked whether it can begin.

    Raises:
        SettingError: One cannot.
    """
    if not run.settings.trackers:
        return []
    from gspo_rllib.cli.trackers import trackers

    return trackers(run.settings.trackers, name=run.name)


def _engine(run: Run) -> str:
    """The engine of a run, and why it is this one."""
    from gspo_rllib.env_runners.engine_spec import chosen_engine

    choice = chosen_engine(run.config)
    return f"{choice.name}, because {choice.why}"


def _what_to_train(arguments: argparse.Namespace) -> tuple[Run, Resume | None]:
    """The run that the arguments describe, and what it continues.

    Raises:
        SettingError: The config or an option is refused.
        CheckpointError: What is to be continued has no whole checkpoint.
    """
    from gspo_rllib.configs import load_run

    source: str | None = arguments.config
    overrides = overrides_of(arguments)
    if source is not None and arguments.resume and "=" in source and not Path(source).exists():
        # With CONFIG left out, the first override stands in its place.
        overrides = [source, *overrides]
        source = None
    if arguments.resume and is_remote(arguments.resume):
        # Beside the results, so that a checkpoint is fetched once.
        arguments.resume = str(download(arguments.resume, Path(arguments.storage or "results") / ".fetched"))
    in_place = bool(arguments.resume) and is_run(arguments.resume)
    if source is None and not in_place:
        arguments.usage_error("the following arguments are required: CONFIG")
    if source is None:
        loaded = load_run(named_path(arguments.resume) / "config.yaml", overrides)
    else:
        loaded = load_with_model(source, overrides)
    check_limits(loaded.settings, "this run")
    if not in_place:
        check_folder(loaded.settings.storage, "run.storage")
    if loaded.settings.checkpoint_storage is not None:
        check_storage(loaded.settings.checkpoint_storage)
    resume = find_resume(arguments.resume) if arguments.resume is not None else None
    if resume is not None and checkpoints.is_pickled(resume.checkpoint):
        check_trusted(resume.checkpoint, trust_pickle=arguments.trust_pickle)
    if resume is not None and resume.folder is not None:
        if arguments.name or arguments.storage:
            raise SettingError(
                "--name and --storage have no effect on a run that is continued in its folder; leave them out, or "
                f"continue from its checkpoint in a new folder: --resume {short(resume.checkpoint)}"
            )
        resume.check_limits(loaded.settings)
        loaded = dataclasses.replace(loaded, name=name_of(resume.folder))
    return loaded, resume


def _train(
    algorithm: PolicyGradient,
    loaded: Run,
    resume: Resume | None,
    followed: list[Tracker],
    held: contextlib.ExitStack,
    *,
    say: Callable[[str], None],
) -> int:
    in_place = resume if resume is not None and resume.folder is not None else None
    folder = in_place.folder if in_place else None
    record = run_record(loaded, resumed_from=resume.record() if resume else None)
    try:
        if folder is None:
            folder = new_run_folder(loaded.settings.storage, loaded.name)
            held.enter_context(claimed(folder))
        start = write_run_record(folder, record)
        recorder = RunRecorder(folder, loaded.sections, resume_at=(in_place.iteration or 0) if in_place else 0)
    except OSError as error:
        algorithm.stop()
        raise SettingError(
            f"{folder or loaded.settings.storage}: results cannot be written there ({error}). Make room, or give "
            "another run.storage."
        ) from error
    if followed:
        from gspo_rllib.cli.trackers import Followers

        recorder.followers.append(Followers(followed, folder, record["config"], start=start))
    if resume is not None:
        say(f"continuing {'this run' if in_place else 'in a new folder'} from {_described(resume)}")
    say(f"results: {short(folder)}")
    with StopRequest() as request:
        loop = TrainingLoop(
            loaded,
            algorithm,
            recorder,
            interrupted=lambda: request.signal is not None,
            best=in_place.best if in_place else None,
            shows=say is tell,
        )
        try:
            checkpoint, reason = loop.run()
        finally:
            recorder.close(failed=sys.exc_info()[0] is not None)
            loop.close()
            _draw(recorder, loaded.name)
    tell(f"stopped: {reason}")
    tell(f"checkpoint: {short(checkpoint)}")
    if loop.best is not None:
        tell(f"best: {loop.best} evaluated at iteration {loop.best.iteration}, {short(loop.best_checkpoint)}")
    tell(f"curve: {short(folder / 'learning_curve.png')}")
    tell(f"more of it: gspo-rllib view {short(folder)}")
    return request.exit_code


def _described(resume: Resume) -> str:
    text = f"iteration {resume.iteration}, {short(resume.checkpoint)}"
    if resume.num_lost:
        text += f"; {resume.num_lost} later iterations were not saved, and are trained again"
    return text


def _silent(_: str) -> None:
    """In place of ``tell``, for ``--quiet``."""


def _draw(recorder: RunRecorder, name: str) -> None:
    from gspo_rllib.cli.curve import write_curve

    try:
        write_curve(recorder.rows(), recorder.folder / "learning_curve.png", title=name)
    except ModuleNotFoundError as error:
        print(f"no learning curve: {error}; pip install 'gspo-rllib[plot]'", file=sys.stderr)
    except OSError as error:  # no room, or no folder any more: an error of the run's own is not to be hidden by it
        print(f"no learning curve: {error}", file=sys.stderr)


def short(path: Path) -> str:
    """The path as seen from here, where that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)

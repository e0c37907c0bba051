"""``gspo-rllib sweep``: the same run for every combination of the given values, as Ray Tune trials."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import pickle
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gspo_rllib.cli.cluster_address import add_address, address_of
from gspo_rllib.cli.quiet import each_warning_once
from gspo_rllib.cli.resume import name_of
from gspo_rllib.cli.run_claim import claimed
from gspo_rllib.cli.sweep_points import Point, check_search, points, split_axes
from gspo_rllib.cli.terminal import tell
from gspo_rllib.cli.train import (
    RUN_OPTIONS,
    add_config_arguments,
    add_quiet,
    check_limits,
    overrides_of,
    short,
    trackers_of,
)
from gspo_rllib.cli.training_loop import stop_reason
from gspo_rllib.errors import CheckpointError, SettingError, described, shown
from gspo_rllib.places import check_folder, named_path

if TYPE_CHECKING:
    from ray.tune import ResultGrid, Tuner

    from gspo_rllib.cli.trackers import Tracker
    from gspo_rllib.configs import Run, RunSettings


EXIT_INTERRUPTED = 130

_CONFIG, _START = "sweep.yaml", "sweep.json"
"""What a sweep's folder says of how it was started: the config that all trials share, and the rest of the command."""

_OF_THE_START = (*RUN_OPTIONS, "samples", "metric", "scheduler", "search", "trials_at_once")
"""Options that are those of the start where a sweep goes on."""

_TUNE = {
    # Tune's newer output prints a box about the experiment even where it is asked for nothing.
    "RAY_AIR_NEW_OUTPUT": "0",
    # There is no score before the first evaluation; Tune would end the sweep.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Relative paths and modules mean in a trial what they mean to `gspo-rllib train`.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""What Ray Tune reads from the environment only."""


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("sweep", help="a grid of runs as Ray Tune trials", description=__doc__)
    add_config_arguments(parser, config="?")
    parser.add_argument(
        "--resume", metavar="SWEEP", help="continue this sweep in its folder as it was started, CONFIG left out"
    )
    parser.add_argument("--trials-at-once", type=int, metavar="N", help="default: as many as fit")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="so many trials: random combinations, or each with several seeds"
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="what is to be high: success (default; the return where there is none), return, or a key of result.json",
    )
    parser.add_argument("--scheduler", choices=("asha", "pbt"), help="ends bad trials early, or moves them")
    parser.add_argument(
        "--search",
        choices=("optuna",),
        help="chooses the --samples trials by the scores of those before, among the values",
    )
    add_address(parser)
    add_quiet(parser)
    parser.epilog = "Several values of a setting stand behind each other: training.lr=1e-5,3e-5"
    parser.set_defaults(run=run, usage_error=parser.error)


def run(arguments: argparse.Namespace) -> int:
    """Runs the trials, then prints one line per trial, best first.

    Returns:
        0; 1 when a trial failed, 130 when the sweep was interrupted.
    """
    with contextlib.ExitStack() as held:
        return _run(arguments, held)


def _run(arguments: argparse.Namespace, held: contextlib.ExitStack) -> int:
    from gspo_rllib.cli.cluster import ray_session, required_cpus
    from gspo_rllib.cli.preflight import preflight

    folder = _started(arguments) if arguments.resume is not None else None
    if folder is not None:
        held.enter_context(claimed(folder))
    if arguments.config is None:
        arguments.usage_error("the following arguments are required: CONFIG")
    _check(arguments)
    address = address_of(arguments)
    held.enter_context(each_warning_once())  # Tune asks each trial's config again what it needs
    # A search chooses among all combinations.
    base, trials = points(arguments, overrides_of(arguments), samples=None if arguments.search else arguments.samples)
    _check_base(arguments, base, trials)
    stop, followed = stopper(base.settings), trackers_of(base)
    most = arguments.samples if arguments.search else len(trials)
    at_once = min(most, arguments.trials_at_once or most)
    with (
        quiet_tune(verbose=arguments.verbose),
        ray_session(required_cpus(base.config) * at_once, address=address, verbose=arguments.verbose),
    ):
        preflight(base.config, storage=base.settings.storage, always=address is not None)
        return _tune(arguments, base, trials, stop, folder, followed, held)


def _check(arguments: argparse.Namespace) -> None:
    for option in ("samples", "trials_at_once"):
        given = getattr(arguments, option)
        if given is not None and given < 1:
            raise SettingError(f"--{option.replace('_', '-')}: expected a whole number >= 1, got {given}.")
    if arguments.metric is None:
        arguments.metric = "success"
    if not arguments.metric.strip():
        raise SettingError("--metric: it is empty; give success, return, or a key of result.json.")
    _, axes = split_axes(overrides_of(arguments))
    check_search(arguments.search, scheduler=arguments.scheduler, samples=arguments.samples, axes=axes)


def _check_base(arguments: argparse.Namespace, base: Run, trials: list[Point]) -> None:
    if base.settings.record_groups and arguments.scheduler == "pbt":
        raise SettingError(
            "run.record_groups=true: --scheduler pbt has trials go on from another's checkpoint, so that two groups "
            "of a file have one name. Use `gspo-rllib train`, or another scheduler."
        )
    if base.settings.checkpoint_storage is not None:
        raise SettingError(
            "run.checkpoint_storage: a sweep copies no checkpoints. Leave it out, or use `gspo-rllib train`."
        )
    check_folder(base.settings.storage, "run.storage")
    if arguments.scheduler == "pbt" and not any(set(point.values) - {"seed"} for point in trials):
        raise SettingError("--scheduler pbt: there is nothing to move; give a setting several values.")


def _started(arguments: argparse.Namespace) -> Path:
    """The folder of the sweep that is to go on; what it was started with takes the place of arguments.

    Raises:
        SettingError: It is no sweep's folder, or something is given that it was started without.
    """
    folder = named_path(arguments.resume).resolve()
    options = {name: getattr(arguments, name) for name in _OF_THE_START}
    given = [arguments.config] if arguments.config is not None else []
    given += arguments.overrides
    given += [f"--{name.replace('_', '-')} {value}" for name, value in options.items() if value is not None]
    if given:
        raise SettingError(
            f"--resume: a sweep goes on as it was started, so that its trials can be compared; leave out {given[0]}."
        )
    if not (folder / _START).is_file():
        raise SettingError(
            f"--resume {shown(arguments.resume)}: there is no {_START} in it, so it is not the folder of a sweep; "
            "`gspo-rllib train --resume` continues a run."
        )
    start = json.loads((folder / _START).read_text(encoding="utf-8"))
    if start["search"] is not None:
        raise SettingError(
            f"--resume: the trials of this sweep are chosen by {start['search']}, which keeps nothing of what it has "
            "seen. Go on with each trial by itself: gspo-rllib train CONFIG --resume CHECKPOINT."
        )
    for name, value in start.items():
        setattr(arguments, name, value)
    arguments.config = str(folder / _CONFIG)
    return folder


def _write_start(folder: Path, arguments: argparse.Namespace, base: Run) -> None:
    axes = [f"{key}={','.join(values)}" for key, values in split_axes(overrides_of(arguments))[1].items()]
    (folder / _CONFIG).write_text(yaml.safe_dump(dict(base.sections), sort_keys=False, allow_unicode=True))
    start = {
        "overrides": axes,
        "samples": arguments.samples,
        "metric": arguments.metric,
        "scheduler": arguments.scheduler,
        "search": arguments.search,
        "trials_at_once": arguments.trials_at_once,
    }
    (folder / _START).write_text(json.dumps(start, indent=2) + "\n", encoding="utf-8")


def _tune(
    arguments: argparse.Namespace,
    base: Run,
    trials: list[Point],
    stop: Callable[..., bool],
    folder: Path | None,
    followed: list[Tracker],
    held: contextlib.ExitStack,
) -> int:
    from gspo_rllib.cli import sweep_resume, sweep_trials
    from gspo_rllib.cli.provenance import run_record
    from gspo_rllib.cli.recorder import new_run_folder, write_run_record

    sweep_trials.Report.shows, sweep_trials.Points.goes_on = not arguments.quiet, False
    goes_on = folder is not None
    record = run_record(base) | {"trials": [point.label for point in trials]}
    how_many, trials, chooser = _chosen(arguments, base, trials)
    if folder is not None:
        base = dataclasses.replace(base, name=name_of(folder))
        sweep_resume.check_tasks(folder, base, trials)
    if folder is None:
        folder = new_run_folder(base.settings.storage, base.settings.name or f"sweep-{base.name}")
        held.enter_context(claimed(folder))
    write_run_record(folder, record)
    tell(f"{how_many} trial{'s' * (how_many != 1)}, {'continued in' if goes_on else 'results:'} {short(folder)}")
    if not arguments.quiet:
        print(sweep_trials.HEADER, flush=True)
    space = _space(arguments, base, trials, folder)
    if goes_on:
        tuner = sweep_resume.going_on_in(folder, base, space)
    else:
        _write_start(folder, arguments, base)
        tuner = _new_tuner(arguments, base, trials, stop, folder, space, how_many, chooser, followed)
    results = _fitted(tuner, folder)
    code = sweep_trials.report(results, base, trials, arguments.metric, short)
    # What a search would have chosen yet, nobody knows.
    known = [point for point in trials if (folder / point.folder).is_dir()] if arguments.search else trials
    left = sweep_resume.unfinished(str(folder), results, known)
    if not left:
        return code
    for point, checkpoint in left:
        print(sweep_resume.going_on(point, arguments.config, None if checkpoint is None else short(checkpoint)))
    all_of_them = "" if arguments.search else "; all of them, in this folder:"
    tell(
        f"interrupted: {len(left)} of {how_many} trials are not at their end; each goes on in a new folder with its "
        f"settings and `gspo-rllib train CONFIG --resume CHECKPOINT`, as above{all_of_them}"
    )
    if not arguments.search:
        print(f"gspo-rllib sweep --resume {shlex.quote(short(folder))}")
    return EXIT_INTERRUPTED


def _fitted(tuner: Tuner, folder: Path) -> ResultGrid:
    """What became of the trials.

    Raises:
        CheckpointError: Tune could not write its files, or read again what it had no room for.
    """
    try:
        return tuner.fit()
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{short(folder)}: Ray Tune cannot write or read its files of this sweep ({described(error)}), as where a "
            "disk has no room. The checkpoints that were written whole stay. Make room; then go on: gspo-rllib sweep "
            f"--resume {shlex.quote(short(folder))}"
        ) from error


def _space(arguments: argparse.Namespace, base: Run, trials: list[Point], folder: Path) -> dict[str, Any]:
    """What all trials share, as Tune takes it."""
    from gspo_rllib.cli import sweep_trials

    judge = sweep_trials.Judge(arguments.metric, evaluates=bool(base.config.evaluation_interval))
    base.config.callbacks(on_train_result=judge)
    keeps = sweep_trials.KeepsInItsFolder(folder.absolute(), groups=base.settings.record_groups)
    base.config.callbacks(on_algorithm_init=keeps)
    # What differs comes with each trial: Tune would merge a mapping with the one that stands here.
    return {key: value for key, value in base.config.to_dict().items() if key not in trials[0].values}


def _new_tuner(
    arguments: argparse.Namespace,
    base: Run,
    trials: list[Point],
    stop: Callable[..., bool],
    folder: Path,
    space: dict[str, Any],
    how_many: int,
    chooser: Any,
    followed: list[Tracker],
) -> Tuner:
    from ray import tune

    from gspo_rllib.cli import sweep_trials

    return tune.Tuner(
        base.config.algo_class.__name__,
        param_space=space,
        tune_config=tune.TuneConfig(
            num_samples=how_many,
            search_alg=sweep_trials.Points(chooser, arguments.trials_at_once),
            scheduler=sweep_trials.scheduler(arguments.scheduler, base.settings, trials),
            trial_name_creator=Named(trials, "label"),
            trial_dirname_creator=Named(trials, "folder"),
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            stop=stop,
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_at_end=True, checkpoint_frequency=base.settings.checkpoint_every or 0
            ),
            callbacks=[sweep_trials.Report(base), *followed],
            verbose=1 if arguments.verbose else 0,
        ),
    )


def _chosen(arguments: argparse.Namespace, base: Run, points: list[Point]) -> tuple[int, list[Point], Any]:
    """How many trials there will be, all that there may be, and what ``Points`` is made of."""
    if arguments.search is None:
        return len(points), points, points
    from gspo_rllib.cli.sweep_search import ByOptuna, with_seeds
    from gspo_rllib.cli.sweep_trials import SCORE

    seed = int(base.config.seed or 0)
    every = with_seeds(points, seed=seed, samples=arguments.samples)
    return arguments.samples, every, ByOptuna(every, metric=SCORE, samples=arguments.samples, seed=seed)


@contextlib.contextmanager
def quiet_tune(*, verbose: bool) -> Iterator[None]:
    """Ray Tune without its own output, for the time of a command; with ``verbose`` it prints what it likes."""
    before = dict(os.environ)
    os.environ |= _TUNE
    logger = logging.getLogger("ray.tune")
    level = logger.level
    if verbose:
        del os.environ["RAY_AIR_NEW_OUTPUT"]
    else:
        logger.setLevel(logging.CRITICAL)  # a failed trial's pages are in its error.txt
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Consider boosting PBT performance")
            yield
    finally:
        logger.setLevel(level)
        for name in _TUNE:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


class Named:
    """What a Tune trial is called: the label or the folder of the point it was made from.

    Args:
        trials: All points.
        attribute: Which of the two.
    """

    def __init__(self, trials: list[Point], attribute: str) -> None:
        self._trials = trials
        self._attribute = attribute

    def __call__(self, trial: Any) -> str:
        """Called by Tune with a new trial."""
        (point,) = (p for p in self._trials if all(trial.config[name] == v for name, v in p.values.items()))
        return str(getattr(point, self._attribute))


def stopper(limits: RunSettings) -> Callable[[str, dict[str, Any]], bool]:
    """The ``run:`` section as Ray Tune's stop criterion: what would end ``gspo-rllib train`` ends a trial.

    Raises:
        SettingError: Nothing would end a trial.
    """
    check_limits(limits, "a trial")

    def stop(trial_id: str, result: dict[str, Any]) -> bool:
        return stop_reason(result, limits, minutes=result["time_total_s"] / 60) is not None

    return stop

"""``gspo-rllib study``: several objectives on several tasks with several seeds, and the page that says what differs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli.cluster_address import add_address, address_of
from gspo_rllib.errors import SettingError
from gspo_rllib.places import check_folder

if TYPE_CHECKING:
    from gspo_rllib.study.design import Study, Trial
    from gspo_rllib.study.gradient_plan import GradientPlan


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("study", help="compare objectives over tasks and seeds", description=__doc__)
    parser.add_argument("study", metavar="STUDY", help="YAML file, or a shipped study's name, e.g. quick")
    parser.add_argument("--out", metavar="DIR", help="its folder, gone on with; default results/study-NAME")
    parser.add_argument("--page", metavar="FILE", help="where its page goes; default FOLDER/README.md")
    parser.add_argument("--trials-at-once", type=int, metavar="N", help="default: as many as fit")
    parser.add_argument("--cell", action="append", default=[], metavar="NAME", help="only these cells; may be repeated")
    parser.add_argument("--minutes", type=float, metavar="N", help="start no trial after so many; the rest another day")
    parser.add_argument("--only-page", action="store_true", help="run nothing, write the page from what is there")
    parser.add_argument("--verbose", action="store_true", help="what Ray and its actors print")
    add_address(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs what is missing, then writes the page.

    Returns:
        0; 1 when a trial failed or is left for another day.
    """
    from gspo_rllib.study.design import read_study
    from gspo_rllib.study.gradient_plan import gradient_plans

    if arguments.trials_at_once is not None and arguments.trials_at_once < 1:
        raise SettingError(f"--trials-at-once: expected a whole number >= 1, got {arguments.trials_at_once}.")
    if arguments.minutes is not None and not arguments.minutes > 0:
        raise SettingError(f"--minutes: expected a number > 0, got {arguments.minutes}.")
    study = read_study(arguments.study)
    plans = gradient_plans(study)  # refused now and not after hours
    cells = dict.fromkeys([cell.name for cell in study.cells] + [plan.cell.name for plan in plans])
    for name in arguments.cell:
        if name not in cells:
            raise SettingError(f"--cell: {study.name} has no cell {name!r}; it has {', '.join(map(repr, cells))}.")
    folder = Path(arguments.out or f"results/study-{study.name}")
    check_folder(folder, "--out")
    page = Path(arguments.page) if arguments.page else folder / "README.md"
    check_folder(page.parent, "--page")
    code = 0 if arguments.only_page else _run(arguments, study, plans, folder)
    _write_page(study, plans, folder, page, command=_command(arguments))
    print(f"page: {page}")
    return code


def _run(arguments: argparse.Namespace, study: Study, plans: Sequence[GradientPlan], folder: Path) -> int:
    from gspo_rllib.cli.cluster import ray_session
    from gspo_rllib.study.design import TUNED
    from gspo_rllib.study.gradients import missing_gradients, run_gradients
    from gspo_rllib.study.runs import results_of, tuned_settings

    ends = None
    if arguments.minutes is not None:
        ends = time.monotonic() + 60 * arguments.minutes  # the machine's date may be set back
    chosen = [cell for cell in study.cells if not arguments.cell or cell.name in arguments.cell]
    compares_tuned = any(name.endswith(TUNED) for cell in chosen for name in cell.objectives)
    code = 0
    if missing := missing_gradients(plans, folder, only=arguments.cell):
        with ray_session(1, address=address_of(arguments), verbose=arguments.verbose):
            code = run_gradients(folder, missing, ends=ends, say=_say)
    tuning = study.tuning_trials() if compares_tuned else []
    code = _run_trials(arguments, study, folder, tuning, ends, what="tuning ") or code
    tuned = tuned_settings(study, results_of(folder, study.tuning_trials()))
    lacking = sorted({trial.objective.rpartition(", ")[0] for trial in tuning} - set(tuned))
    if lacking:
        print(f"tuning is not finished for {', '.join(lacking)}: what compares them tuned waits")
        code = 1
    trials = [trial for trial in study.trials(tuned) if not arguments.cell or trial.cell in arguments.cell]
    return _run_trials(arguments, study, folder, trials, ends, what="") or code


def _command(arguments: argparse.Namespace) -> str:
    options = [("--out", arguments.out), ("--page", arguments.page)]
    return " ".join([f"gspo-rllib study {arguments.study}", *(f"{name} {value}" for name, value in options if value)])


def _run_trials(
    arguments: argparse.Namespace,
    study: Study,
    folder: Path,
    trials: list[Trial],
    ends: float | None,
    *,
    what: str,
) -> int:
    from gspo_rllib.cli.cluster import ray_session, required_cpus
    from gspo_rllib.cli.provenance import git_state, machine, versions
    from gspo_rllib.cli.sweep import quiet_tune
    from gspo_rllib.study.raw import read_result
    from gspo_rllib.study.runs import run_missing
    from gspo_rllib.study.starts import make_start

    missing = [trial for trial in trials if read_result(folder, trial) is None]
    if not trials:
        return 0
    print(f"{study.name}: {len(trials) - len(missing)} of {len(trials)} {what}trials are there", flush=True)
    if not missing:
        return 0
    for trial in missing:
        trial.run(None)  # all of them are known to be right before the first one runs
    record = {"versions": versions(), "machine": machine(), "git": git_state()}
    failed = 0
    with quiet_tune(verbose=arguments.verbose):
        # One seed at a time: whenever it ends, every objective has as many.
        for seed in dict.fromkeys(trial.seed for trial in missing):
            if ends is not None and time.monotonic() >= ends:
                print("the time is over; the same command goes on with the rest")
                return 1
            chosen = [trial for trial in missing if trial.seed == seed]
            models = {trial.name: _text(make_start(folder, trial, _say)) for trial in chosen}
            cpus = max(required_cpus(trial.run(models[trial.name]).config) for trial in chosen)
            at_once = min(arguments.trials_at_once or len(chosen), len(chosen))
            with ray_session(cpus, address=address_of(arguments), verbose=arguments.verbose):
                failed += run_missing(study, folder, chosen, models, at_once=at_once, record=record, say=_say)
    return int(failed > 0)


def _write_page(study: Study, plans: Sequence[GradientPlan], folder: Path, page: Path, *, command: str) -> None:
    from gspo_rllib.study.gradients import gradients_section
    from gspo_rllib.study.page import render, write_curves
    from gspo_rllib.study.runs import results_of, tuned_settings

    page.parent.mkdir(parents=True, exist_ok=True)
    tuning = results_of(folder, study.tuning_trials())
    tuned = tuned_settings(study, tuning)
    results = results_of(folder, study.trials(tuned))
    extra = gradients_section(plans, folder)
    if results:
        picture = page.with_suffix(".png")
        write_curves(study, results, picture)
        extra = f"![Scores against iterations]({picture.name})\n\n{extra}".strip()
    page.write_text(render(study, results, tuned, tuning=tuning, command=command, extra=extra), "utf-8")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _say(line: str) -> None:
    print(line, flush=True)

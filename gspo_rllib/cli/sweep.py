"""``gspo-rllib sweep``: the same run for every combination of the given values, as Ray Tune trials."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli.train import add_config_arguments, check_limits, overrides_of
from gspo_rllib.cli.training_loop import stop_reason
from gspo_rllib.errors import SettingError

if TYPE_CHECKING:
    from ray import tune

    from gspo_rllib.configs import Run, RunSettings

_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


def add_parser(commands: Any) -> None:
    """Adds the sub-command."""
    parser = commands.add_parser("sweep", help="a grid of runs as Ray Tune trials", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument("--trials-at-once", type=int, default=None, metavar="N", help="default: as many as fit")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the trials, then prints one line per trial, best first."""
    from ray import tune

    from gspo_rllib.cli.cluster import ray_session, required_cpus
    from gspo_rllib.cli.quiet import hush
    from gspo_rllib.configs import load_run

    fixed, axes = split_axes(overrides_of(arguments))
    base = load_run(arguments.config, fixed)
    if base.settings.record_groups:
        raise SettingError("run.record_groups=true: a sweep records no groups. Use `gspo-rllib train`.")
    stop = stopper(base.settings)
    hush(base.config, verbose=arguments.verbose)
    base.config.validate()
    space = base.config.to_dict()
    # Every value of every axis goes through the builders, so an illegal one fails here and not inside a trial.
    for key, texts in axes.items():
        points = [load_run(arguments.config, [*fixed, f"{key}={text}"]) for text in texts]
        for point in points:
            hush(point.config, verbose=arguments.verbose)
            point.config.validate()
        attribute = swept_attribute(key, base, points)
        space[attribute] = tune.grid_search([getattr(point.config, attribute) for point in points])
    trials = len(list(itertools.product(*axes.values())))
    with ray_session(
        required_cpus(base.config) * min(trials, arguments.trials_at_once or trials), verbose=arguments.verbose
    ):
        tuner = tune.Tuner(
            base.config.algo_class.__name__,
            param_space=space,
            tune_config=tune.TuneConfig(max_concurrent_trials=arguments.trials_at_once),
            run_config=tune.RunConfig(
                name=base.settings.name or f"sweep-{base.name}",
                storage_path=str(Path(base.settings.storage).expanduser().resolve()),
                stop=stop,
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
                verbose=1,
            ),
        )
        return report(tuner.fit())


def split_axes(overrides: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Separates overrides with one value from those with several.

    Args:
        overrides: ``"section.key=value"`` or ``"section.key=value,value,…"``.

    Returns:
        The overrides with one value, and key to values of the others.

    Example:
        >>> split_axes(["run.iterations=3", "training.lr=1e-5,2e-5"])
        (['run.iterations=3'], {'training.lr': ['1e-5', '2e-5']})
        >>> split_axes(["learners.x=[1, 2]"])
        (['learners.x=[1, 2]'], {})
    """
    fixed: list[str] = []
    axes: dict[str, list[str]] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        values = _split_outside_brackets(text)
        if separator and len(values) > 1:
            axes[key] = values
        else:
            fixed.append(override)
    return fixed, axes


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def swept_attribute(key: str, base: Run, points: list[Run]) -> str:
    """The config attribute that an override sets.

    Args:
        key: The override's ``section.key``.
        base: The run without it.
        points: The run with each of its values.

    Raises:
        SettingError: It changes no attribute, or several, so Tune cannot vary it alone.
    """
    before = vars(base.config)
    changed = {
        name
        for point in points
        for name, value in vars(point.config).items()
        if isinstance(value, _PLAIN) and value != before.get(name)
    }
    if len(changed) != 1:
        what = f"it changes {', '.join(sorted(changed))}" if changed else "it changes nothing in the algorithm's config"
        raise SettingError(f"sweep: {key} cannot be varied: {what}. Start one `gspo-rllib train` per value instead.")
    return changed.pop()


def stopper(limits: RunSettings) -> Callable[[str, dict[str, Any]], bool]:
    """The ``run:`` section as Ray Tune's stop criterion: what would end ``gspo-rllib train`` ends a trial.

    Raises:
        SettingError: Nothing would end a trial.
    """
    check_limits(limits, "a trial")

    def stop(trial_id: str, result: dict[str, Any]) -> bool:
        return stop_reason(result, limits, minutes=result["time_total_s"] / 60) is not None

    return stop


def report(results: tune.ResultGrid) -> int:
    """Prints one line per trial, most successful first.

    Returns:
        0, or 1 when a trial failed.
    """
    rows = sorted(results, key=lambda r: -_metric(r, "success_mean"))
    print(f"{'success':>8} {'return':>8}  checkpoint")
    for result in rows:
        where = result.checkpoint.path if result.checkpoint else f"none ({result.error or 'stopped early'})"
        print(f"{_metric(result, 'success_mean'):>8.1%} {_metric(result, 'episode_return_mean'):>8.3f}  {where}")
    return 1 if results.errors else 0


def _metric(result: Any, name: str) -> float:
    value = ((result.metrics or {}).get("env_runners") or {}).get(name)
    return float(value) if value is not None else float("nan")

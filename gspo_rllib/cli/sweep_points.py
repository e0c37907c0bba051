"""From ``training.lr=1e-5,3e-5`` to the trials of a sweep: one checked run per combination of values."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli.seed_model import load_with_model
from gspo_rllib.errors import SettingError

if TYPE_CHECKING:
    from gspo_rllib.configs import Run

_PLAIN = (bool, int, float, str, list, tuple, dict, type(None))
_SEED = "debugging.seed"
_LONGEST_FOLDER = 120


@dataclass(frozen=True, slots=True)
class Point:
    """One trial.

    Attributes:
        label: The settings that make it differ from the others, e.g. ``"lr=1e-05,clip_high=0.004"``.
        values: Attribute of the algorithm config to its value in this trial; every trial has the same attributes.
        overrides: All that the trial has beside the config, as ``gspo-rllib train`` takes it.
        chosen: Key to value, as it was given, for each setting that has several.
    """

    label: str
    values: Mapping[str, Any]
    overrides: Sequence[str] = ()
    chosen: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The label as the name of a folder."""
        safe = "".join(c if c.isalnum() or c in "-_.=,+" else "-" for c in self.label) or "trial"
        if len(safe) <= _LONGEST_FOLDER:
            return safe
        return f"{safe[:_LONGEST_FOLDER]}-{hashlib.sha256(self.label.encode()).hexdigest()[:8]}"


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


def combinations(axes: Mapping[str, Sequence[str]], *, samples: int | None, seed: int) -> list[dict[str, str]]:
    """What each trial sets: key to value as text.

    Args:
        axes: Key to its values.
        samples: How many trials; fewer than there are combinations draws so many of them, more repeats each with other
            seeds; None for each combination once.
        seed: The run's own; also what the draw depends on.

    Raises:
        SettingError: There are to be more trials than combinations, and the seed is one of the settings.

    Example:
        >>> combinations({"training.lr": ["1e-5", "3e-5"]}, samples=3, seed=7)
        [{'training.lr': '1e-5'}, {'training.lr': '3e-5'}, {'training.lr': '1e-5', 'debugging.seed': '8'}]
    """
    every = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if samples is None:
        return every
    if samples < len(every):
        chosen = sorted(random.Random(seed).sample(range(len(every)), samples))
        return [every[index] for index in chosen]
    if samples > len(every) and _SEED in axes:
        raise SettingError(
            f"--samples {samples}: there are {len(every)} combinations, and {_SEED} is one of their settings, so they "
            "cannot be repeated with other seeds. Give it more seeds."
        )
    rounds = -(-samples // len(every))
    repeated = [one | ({_SEED: str(seed + turn)} if turn else {}) for turn in range(rounds) for one in every]
    return repeated[:samples]


def check_search(name: str | None, *, scheduler: str | None, samples: int | None, axes: Mapping[str, Any]) -> None:
    """Refuses what a search cannot do, before anything starts.

    Args:
        name: ``"optuna"``; None for no search.
        scheduler: The sweep's.
        samples: How many trials there are to be.
        axes: The settings with several values.

    Raises:
        SettingError: It cannot search, or is not installed.
    """
    if name is None:
        return
    if samples is None:
        raise SettingError("--search optuna: it would not end; say with --samples how many trials there are to be.")
    if not axes:
        raise SettingError("--search optuna: there is nothing to choose; give a setting several values.")
    if _SEED in axes:
        raise SettingError(
            f"--search optuna: it would choose the luckiest of {_SEED}'s values; give it one. A combination that "
            "is chosen again has the next seed."
        )
    if scheduler == "pbt":
        raise SettingError("--search optuna: --scheduler pbt changes trials' settings itself; use asha, or none.")
    try:
        importlib.import_module("optuna")
    except ImportError as error:
        remedy = "pip install 'gspo-rllib[optuna]'"
        raise SettingError(f"--search optuna: optuna cannot be imported ({error}); {remedy}.") from error


def points(arguments: argparse.Namespace, overrides: list[str], *, samples: int | None) -> tuple[Run, list[Point]]:
    """The run that all trials share, and the trials; each of them was checked as a run of its own.

    Args:
        arguments: Name the config; ``verbose`` as for ``hush``.
        overrides: All overrides.
        samples: As for ``combinations``.

    Raises:
        GSPOError: A trial would be refused, or a setting cannot be varied.
    """
    from gspo_rllib.cli.quiet import each_warning_once, hush
    from gspo_rllib.configs import load_run

    fixed, axes = split_axes(overrides)
    base = load_with_model(arguments.config, fixed)
    hush(base.config, verbose=arguments.verbose)
    # Each value by itself first: what is wrong with it is said of it, and not of a combination.
    for key, texts in axes.items():
        alone = [load_run(arguments.config, [*fixed, f"{key}={text}"]) for text in texts]
        for run in alone:
            hush(run.config, verbose=arguments.verbose)
        check_varied(key, base, alone)
    runs, given, picked = {}, {}, {}
    for chosen in combinations(axes, samples=samples, seed=int(base.config.seed or 0)):
        own = [*fixed, *(f"{key}={text}" for key, text in chosen.items())]
        run = load_run(arguments.config, own)
        hush(run.config, verbose=arguments.verbose)
        runs[label_of(chosen)], given[label_of(chosen)], picked[label_of(chosen)] = run, own, chosen
    # Before they are validated, which fills in what RLlib derives from other settings.
    attributes = changed(base, runs.values())
    made: list[Point] = []
    for label, run in runs.items():
        values = {name: getattr(run.config, name) for name in sorted(attributes)}
        if all(point.values != values for point in made):  # 1 and 1.0 are one trial
            made.append(Point(label, values, given[label], picked[label]))
    with each_warning_once():
        for run in runs.values():
            run.config.validate()
    return base, made


def label_of(chosen: Mapping[str, str]) -> str:
    """The settings of a trial as a text; a key without its section where that is clear.

    Example:
        >>> label_of({"training.lr": "1e-5", "generation.template_kwargs": "{a: 1}"})
        'lr=1e-05,template_kwargs={a:1}'
        >>> label_of({})
        'all'
    """
    from gspo_rllib.configs import parse_value

    last = [key.rpartition(".")[2] for key in chosen]
    names = [name if last.count(name) == 1 else key for key, name in zip(chosen, last, strict=True)]
    values = [parse_value(text, source=key) for key, text in chosen.items()]
    shown = [
        "".join(text.split()) if isinstance(value, (list, dict)) else str(value)
        for value, text in zip(values, chosen.values(), strict=True)
    ]
    return ",".join(f"{name}={value}" for name, value in zip(names, shown, strict=True)) or "all"


def moved(point: Point, config: Mapping[str, Any], points: Sequence[Point]) -> Point:
    """A point with the settings that its trial has by now; itself, where no scheduler has changed any.

    Args:
        point: What the trial began with.
        config: The trial's config now; what it has of the sweep's settings are values of theirs.
        points: All points.

    Example:
        >>> made = [Point(f"lr={lr}", {"lr": float(lr)}, ["run.name=a", f"training.lr={lr}"], {"training.lr": lr})
        ...         for lr in ("1e-05", "3e-05")]
        >>> moved(made[0], {"lr": 3e-5}, made).overrides, moved(made[0], {"lr": 1e-5}, made) is made[0]
        (['run.name=a', 'training.lr=3e-05'], True)
    """
    chosen = dict(point.chosen)
    for key, text in point.chosen.items():
        attribute = next((name for name in point.values if name.lstrip("_") == key.split(".")[1]), None)
        if attribute is None or config.get(attribute, point.values[attribute]) == point.values[attribute]:
            continue
        now = [other.chosen.get(key, text) for other in points if other.values[attribute] == config[attribute]]
        chosen[key] = now[0] if now else text
    if chosen == dict(point.chosen):
        return point
    fixed = [given for given in point.overrides if given.partition("=")[0] not in chosen]
    own = [f"{key}={text}" for key, text in chosen.items()]
    return replace(point, overrides=[*fixed, *own], chosen=chosen)


def changed(base: Run, runs: Iterable[Run]) -> set[str]:
    """Attributes of the algorithm config that differ between a run and others."""
    before = vars(base.config)
    return {
        name
        for run in runs
        for name, value in vars(run.config).items()
        if isinstance(value, _PLAIN) and value != before.get(name)
    }


def check_varied(key: str, base: Run, alone: Sequence[Run]) -> None:
    """Refuses an override that Tune cannot vary.

    Args:
        key: The override's ``section.key``.
        base: The run without it.
        alone: The run with each of its values.

    Raises:
        SettingError: It changes nothing that an algorithm is made of, or which algorithm that is.
    """
    remedy = "Start one `gspo-rllib train` per value instead."
    if any(type(run.config) is not type(base.config) for run in alone):
        raise SettingError(f"sweep: {key} cannot be varied: each value is an algorithm of its own. {remedy}")
    if not changed(base, alone):
        what = "it changes nothing in the algorithm's config"
        raise SettingError(f"sweep: {key} cannot be varied: {what}. {remedy}")

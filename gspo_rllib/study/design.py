"""What a study is made of, read from its YAML file: cells x objectives x seeds, each a run with settings of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.configs.runs import load_run
from gspo_rllib.configs.strict_yaml import parse_yaml
from gspo_rllib.errors import SettingError, did_you_mean, shown
from gspo_rllib.studies import shipped_studies, shipped_study

if TYPE_CHECKING:
    from gspo_rllib.configs import Run

TUNED = " tuned"
"""Behind an objective's name: the same with the settings that its tuning found."""

TUNING = "tuning"
"""The cell that tuning's trials are kept under."""

_SECTIONS = ("study", "objectives", "cells", "starts", "tuning", "gradients")
_CELL_WORDS = ("config", "start", "objectives", "iterations")

Settings = dict[str, Any]
"""Dotted settings, e.g. ``{"training.lr": 1e-4}``, as overrides of a run's config."""


@dataclass(frozen=True, slots=True)
class Start:
    """A model that trials begin with, made by imitation.

    Attributes:
        name: What the study calls it.
        options: Keyword arguments of ``gspo_rllib.warmstart.warmstart``.
    """

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One task and setting that all objectives are compared in.

    Attributes:
        name: What the study calls it.
        config: Config of the task, a file or a shipped one's name.
        start: What trials begin with; None for the config's own model.
        settings: What differs from the config.
        objectives: Names of those that are compared in it; the first one is what the others are compared with.
        iterations: Training iterations of its trials; None for the study's.
    """

    name: str
    config: str
    start: Start | None
    settings: Settings
    objectives: tuple[str, ...]
    iterations: int | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a study.

    Attributes:
        cell: Name of its cell.
        objective: Name of its objective; behind it, in a tuning trial, the number of the candidate.
        seed: The seed, which also names the start model.
        config: Config of the task.
        start: What it begins with.
        settings: What differs from the config, the seed included.
    """

    cell: str
    objective: str
    seed: int
    config: str
    start: Start | None
    settings: Settings

    @property
    def name(self) -> str:
        """Where its results are kept below the study's folder, without suffix; unique in a study."""
        return f"{slug(self.cell)}/{slug(self.objective)}/{self.seed}"

    @property
    def digest(self) -> str:
        """Changes with whatever the trial's numbers depend on."""
        start = None if self.start is None else dict(self.start.options)
        text = json.dumps([self.config, self.settings, start, self.seed], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def run(self, model: str | None) -> Run:
        """The run that the trial is.

        Args:
            model: Folder of the start model; None for the config's own.

        Raises:
            SettingError: A setting is not one, or its value is refused.
        """
        settings = {**self.settings, **({} if model is None else {"rl_module.model_config.path": model})}
        try:
            return load_run(self.config, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
        except SettingError as error:
            raise SettingError(f"study: cell {self.cell!r}, objective {self.objective!r}: {error}") from error


@dataclass(frozen=True, slots=True)
class Study:
    """A study.

    Attributes:
        name: The file's name without suffix.
        title: What its page is called.
        about: A paragraph that its page begins with.
        findings: What its author reads in the figures, as Markdown that the page has before them; "" for nothing.
        iterations: Training iterations of a trial whose cell does not say.
        seeds: Seeds of the trials.
        evaluate_tasks: Fixed tasks that each iteration is judged by.
        objectives: Name to settings.
        candidates: Name of an objective to the settings that its tuning tries; as many for each.
        cells: The cells, in the page's order.
        tuning_cell: The cell whose setting is tuned in; None without tuning.
        tuning_seeds: Seeds of tuning, none of them a trial's.
        gradients: The section on training-free figures, unread; empty without.
    """

    name: str
    title: str
    about: str
    findings: str
    iterations: int
    seeds: tuple[int, ...]
    evaluate_tasks: int
    objectives: Mapping[str, Settings]
    candidates: Mapping[str, Sequence[Settings]]
    cells: tuple[Cell, ...]
    tuning_cell: Cell | None = None
    tuning_seeds: tuple[int, ...] = ()
    gradients: Mapping[str, Any] = field(default_factory=dict)

    def trials(self, tuned: Mapping[str, Settings]) -> list[Trial]:
        """Every trial but tuning's, seed by seed, so that an interrupted study has as many of each.

        Args:
            tuned: What tuning found, by objective; those of others wait for it.
        """
        return [
            self._trial(cell, name, self.settings_of(name, tuned), seed)
            for seed in self.seeds
            for cell in self.cells
            for name in cell.objectives
            if not name.endswith(TUNED) or name.removesuffix(TUNED) in tuned
        ]

    def tuning_trials(self) -> list[Trial]:
        """The trials of tuning; none where no cell compares a tuned objective."""
        wanted = {name.removesuffix(TUNED) for cell in self.cells for name in cell.objectives if name.endswith(TUNED)}
        if self.tuning_cell is None:
            return []
        return [
            self._trial(self.tuning_cell, candidate_name(name, number), {**self.objectives[name], **candidate}, seed)
            for seed in self.tuning_seeds
            for name in self.candidates
            if name in wanted
            for number, candidate in enumerate(self.candidates[name])
        ]

    def settings_of(self, objective: str, tuned: Mapping[str, Settings]) -> Settings:
        """The settings of an objective.

        Args:
            objective: The name, maybe with ``TUNED`` behind it.
            tuned: What tuning found, by objective.
        """
        name = objective.removesuffix(TUNED)
        return {**self.objectives[name], **(tuned[name] if objective.endswith(TUNED) else {})}

    def _trial(self, cell: Cell, objective: str, settings: Settings, seed: int) -> Trial:
        iterations = cell.iterations or self.iterations
        own = {
            "debugging.seed": seed,
            "run.iterations": iterations,
            "reporting.keep_trajectories": 0,
            "run.minutes": None,
            "run.success": None,
            "run.evaluate_every": iterations + 1,  # by the trial itself, after every iteration
            "run.evaluate_tasks": self.evaluate_tasks,
        }
        return Trial(cell.name, objective, seed, cell.config, cell.start, {**cell.settings, **settings, **own})


def candidate_name(objective: str, number: int) -> str:
    """What a tuning trial's objective is called."""
    return f"{objective}, candidate {number + 1}"


def slug(text: str) -> str:
    """A name as a part of a file's path.

    Example:
        >>> slug("GSPO (turn), 16 x 4")
        'gspo-turn-16-x-4'
    """
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "unnamed"


def same_folder(names: Sequence[str]) -> str | None:
    """What is wrong with names that results are kept under; None where each has a folder of its own."""
    slugs = [slug(name) for name in names]
    twice = next((one for one in slugs if slugs.count(one) > 1), None)
    return None if twice is None else f"two names are the same as a folder's name: {twice}"


def read_study(path: str | Path) -> Study:
    """Reads a study.

    Args:
        path: The name of one that comes with the package, or a YAML file with the sections ``study``, ``objectives``
            and ``cells``, and maybe ``starts`` (models made by imitation), ``tuning`` and ``gradients``;
            ``docs/studies.md`` says what each holds.

    Raises:
        SettingError: It cannot be read, or says something that no study can do.
    """
    path = shipped_study(str(path)) or Path(path)
    try:
        document = parse_yaml(path.read_bytes(), source=path.name)
    except OSError as error:
        raise SettingError(
            f"study {shown(str(path))}: it cannot be read ({error.strerror}), and it is none of those that come with "
            f"the package: {', '.join(shipped_studies())}."
        ) from error
    return _Reader(path.name, document).study(path.stem)


class _Reader:
    """Reads the sections of a document, and says which of them is wrong."""

    def __init__(self, source: str, document: Any) -> None:
        self._source = source
        self._document = self._mapping(document, "the study", _SECTIONS)

    def study(self, name: str) -> Study:
        """The whole."""
        head = self._section("study", ("title", "about", "findings", "config", "iterations", "seeds", "evaluate_tasks"))
        objectives, candidates = self._objectives()
        starts = {
            key: Start(key, self._mapping(options, f"starts.{key}", None))
            for key, options in self._section("starts", None).items()
        }
        cells = tuple(
            self._cell(key, cell, str(head.get("config", "")), starts, tuple(objectives), candidates)
            for key, cell in self._section("cells", None).items()
        )
        if not cells:
            raise self._error("cells", "there is none; one with no settings of its own is written 'base: {}'")
        self._distinct("cells", [cell.name for cell in cells])
        self._distinct("objectives", list(objectives))
        seeds = self._seeds(head.get("seeds", [0, 1, 2]), "study.seeds")
        tuning = self._section("tuning", ("cell", "seeds"))
        tuning_cell = self._tuning_cell(tuning, cells)
        tuning_seeds = self._seeds(tuning["seeds"], "tuning.seeds") if "seeds" in tuning else ()
        if shared := set(seeds) & set(tuning_seeds):
            raise self._error("tuning.seeds", f"{sorted(shared)} are trials' seeds too: tuning must not have seen them")
        if tuning and not tuning_seeds:
            raise self._error("tuning.seeds", "there are none; give some that are not in study.seeds")
        for cell in cells:
            if any(objective.endswith(TUNED) for objective in cell.objectives) and not tuning:
                raise self._error(f"cells.{cell.name}", "it compares a tuned objective, and there is no section tuning")
        return Study(
            name=name,
            title=str(head.get("title", name)),
            about=" ".join(str(head.get("about", "")).split()),
            findings=str(head.get("findings", "")).strip(),
            iterations=self._count(head.get("iterations", 10), "study.iterations"),
            seeds=seeds,
            evaluate_tasks=self._count(head.get("evaluate_tasks", 128), "study.evaluate_tasks"),
            objectives=objectives,
            candidates=candidates,
            cells=cells,
            tuning_cell=tuning_cell,
            tuning_seeds=tuning_seeds,
            gradients=self._section("gradients", None),
        )

    def _objectives(self) -> tuple[dict[str, Settings], dict[str, list[Settings]]]:
        objectives: dict[str, Settings] = {}
        candidates: dict[str, list[Settings]] = {}
        for name, given in self._section("objectives", None).items():
            place = f"objectives.{name}"
            if name.endswith(TUNED):
                raise self._error(place, f"a name must not end in {TUNED!r}: that stands for what tuning finds")
            settings = dict(self._mapping(given, place, None))
            tried = settings.pop("tune", None)
            objectives[name] = self._dotted(settings, place)
            if tried is not None:
                if not isinstance(tried, list) or not tried:
                    raise self._error(f"{place}.tune", f"expected a list of settings to try, got {tried!r}")
                candidates[name] = [
                    self._dotted(self._mapping(one, f"{place}.tune", None), f"{place}.tune") for one in tried
                ]
        if not objectives:
            raise self._error("objectives", "there is none; e.g. 'GSPO: {run.algorithm: GSPO}'")
        if len({len(tried) for tried in candidates.values()}) > 1:
            counts = ", ".join(f"{name} {len(tried)}" for name, tried in candidates.items())
            raise self._error("objectives", f"tuning must cost each the same, but the candidates are {counts}")
        return objectives, candidates

    def _cell(
        self,
        name: str,
        given: Any,
        config: str,
        starts: Mapping[str, Start],
        objectives: tuple[str, ...],
        candidates: Mapping[str, Any],
    ) -> Cell:
        place = f"cells.{name}"
        settings = dict(self._mapping(given, place, None))
        words = {word: settings.pop(word) for word in _CELL_WORDS if word in settings}
        source = str(words.get("config", config))
        if not source:
            raise self._error(place, "it has no config, and study.config gives none; e.g. 'config: calculator'")
        start = words.get("start", next(iter(starts), None))
        if start is not None and start not in starts:
            raise self._error(f"{place}.start", f"no start {start!r}. {did_you_mean(str(start), starts)}")
        allowed = [*objectives, *(name + TUNED for name in candidates)]
        compared = words.get("objectives", list(objectives))
        if not isinstance(compared, list) or not compared:
            raise self._error(f"{place}.objectives", f"expected a list of names, got {compared!r}")
        for objective in compared:
            if objective not in allowed:
                raise self._error(
                    f"{place}.objectives", f"no objective {objective!r}. {did_you_mean(str(objective), allowed)}"
                )
        chosen = None if start is None else starts[start]
        own = words.get("iterations")
        iterations = None if own is None else self._count(own, f"{place}.iterations")
        return Cell(name, source, chosen, self._dotted(settings, place), tuple(compared), iterations)

    def _tuning_cell(self, tuning: Mapping[str, Any], cells: Sequence[Cell]) -> Cell | None:
        if not tuning:
            return None
        named = {cell.name: cell for cell in cells}
        wanted = tuning.get("cell", cells[0].name)
        if wanted not in named:
            raise self._error("tuning.cell", f"no cell {wanted!r}. {did_you_mean(str(wanted), named)}")
        cell = named[wanted]
        return dataclasses.replace(cell, name=TUNING)

    def _section(self, name: str, allowed: Sequence[str] | None) -> dict[str, Any]:
        return self._mapping(self._document.get(name) or {}, name, allowed)

    def _mapping(self, given: Any, place: str, allowed: Sequence[str] | None) -> dict[str, Any]:
        given = {} if given is None else given
        if not isinstance(given, dict):
            raise self._error(place, f"expected 'key: value' lines, got {given!r}")
        for key in given if allowed is not None else ():
            if key not in allowed:  # type: ignore[operator]  # the loop is empty without
                raise self._error(place, f"no entry {key!r}. {did_you_mean(key, allowed or ())}")
        return given

    def _dotted(self, settings: dict[str, Any], place: str) -> Settings:
        for key in settings:
            if "." not in key:
                words = f", or one of {', '.join(_CELL_WORDS)}" if place.startswith("cells.") else ""
                raise self._error(f"{place}.{key}", f"expected a setting as section.key, e.g. training.lr{words}")
        return settings

    def _distinct(self, place: str, names: Sequence[str]) -> None:
        if twice := same_folder([*names, *([TUNING] if place == "cells" else [])]):
            raise self._error(place, twice)

    def _seeds(self, given: Any, place: str) -> tuple[int, ...]:
        right = isinstance(given, list) and given and all(type(seed) is int and seed >= 0 for seed in given)
        if not right or len(set(given)) < len(given):
            raise self._error(place, f"expected different whole numbers >= 0, e.g. [0, 1, 2], got {given!r}")
        return tuple(given)

    def _count(self, given: Any, place: str) -> int:
        if type(given) is not int or given < 1:
            raise self._error(place, f"expected a whole number >= 1, got {given!r}")
        return given

    def _error(self, place: str, problem: str) -> SettingError:
        return SettingError(f"{self._source}: {place}: {problem.rstrip('.')}.")

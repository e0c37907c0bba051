"""Loads a named run: a YAML file whose sections are builder calls, with dotted overrides on top."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib.configs.strict_yaml import parse_value, parse_yaml
from gspo_rllib.errors import GSPOError, SettingError, did_you_mean

if TYPE_CHECKING:
    from gspo_rllib.algorithms import GSPOConfig

BUILDERS = (
    "environment",
    "agent",
    "rl_module",
    "generation",
    "env_runners",
    "learners",
    "training",
    "evaluation",
    "debugging",
    "reporting",
    "framework",
    "checkpointing",
    "fault_tolerance",
    "resources",
    "python_environment",
    "experimental",
)
"""Sections that are builder calls: the builders whose arguments plain YAML can express."""

_UNIONS = (typing.Union, types.UnionType)
_NOT_TEXT = (int, float, bool, type(None), dict, list, tuple)

ON_COLLAPSE = ("stop", "restore")
"""What ``run.on_collapse`` may ask for."""

Sections = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """The ``run:`` section: when ``gspo-rllib train`` stops, and what it saves. The first limit reached stops it.

    Attributes:
        algorithm: What trains, by its registered name; its config has the builders that the sections call.
        name: Leading part of the results folder's name; None: the config's file name.
        storage: Folder that results are written under.
        iterations: Stop after this many; None: no limit.
        minutes: Stop when this much wall time has passed since the first iteration began; None: no limit.
        success: Stop when this share (0 … 1) of the trajectories succeeded: of an evaluation's where the run evaluates,
            of an iteration's own otherwise; None: never.
        evaluate_every: Iterations between evaluations on a fixed set of tasks, none of them drawn for training. Where
            set, they and not the iterations' own tasks, which differ from one to the next, are what progress, early
            stopping and the best checkpoint go by. None: no evaluation, unless the ``evaluation:`` section asks for it.
        evaluate_tasks: How many tasks that set has; each is played once. ``"all"`` where the environment counts them.
        on_collapse: What happens when an evaluation is below half of the best one, and that is no matter of luck: None
            says so, ``"stop"`` ends the run, ``"restore"`` goes back to the best checkpoint, with half the learning
            rate.
        give_up_after: Stop after this many consecutive iterations that had nothing to learn from; None: go on.
        checkpoint_every: Iterations between checkpoints; one is always written at the end. None: only that one.
        record_groups: Write every group that is sampled to ``groups.jsonl`` in the results folder; see
            ``gspo_rllib.load_groups``.
    """

    algorithm: str = "GSPO"
    name: str | None = None
    storage: str = "results"
    iterations: int | None = None
    minutes: float | None = None
    success: float | None = None
    evaluate_every: int | None = None
    evaluate_tasks: int | str = 128
    on_collapse: str | None = None
    give_up_after: int | None = None
    checkpoint_every: int | None = 10
    record_groups: bool = False

    def __post_init__(self) -> None:
        for key in ("iterations", "checkpoint_every", "evaluate_every", "evaluate_tasks", "give_up_after"):
            value = getattr(self, key)
            other = "all" if key == "evaluate_tasks" else None
            if value != other and (type(value) is not int or value < 1):
                raise SettingError(f"run.{key}: expected a whole number >= 1, got {value!r}.")
        for key, most in (("minutes", float("inf")), ("success", 1.0)):
            value = getattr(self, key)
            if value is not None and not (type(value) in (int, float) and 0 < value <= most):
                allowed = "a number > 0" if most > 1 else "a share in (0, 1]"
                raise SettingError(f"run.{key}: expected {allowed}, got {value!r}.")
        if type(self.record_groups) is not bool:
            raise SettingError(f"run.record_groups: expected true or false, got {self.record_groups!r}.")
        if self.on_collapse not in (None, *ON_COLLAPSE):
            hint = did_you_mean(str(self.on_collapse), ON_COLLAPSE)
            raise SettingError(f"run.on_collapse: got {self.on_collapse!r}. {hint}")
        if self.on_collapse is not None and self.evaluate_every is None:
            raise SettingError(
                f"run.on_collapse: {self.on_collapse!r} needs evaluations to see a collapse, and the checkpoint of the "
                "best one; set run.evaluate_every, e.g. 5."
            )
        for key in ("algorithm", "name", "storage"):
            value = getattr(self, key)
            if value is not None and not (isinstance(value, str) and value.strip()):
                raise SettingError(f"run.{key}: expected text, got {value!r}.")


@dataclass(frozen=True, slots=True)
class Run:
    """A loaded run.

    Attributes:
        name: The file's name without suffix, or ``run.name``.
        config: The algorithm config, every section applied.
        settings: The ``run:`` section.
        sections: The whole document after the overrides, for the record.
    """

    name: str
    config: GSPOConfig
    settings: RunSettings
    sections: Sections


def shipped_configs() -> dict[str, Path]:
    """The configs that come with the package: name to file.

    Example:
        >>> "calculator" in shipped_configs()
        True
    """
    return {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def load_config(source: str | Path, overrides: Iterable[str] = ()) -> GSPOConfig:
    """Loads a config from YAML.

    Args:
        source: A file, or the name of a shipped config, e.g. ``"calculator"``.
        overrides: ``"section.key=value"``, values written as in YAML, e.g. ``"training.lr=2e-5"``; deeper paths reach
            into mappings, e.g. ``"environment.env_config.operations=8"``.

    Returns:
        The config, unbuilt; ``.build_algo()`` makes the algorithm.

    Raises:
        SettingError: The file does not exist or is not YAML, or a section, key or value is not one a builder takes.
    """
    return load_run(source, overrides).config


def load_run(source: str | Path, overrides: Iterable[str] = ()) -> Run:
    """Like ``load_config``, with the ``run:`` section beside the config.

    Raises:
        SettingError: The file does not exist or is not YAML, or a section, key or value is not one a builder takes.
    """
    path = find_config(source)
    sections = read_sections(path)
    for override in overrides:
        apply_override(sections, override)
    run_section = sections.get("run", {})
    known = [field.name for field in fields(RunSettings)]
    for key in run_section:
        if key not in known:
            raise SettingError(f"{path.name}: run.{key}: no such setting. {did_you_mean(key, known)}")
    settings = RunSettings(**run_section)
    config = build_config(
        {name: section for name, section in sections.items() if name != "run"},
        algorithm=settings.algorithm,
        source=path.name,
    )
    if settings.evaluate_every is not None:
        if config.evaluation_interval:
            raise SettingError(
                f"{path.name}: both run.evaluate_every and evaluation.evaluation_interval say how often to evaluate; "
                "keep run.evaluate_every, and leave evaluation_interval out."
            )
        config.evaluation(
            evaluation_interval=settings.evaluate_every,
            evaluation_duration=settings.evaluate_tasks,
            evaluation_duration_unit="episodes",
        )
    return Run(settings.name or path.stem, config, settings, sections)


def find_config(source: str | Path) -> Path:
    """The file that a path or a shipped config's name means.

    Raises:
        SettingError: Neither exists.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(source) in shipped:
        return shipped[str(source)]
    hint = did_you_mean(path.stem, shipped)
    raise SettingError(f"config {str(source)!r}: no such file, and no shipped config of that name. {hint}")


def read_sections(path: Path) -> Sections:
    """Reads a file as a mapping of sections, each a mapping.

    Raises:
        SettingError: The file is not YAML of that shape.
    """
    document = parse_yaml(path.read_bytes(), source=path.name)
    if document is None:
        raise SettingError(f"{path.name}: empty; it needs at least the sections 'environment' and 'rl_module'.")
    if not isinstance(document, dict):
        raise SettingError(f"{path.name}: expected sections such as 'training:', got {_kind(document)}.")
    for name, section in document.items():
        if name not in (*BUILDERS, "run"):
            raise SettingError(f"{path.name}: no section {name!r}. {did_you_mean(name, (*BUILDERS, 'run'))}")
        if section is None:
            document[name] = {}
        elif not isinstance(section, dict):
            raise SettingError(f"{path.name}: section {name!r} must hold 'key: value' lines, got {_kind(section)}.")
    return document


def apply_override(sections: Sections, override: str) -> None:
    """Applies one ``section.key=value`` in place.

    Raises:
        SettingError: It has no ``=`` or no dot, names an unknown section, or reaches into something that is no mapping.
    """
    path, separator, text = override.partition("=")
    keys = path.strip().split(".")
    if not separator or len(keys) < 2 or not all(keys):
        raise SettingError(f"override {override!r}: expected section.key=value, e.g. training.lr=2e-5.")
    if keys[0] not in (*BUILDERS, "run"):
        hint = did_you_mean(keys[0], (*BUILDERS, "run"))
        raise SettingError(f"override {override!r}: no section {keys[0]!r}. {hint}")
    value = parse_value(text, source=f"override {override!r}")
    place: Any = sections
    for depth, key in enumerate(keys[:-1]):
        if place.get(key) is None:
            place[key] = {}
        place = place[key]
        if not isinstance(place, dict):
            reached = ".".join(keys[: depth + 1])
            raise SettingError(f"override {override!r}: {reached} is {_kind(place)}, so it has no keys to set.")
    place[keys[-1]] = value


def build_config(sections: Mapping[str, Mapping[str, Any]], *, algorithm: str = "GSPO", source: str) -> GSPOConfig:
    """Makes one builder call per section.

    Args:
        sections: Section name to keyword arguments.
        algorithm: The algorithm whose config is made; a name in ``gspo_rllib.algorithms.ALGORITHMS``.
        source: What messages call the file.

    Raises:
        SettingError: The algorithm is unknown, a key is not an argument of its builder, or the builder refuses a value.
    """
    from gspo_rllib.algorithms import ALGORITHMS, GSPOConfig

    if algorithm not in ALGORITHMS:
        raise SettingError(
            f"{source}: run.algorithm is {algorithm!r}; allowed: {', '.join(ALGORITHMS)}. "
            f"{did_you_mean(algorithm, ALGORITHMS)}"
        )
    config: GSPOConfig = ALGORITHMS[algorithm].get_default_config()
    for name, arguments in sections.items():
        builder = getattr(config, name)
        check_arguments(name, arguments, inspect.signature(builder), source=source)
        arguments = dict(arguments)
        try:
            if isinstance(arguments.get("evaluation_config"), dict):
                arguments["evaluation_config"] = GSPOConfig.overrides(**arguments["evaluation_config"])
            builder(**arguments)
        except GSPOError as error:
            raise SettingError(f"{source}: {error}") from error
        except (TypeError, ValueError, KeyError) as error:
            message = " ".join(str(error).split())[:300]
            raise SettingError(f"{source}: section {name!r} was refused by RLlib: {message}") from error
    return config


def check_arguments(section: str, arguments: Mapping[str, Any], signature: inspect.Signature, *, source: str) -> None:
    """Refuses keys that the builder does not take, and text where it takes a number.

    Args:
        section: The builder's name.
        arguments: The keyword arguments that the builder would be called with.
        signature: Signature of the builder, without ``self``.
        source: What messages call the file.

    Raises:
        SettingError: With the nearest allowed name, or the value without its quotes.
    """
    # RLlib gives arguments it no longer takes the default -1 ("deprecated"); none of the others defaults to it.
    allowed = {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        and not name.startswith("_")
        and (isinstance(parameter.default, bool) or parameter.default != -1)
    }
    for key, value in arguments.items():
        if key not in allowed:
            what = "RLlib no longer takes it" if key in signature.parameters else "no such setting"
            raise SettingError(f"{source}: {section}.{key}: {what}. {did_you_mean(key, allowed)}")
        annotation = allowed[key].annotation
        if isinstance(value, str) and not _may_be_text(annotation):
            unquoted = parse_value(value, source=f"{source}: {section}.{key}")
            takes = getattr(annotation, "__name__", str(annotation))
            hint = f"it takes {takes}." if isinstance(unquoted, str) else "write it without quotes."
            raise SettingError(f"{source}: {section}.{key}: got the text {value!r}; {hint}")


def _may_be_text(annotation: Any) -> bool:
    """False only where an annotation names nothing but numbers, booleans and containers."""
    members = typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else (annotation,)
    return any((typing.get_origin(member) or member) not in _NOT_TEXT for member in members)


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return f"{names.get(type(value), 'nothing')} ({value!r})" if value is not None else "nothing"

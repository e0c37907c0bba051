"""Loads a named run: a YAML file whose sections are builder calls, with dotted overrides on top."""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gspo_rllib import foreign_settings
from gspo_rllib.configs.run_settings import RunSettings
from gspo_rllib.configs.strict_yaml import parse_value, parse_yaml
from gspo_rllib.errors import GSPOError, SettingError, UnknownSettingError, did_you_mean, shown
from gspo_rllib.imports import undisturbed
from gspo_rllib.places import named_path

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

Sections = dict[str, dict[str, Any]]


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
    if "evaluate_tasks" in run_section and settings.evaluate_every is None:
        raise SettingError(
            f"{path.name}: run.evaluate_tasks is {shown(settings.evaluate_tasks)}, but nothing is evaluated: set "
            "run.evaluate_every, too, or leave it out."
        )
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
    path = named_path(source)
    if os.path.isfile(path):
        return path
    shipped = shipped_configs()
    if str(source) in shipped:
        return shipped[str(source)]
    hint = did_you_mean(path.stem, shipped)
    raise SettingError(f"config {shown(str(source))}: no such file, and no shipped config of that name. {hint}")


def read_sections(path: Path) -> Sections:
    """Reads a file as a mapping of sections, each a mapping.

    Raises:
        SettingError: The file is not YAML of that shape.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingError(f"config {shown(str(path))}: it cannot be read ({error.strerror}).") from error
    document = parse_yaml(content, source=path.name)
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
    with undisturbed():
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
        except UnknownSettingError as error:
            raise SettingError(f"{source}: section {name!r} was refused by RLlib: {error}") from error
        except GSPOError as error:
            raise SettingError(f"{source}: {error}") from error
        except (AttributeError, TypeError, ValueError, KeyError) as error:
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
    allowed = accepted(signature)
    for key, value in arguments.items():
        if key not in allowed:
            what = "RLlib no longer takes it" if key in signature.parameters else "no such setting"
            raise SettingError(f"{source}: {section}.{key}: {what}. {foreign_settings.hint(key, allowed)}")
        annotation = allowed[key].annotation
        if isinstance(value, str) and not _may_be_text(annotation):
            unquoted = parse_value(value, source=f"{source}: {section}.{key}")
            takes = type_name(annotation)
            hint = f"it takes {takes}." if isinstance(unquoted, str) else "write it without quotes."
            raise SettingError(f"{source}: {section}.{key}: got the text {value!r}; {hint}")


def accepted(signature: inspect.Signature) -> dict[str, inspect.Parameter]:
    """The arguments of a builder that a section may hold.

    Args:
        signature: Signature of the builder, without ``self``.
    """
    # RLlib gives arguments it no longer takes the default -1 ("deprecated"); none of the others defaults to it.
    return {
        name: parameter
        for name, parameter in signature.parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        and not name.startswith("_")
        and (isinstance(parameter.default, bool) or parameter.default != -1)
    }


def type_name(annotation: Any) -> str:
    """A type as people write it.

    Example:
        >>> type_name(typing.Optional[int]), type_name(typing.Union[int, str, None]), type_name("AlgorithmConfig")
        ('int or None', 'int or str or None', 'AlgorithmConfig')
    """
    if annotation is inspect.Parameter.empty or annotation is Any:
        return "anything"
    members = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Union or type(annotation).__name__ == "UnionType":
        return " or ".join(dict.fromkeys(type_name(member) for member in members))
    if isinstance(annotation, (str, typing.ForwardRef)):
        return annotation if isinstance(annotation, str) else annotation.__forward_arg__
    origin = typing.get_origin(annotation) or annotation
    if origin is type(None):
        return "None"
    return str(getattr(origin, "__name__", origin)).removeprefix("typing.")


def _may_be_text(annotation: Any) -> bool:
    """False only where an annotation names nothing but numbers, booleans and containers."""
    members = typing.get_args(annotation) if typing.get_origin(annotation) in _UNIONS else (annotation,)
    return any((typing.get_origin(member) or member) not in _NOT_TEXT for member in members)


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return f"{names.get(type(value), 'nothing')} ({value!r})" if value is not None else "nothing"

"""Settings as frozen dataclasses: the one home of every knob's default, range, unit, effect and source.

``AlgorithmConfig`` keeps knobs as flat attributes, so that Ray Tune can sweep them. A builder method decorated with
``takes(SomeSettings)`` accepts that class's fields, refuses anything else with a suggestion, and carries their
documentation as its own signature and docstring. Whatever uses the values reads them as one checked object,
``SomeSettings.of(config)``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar

import numpy as np

from gspo_rllib.errors import ArgumentError, SettingError, did_you_mean, shown
from gspo_rllib.foreign_settings import hint

LARGEST_COUNT = 2**31 - 1
"""Largest whole number where a knob names no limit of its own: more is a slip, and no counter of torch's holds it."""

_Config = TypeVar("_Config")
_Arguments = ParamSpec("_Arguments")


def knob(
    default: Any,
    effect: str,
    *,
    source: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    low_open: bool = False,
    choices: tuple[Any, ...] | None = None,
    also: tuple[Any, ...] = (),
    form: Callable[[Any], str | None] | None = None,
) -> Any:
    """A documented field.

    Args:
        default: The value where the user sets none.
        effect: What the setting changes, as a sentence.
        source: Where the default comes from.
        unit: Unit of the value, e.g. "tokens"; "" for none.
        low: Smallest allowed value.
        high: Largest allowed value.
        low_open: Whether ``low`` itself is excluded.
        choices: All allowed values, for a field that is not a number.
        also: Values that are allowed besides those of the range, e.g. a 0 that stands apart.
        form: For a value that has parts; says what they must be where they are not: ``gspo_rllib.value_forms``.
    """
    metadata = {
        "effect": effect,
        "source": source,
        "unit": unit,
        "low": low,
        "high": high,
        "low_open": low_open,
        "choices": choices,
        "also": also,
        "form": form,
    }
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


_Settings = TypeVar("_Settings", bound="Settings")


class Settings:
    """Base of a settings dataclass: checks every field against its knob when it is made."""

    SECTION: ClassVar[str]
    REFUSED: ClassVar[Mapping[str, str]] = {}
    """Settings a user may look for that do not exist, and why."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = plain(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            check(f"{self.SECTION}.{field.name}", value, hints[field.name], field.metadata)

    @classmethod
    def of(cls, config: Any) -> Self:
        """The settings as they are now in a config, checked.

        Args:
            config: An ``AlgorithmConfig``, which keeps each of them as an attribute of its own. One that was saved
                before a setting existed has its default.

        Raises:
            SettingError: A value is illegal.
        """
        return cls(**{field.name: getattr(config, field.name, default_of(field)) for field in dataclasses.fields(cls)})


@typing.dataclass_transform(kw_only_default=True)
def settings_dataclass(cls: type[_Settings]) -> type[_Settings]:
    """Decorates a settings class: makes it a frozen, keyword-only dataclass.

    A type checker is not told that it is frozen: the same class tells it which attributes a config has
    (``PolicyGradientConfig``), and a config's may be set.
    """
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


@typing.dataclass_transform()
def positional_settings_dataclass(cls: type[_Settings]) -> type[_Settings]:
    """Likewise, for a class whose knobs before ``_: dataclasses.KW_ONLY`` may be given without their names."""
    return dataclasses.dataclass(frozen=True)(cls)


def plain(value: Any) -> Any:
    """A number, flag or text of numpy's as Python's own; anything else, arrays included, as it is.

    Example:
        >>> plain(np.int64(3)), plain(np.bool_(True)), plain([np.int64(3)]) == [3]
        (3, True, True)
    """
    return value.item() if isinstance(value, np.generic) else value


def check(name: str, value: Any, hint: Any, metadata: Any) -> None:
    """Raises SettingError unless ``value`` has the type, the range or one of the choices of its knob."""
    value, kinds = plain(value), _kinds(hint)
    if (value is None and type(None) in kinds) or is_one_of(value, metadata["also"]):
        return
    allowed = allowed_text(hint, metadata)
    choices = metadata["choices"]
    if choices is not None:
        if not is_one_of(value, choices):
            texts = [choice for choice in choices if isinstance(choice, str)]
            guess = did_you_mean(value, texts) if isinstance(value, str) and texts else ""
            raise SettingError(f"{name} is {shown(value)}; allowed: {allowed}. {guess}".rstrip())
        return
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = float in kinds if isinstance(value, int) and is_number else False
    # A bool is an int in Python, but never a number here.
    if not fits and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
        hint_text = ""
        if isinstance(value, str) and {int, float} & set(kinds):
            hint_text = "; it was given as text"
        raise SettingError(f"{name} is {shown(value)}; allowed: {allowed}{hint_text}")
    if is_number and (problem := _out_of_range(value, metadata)) is not None:
        raise SettingError(f"{name} is {shown(value)}; allowed: {allowed}{problem}")
    form = metadata["form"]
    if form is not None and not is_number and (expected := form(value)) is not None:
        raise SettingError(f"{name} is {shown(value)}; allowed: {expected}")


def is_one_of(value: Any, choices: tuple[Any, ...]) -> bool:
    """Whether a value is one of these texts, flags or numbers.

    Example:
        >>> is_one_of(1, (True, False)), is_one_of(np.array(["a", "b"]), ("a",)), is_one_of(0, (0.0,))
        (False, False, True)
    """
    # 1 equals True in Python, but is no switch here; and an array is not asked, since it would answer with an array.
    return any(
        isinstance(value, type(choice) if isinstance(choice, (str, bool, type(None))) else (int, float))
        and isinstance(value, bool) == isinstance(choice, bool)
        and value == choice
        for choice in choices
    )


def _out_of_range(value: float, metadata: Any) -> str | None:
    """None for a number in the range of its knob; else what to add to the words for the range."""
    low, high = metadata["low"], metadata["high"]
    # Python's whole numbers may be larger than any float.
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    if low is not None and (value <= low if metadata["low_open"] else value < low):
        return ""
    if high is not None:
        return "" if value > high else None
    return f", <= {LARGEST_COUNT}" if isinstance(value, int) and value > LARGEST_COUNT else None


def _kinds(hint: Any) -> tuple[type, ...]:
    """The plain types of a field's annotation."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return tuple(typing.get_origin(member) or member for member in members)


def allowed_text(hint: Any, metadata: Any) -> str:
    """What a knob allows, in words: choices, or type and range."""
    if metadata["choices"] is not None:
        return ", ".join(repr(choice) for choice in metadata["choices"])
    text = " or ".join("None" if kind is type(None) else kind.__name__ for kind in _kinds(hint))
    low, high = metadata["low"], metadata["high"]
    if low is not None:
        text += f", {'>' if metadata['low_open'] else '>='} {low:g}"
    if high is not None:
        text += f", <= {high:g}"
    return text + "".join(f", or {value!r}" for value in metadata["also"])


def takes(
    settings: Callable[_Arguments, Settings],
) -> Callable[[Callable[..., Any]], Callable[Concatenate[_Config, _Arguments], _Config]]:
    """Decorates a builder method ``method(self, **kwargs)`` of an ``AlgorithmConfig``.

    The wrapped method sets the knobs of ``settings`` as attributes of the config and hands the other arguments to the
    method itself, whose base class's parameters they must be. To a type checker it takes exactly the arguments of the
    settings class's own constructor, and returns the config it was called on. The class is its attribute ``settings``.
    """
    assert isinstance(settings, type) and issubclass(settings, Settings)
    group: type[Settings] = settings
    fields = {field.name: field for field in dataclasses.fields(group)}
    positional = [field.name for field in dataclasses.fields(group) if not field.kw_only]
    hints = typing.get_type_hints(group)

    def decorate(method: Callable[..., Any]) -> Callable[Concatenate[_Config, _Arguments], _Config]:
        inherited = _inherited_parameters(method)

        @functools.wraps(method)
        def builder(self: Any, *args: Any, **kwargs: Any) -> Any:
            if len(args) > len(positional) or kwargs.keys() & positional[: len(args)]:
                try:
                    inspect.signature(builder).bind(self, *args, **kwargs)
                except TypeError as error:
                    raise ArgumentError(
                        f"{method.__name__}: {error}, got {', '.join(map(shown, args))}. Give settings by name, e.g. "
                        f"{method.__name__}({(positional or list(fields))[0]}=...)."
                    ) from error
            kwargs |= zip(positional, args, strict=False)
            for name in kwargs:
                if name in group.REFUSED:
                    raise SettingError(f"{method.__name__}.{name} is refused: {group.REFUSED[name]}")
                if name not in fields and name not in inherited:
                    raise ArgumentError(f"{method.__name__}.{name} is unknown. {hint(name, [*fields, *inherited])}")
            for name in [n for n in kwargs if n in fields]:
                setattr(self, name, kwargs.pop(name))
            return method(self, **kwargs)

        empty, either = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        own = [
            inspect.Parameter(
                name, empty if field.kw_only else either, default=default_of(field), annotation=hints[name]
            )
            for name, field in fields.items()
        ]
        rest = [p.replace(kind=empty) for name, p in inherited.items() if name not in fields]
        this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        vars(builder)["settings"] = group
        vars(builder)["__signature__"] = inspect.Signature([this, *own, *rest])
        builder.__doc__ = f"{inspect.cleandoc(method.__doc__ or '')}\n\nArgs:\n{describe(group)}"
        return typing.cast("Callable[Concatenate[_Config, _Arguments], _Config]", builder)

    return decorate


def with_defaults(settings: type[_Settings], name: str, changes: Mapping[str, tuple[Any, str]]) -> type[_Settings]:
    """The same knobs with other defaults.

    Args:
        settings: The settings to start from.
        name: Name of the new class.
        changes: Name of each knob whose default changes, to ``(default, source)``.

    Example:
        >>> @settings_dataclass
        ... class Training(Settings):
        ...     SECTION = "training"
        ...     clip_low: float = knob(3e-4, "Lower clip range.", low=0.0, source="GSPO")
        >>> with_defaults(Training, "Wide", {"clip_low": (0.2, "GRPO")})().clip_low
        0.2
    """
    old = {field.name: field for field in dataclasses.fields(settings)}
    hints = typing.get_type_hints(settings)
    fields = {
        knob_name: dataclasses.field(default=default, metadata={**old[knob_name].metadata, "source": source})
        for knob_name, (default, source) in changes.items()
    }
    namespace = {"__annotations__": {n: hints[n] for n in fields}, "__module__": settings.__module__, **fields}
    return settings_dataclass(type(name, (settings,), namespace))


def _inherited_parameters(method: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters of the RLlib builder of the same name; none for a builder group that RLlib does not have."""
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    base = getattr(AlgorithmConfig, method.__name__, None)
    parameters = inspect.signature(base).parameters if base is not None else {}
    return {n: p for n, p in parameters.items() if n != "self"}


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A knob's default, made by its factory if it has one."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def describe(settings: type[Settings]) -> str:
    """One docstring line per knob: effect, unit, what is allowed, default and its source."""
    hints = typing.get_type_hints(settings)
    lines = []
    for field in dataclasses.fields(settings):
        meta = field.metadata
        unit = f" Unit: {meta['unit']}." if meta["unit"] else ""
        lines.append(
            f"    {field.name}: {meta['effect']}{unit} Allowed: {allowed_text(hints[field.name], meta)}. "
            f"Default: {default_of(field)!r} ({meta['source']})."
        )
    return "\n".join(lines)

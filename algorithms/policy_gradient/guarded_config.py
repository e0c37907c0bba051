"""RLlib's ``AlgorithmConfig``, whose refusals are this package's errors: the one place where they are translated.

RLlib looks at a value when its builder is called, when the config is validated, or never, and answers with whatever
Python raised. Here each of these is a ``SettingError`` that says what was got, what is allowed and what to do.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.policy.policy import PolicySpec

from gspo_rllib.algorithms.policy_gradient import rllib_checks
from gspo_rllib.errors import (
    ArgumentError,
    GSPOError,
    ReadOnlyError,
    SettingError,
    UnknownSettingError,
    shown,
)
from gspo_rllib.foreign_settings import hint
from gspo_rllib.knobs import plain

_FOREIGN = (AttributeError, TypeError, ValueError, LookupError, ArithmeticError, AssertionError)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Inside ``with``, what RLlib raises about a setting is a ``SettingError`` of one sentence.

    Args:
        what: What messages call the place.

    Raises:
        SettingError: RLlib refused something.
    """
    try:
        yield
    except GSPOError:
        raise
    except _FOREIGN as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise SettingError(f"{what}: RLlib refuses it: {said}") from error


class GuardedConfig(AlgorithmConfig):
    """An ``AlgorithmConfig`` that refuses in words; which settings there are is the subclass's business."""

    def __setattr__(self, key: str, value: Any) -> None:
        """Sets an attribute, numpy's numbers as Python's own.

        Raises:
            ReadOnlyError: An algorithm has been built with this config, or the attribute follows from others.
        """
        try:
            super().__setattr__(key, plain(value))
        except AttributeError as error:
            if not vars(self).get("_is_frozen"):
                raise ReadOnlyError(
                    f"config.{key} cannot be set to {shown(value)}: it follows from what its builder sets, e.g. "
                    "rl_module(model_config={...})."
                ) from error
            raise ReadOnlyError(
                f"config.{key} cannot be set to {shown(value)}: an algorithm has been built with this config. Change a "
                f"copy: config.copy(copy_frozen=False), then build another algorithm with it."
            ) from error

    @classmethod
    def overrides(cls, **kwargs: Any) -> dict[str, Any]:
        """RLlib's ``overrides``: settings for ``evaluation_config``.

        Raises:
            UnknownSettingError: One is unknown; a ``KeyError``, as RLlib's own, with the nearest setting.
        """
        try:
            rllib_checks.check_keys(kwargs, cls(), "overrides")
        except SettingError as error:
            raise UnknownSettingError(str(error)) from None
        return {rllib_checks.attribute_of(name): value for name, value in kwargs.items()}

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any]) -> Self:
        """A config with what a dict sets.

        Args:
            config_dict: As for ``update_from_dict``.

        Raises:
            SettingError: It is no dict, or a key is no setting.
        """
        if not isinstance(config_dict, Mapping):
            raise ArgumentError(f"from_dict got {shown(config_dict)}; allowed: a dict of settings")
        made: Self = super().from_dict(dict(config_dict))
        return made

    def update_from_dict(self, config_dict: Mapping[str, Any]) -> Self:
        """Sets attributes from a dict, as Ray Tune does.

        Args:
            config_dict: Attribute to value. ``model_config`` stands for ``rl_module(model_config=...)``.

        Raises:
            SettingError: A key is no setting, here or in ``evaluation_config``, or RLlib refuses a value.
        """
        if not isinstance(config_dict, Mapping | AlgorithmConfig):
            raise ArgumentError(f"update_from_dict got {shown(config_dict)}; allowed: a dict of settings, or a config")
        # Of RLlib's own, a whole config; of Tune, where an experiment goes on, one that was written as JSON.
        own = {name: _read_back(value, getattr(self, str(name), None)) for name, value in config_dict.items()}
        rllib_checks.check_keys(own, self, "config")
        rllib_checks.check_overrides(own.get("evaluation_config"), self)
        if "model_config" in own:
            self.rl_module(model_config=own.pop("model_config"))
        with translated("config"):
            super().update_from_dict(own)
        return self

    def get_state(self) -> dict[str, Any]:
        """RLlib's state, whole: RLlib leaves out whatever is -1, its mark of a deprecated setting.

        What a user set to -1 would silently become the default when the algorithm is built.
        """
        state: dict[str, Any] = super().get_state()
        marked = vars(AlgorithmConfig())
        given = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, (int, float)) and value == -1 and marked.get(name) != -1
        }
        return {**state, **given}

    def validate(self) -> None:
        """RLlib's own checks.

        Raises:
            SettingError: It refuses something.
        """
        with translated("config"):
            super().validate()


def _guarded(name: str) -> Callable[..., Any]:
    """A builder of RLlib's that says what it takes, where it is given something else."""
    builder = getattr(AlgorithmConfig, name)
    signature = inspect.signature(builder)

    @functools.wraps(builder)
    def guarded(self: GuardedConfig, *args: Any, **kwargs: Any) -> Any:
        try:
            signature.bind(self, *args, **kwargs)
        except TypeError as error:
            known = [parameter for parameter in signature.parameters if parameter != "self"]
            for key in kwargs:
                if key not in known:
                    raise ArgumentError(f"{name}.{key} is unknown. {hint(key, known)}") from error
            raise ArgumentError(
                f"{name}: {error}: {', '.join(map(shown, args))}. Give settings by name, e.g. {name}({known[0]}=...)."
            ) from error
        rllib_checks.check_overrides(kwargs.get("evaluation_config"), self)
        try:
            return builder(self, *args, **kwargs)
        except (*_FOREIGN, GSPOError) as error:
            if isinstance(error, ReadOnlyError):
                raise
            rllib_checks.check_arguments(name, kwargs)
            if isinstance(error, GSPOError):
                raise
            given = ", ".join([*map(shown, args), *(f"{key}={shown(value)}" for key, value in kwargs.items())])
            with translated(f"{name}({given})"):
                raise

    return guarded


if not TYPE_CHECKING:
    for _name in {setting.builder for setting in rllib_checks.RLLIB_SETTINGS.values()} - {""}:
        setattr(GuardedConfig, _name, _guarded(_name))


def _read_back(value: Any, default: Any) -> Any:
    """A value that was written as JSON, which knows neither tuples nor enumerations, as what its default is.

    Example:
        >>> _read_back({"a": [1, 2], "b": [3]}, {"a": (0, 0), "b": []})
        {'a': (1, 2), 'b': [3]}
    """
    if isinstance(value, dict) and isinstance(default, dict):
        return {key: _read_back(entry, default.get(key)) for key, entry in value.items()}
    if isinstance(value, list) and isinstance(default, tuple | PolicySpec):
        return tuple(value)  # as RLlib's own to_dict has a PolicySpec
    if isinstance(default, enum.Enum) and type(value) is str and value in [member.value for member in type(default)]:
        return type(default)(value)
    return value

"""Refuses settings of RLlib's that would be accepted and ignored, and names that are no setting at all."""

from __future__ import annotations

import difflib
import functools
import inspect
import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils import force_list
from ray.rllib.utils.from_config import NotProvided
from ray.util.debug import log_once

from gspo_rllib.algorithms.policy_gradient.rllib_setting import RLlibSetting
from gspo_rllib.algorithms.policy_gradient.rllib_settings import RLLIB_SETTINGS
from gspo_rllib.errors import SettingError, did_you_mean, shown
from gspo_rllib.foreign_settings import REMEDIES, hint
from gspo_rllib.knobs import LARGEST_COUNT, is_one_of, plain
from gspo_rllib.value_forms import is_finite

logger = logging.getLogger("gspo_rllib")

_OTHER_KEYS = {
    **{"callbacks": "callbacks_class", "create_env_on_driver": "create_env_on_local_worker"},
    **{"custom_eval_function": "custom_evaluation_function", "framework": "framework_str", "input": "input_"},
    **{"lambda": "lambda_", "num_cpus_for_driver": "num_cpus_for_main_process", "num_workers": "num_env_runners"},
    "model_config": "_model_config",
}
"""Keys of a config dict that are not the attribute's own name."""

_RLLIB_S_OWN = frozenset({"multiagent", "_enable_new_api_stack", "replay_buffer_config", "class"})
"""Keys that RLlib puts into dicts and states, or takes apart itself."""

_SET_INSTEAD = {"num_env_runners": "evaluation_num_env_runners"}
"""What says for an evaluation what the setting of that name says for training."""


@functools.cache
def argument(name: str) -> str:
    """How a user calls an attribute: as the argument of the builder that sets it.

    Example:
        >>> argument("_learner_class"), argument("callbacks_on_sample_end"), argument("_is_online")
        ('learners.learner_class', 'callbacks.on_sample_end', 'config._is_online')
    """
    builder = RLLIB_SETTINGS[name].builder
    parameters = inspect.signature(getattr(AlgorithmConfig, builder)).parameters if builder else {}
    other = {"framework_str": "framework", "stats_cls_lookup": "custom_stats_cls_lookup"}.get(name)
    written = (name, other, name.lstrip("_"), name.removeprefix("callbacks_"))
    found = next((word for word in written if word in parameters), None)
    return f"{builder}.{found}" if found else f"config.{name}"


def check_attributes(config: Any, defaults: Mapping[str, Any]) -> None:
    """Refuses attributes that would be ignored, or that are none, however they were set.

    Args:
        config: The config.
        defaults: The attributes of a config nobody has set anything in.

    Raises:
        SettingError: Says what was got, what is allowed and what to do.
    """
    unknown = [name for name in vars(config) if not name.startswith("_") and name not in _RLLIB_S_OWN]
    own = vars(type(config)())
    for name in unknown:
        if name not in own and not hasattr(type(config), name):
            raise SettingError(
                f"config.{name} is no setting. {did_you_mean_or_own(name, own)} What your own code reads may be put "
                "into learners(learner_config_dict={...}), or be set in the constructor of a config class of yours."
            )
    for name, setting in RLLIB_SETTINGS.items():
        value = getattr(config, name, defaults[name])
        if not _is_default(name, value, defaults[name]):
            _check_value(name, value, defaults[name], setting)
    _check_classes(config)


def check_arguments(builder: str, arguments: Mapping[str, Any]) -> None:
    """Refuses arguments of one of RLlib's builders that are not what the table says; for a builder that failed.

    Args:
        builder: Name of the method.
        arguments: What it was called with.

    Raises:
        SettingError: Says what was got, what is allowed and what to do.
    """
    defaults = vars(AlgorithmConfig())
    for name, setting in RLLIB_SETTINGS.items():
        key = argument(name).partition(".")[2]
        value = arguments.get(key, NotProvided) if setting.builder == builder else NotProvided
        if value is not NotProvided and not _is_default(name, value, defaults[name]):
            _check_value(name, value, defaults[name], setting)


def check_keys(keys: Iterable[str], config: Any, where: str) -> None:
    """Refuses keys of a config dict that are no setting.

    Args:
        keys: The keys.
        config: What they are to be set in.
        where: What messages call the dict.

    Raises:
        SettingError: With the nearest setting.
    """
    known = {*vars(config), *_OTHER_KEYS, *_settable(type(config))}
    for key in keys:
        # Ray Tune hands a trial what it needs itself in the same dict, as __trial_info__ and the like.
        if key not in known and key not in _RLLIB_S_OWN and not str(key).startswith("__"):
            raise SettingError(f"{where}[{key!r}] is no setting. {did_you_mean_or_own(str(key), known)}")


def check_overrides(overrides: Any, config: Any) -> None:
    """``check_keys`` for an ``evaluation_config``, which may also be a whole config, or None."""
    if isinstance(overrides, Mapping):
        check_keys(overrides, config, "evaluation.evaluation_config")


def check_evaluation_keys(overrides: Mapping[str, Any], config: Any, *, trains: Collection[str]) -> None:
    """Refuses overrides that change nothing in an evaluation.

    Args:
        overrides: ``evaluation_config``, its keys known.
        config: The training config.
        trains: This package's own settings that only training reads.

    Raises:
        SettingError: Says where the setting belongs.
    """
    for key, value in overrides.items():
        name = attribute_of(key)
        setting = RLLIB_SETTINGS.get(name)
        ignored = name in trains if setting is None else setting.fate in ("used", "forwarded") and not setting.evaluates
        if not ignored or _is_default(name, value, getattr(config, name, None)):
            continue
        instead = _SET_INSTEAD.get(name)
        remedy = f"Set evaluation.{instead}." if instead else "Set it for training, or leave it out."
        raise SettingError(
            f"evaluation.evaluation_config[{key!r}] is {shown(value)}, which has no effect on an evaluation. {remedy}"
        )
    temperature = overrides.get("temperature", 0.0)
    greedy = overrides.get("explore", config.explore) is False
    if greedy and not is_one_of(temperature, (0.0, config.temperature)):
        raise SettingError(
            f"evaluation.evaluation_config['temperature'] is {shown(temperature)}, which has no effect with "
            "explore=False: that takes the likeliest token. Leave one of the two out."
        )


def did_you_mean_or_own(got: str, allowed: Collection[str]) -> str:
    """``hint`` without the list of everything, which is hundreds of names here."""
    near = got in REMEDIES or difflib.get_close_matches(got, allowed, n=1)
    return hint(got, allowed) if near else "docs/settings.md lists them."


def attribute_of(key: str) -> str:
    """The attribute that a key of a config dict sets."""
    return _OTHER_KEYS.get(key, key)


def _settable(config_class: type) -> set[str]:
    """Properties that can be set, such as RLlib's ``train_batch_size_per_learner``."""
    members = inspect.getmembers(config_class, lambda member: isinstance(member, property))
    return {name for name, member in members if member.fset is not None}


def _is_default(name: str, value: Any, default: Any) -> bool:
    if name == "policies":
        return bool(_plain_policies(value) == _plain_policies(default))
    if value is default:
        return True
    if inspect.isfunction(value) and inspect.isfunction(default):
        # A config that was sent to another process holds a copy.
        return (value.__module__, value.__qualname__) == (default.__module__, default.__qualname__)
    # True == 1 in Python, but a flag is no number.
    if isinstance(value, bool) != isinstance(default, bool):
        return False
    try:
        return bool(value == default)
    except Exception:  # noqa: BLE001, a foreign object's comparison may fail in any way
        return False


def _plain_policies(policies: Any) -> Any:
    """Policies by name as RLlib's states hold them."""
    if not isinstance(policies, Mapping):
        return dict.fromkeys(policies) if isinstance(policies, Collection) else policies
    return {name: spec.get_state() if hasattr(spec, "get_state") else spec for name, spec in policies.items()}


def allowed(setting: RLlibSetting, default: Any) -> str:
    """What a setting allows, in words; "" where nothing is said of it.

    Args:
        setting: Row in the table.
        default: Value where nobody sets one.
    """
    if setting.fate == "refused":
        return shown(default)
    others = "".join(f", or {other!r}" for other in setting.also)
    if setting.choices is not None:
        return ", ".join(map(repr, setting.choices)) + others
    if setting.at_least is not None:
        kind = "a whole number" if setting.whole else "a number"
        kind += ", a whole one above 1" if setting.whole_above_1 else ""
        most = "" if setting.at_most is None else f", <= {setting.at_most:.10g}"
        return f"{kind}, >= {setting.at_least:g}{most}{others}"
    # No form takes an object of no class but the most general, and each says what it takes instead.
    return "" if setting.form is None else str(setting.form(object()))


def said_of(place: str) -> tuple[str, str, bool]:
    """What ``builder.argument`` of RLlib's does, what it allows, in words, and whether any other value is refused.

    Example:
        >>> said_of("debugging.seed")[1:], said_of("training.clip_low")
        (('a whole number, >= 0, <= 4290000000', False), ('', '', False))
        >>> said_of("training.grad_clip_by")[1:]
        ("'global_norm'; refused otherwise", True)
    """
    for name, setting in RLLIB_SETTINGS.items():
        if argument(name) == place:
            if setting.fate == "refused":
                return setting.note, f"{allowed(setting, vars(AlgorithmConfig())[name])}; refused otherwise", True
            return setting.note, allowed(setting, None), False
    return "", "", False


def _check_value(name: str, value: Any, default: Any, setting: RLlibSetting) -> None:
    if is_one_of(value, setting.also):
        return
    words = allowed(setting, default)
    if setting.fate == "refused":
        raise SettingError(f"{argument(name)} is {_difference(value, default)}; allowed: {words}. {setting.note}")
    fits = setting.choices is None or is_one_of(value, setting.choices)
    fits = fits and (setting.at_least is None or _fits(plain(value), setting))
    if not fits or (setting.form is not None and setting.form(value) is not None):
        texts = [choice for choice in setting.choices or () if isinstance(choice, str)]
        guess = did_you_mean(value, texts) if isinstance(value, str) and texts else ""
        raise SettingError(f"{argument(name)} is {shown(value)}; allowed: {words}. {guess}".rstrip())


def _fits(value: Any, setting: RLlibSetting) -> bool:
    most = LARGEST_COUNT if setting.at_most is None else setting.at_most
    assert setting.at_least is not None
    if not is_finite(value) or (setting.whole and not isinstance(value, int)):
        return False
    fits_whole = not setting.whole_above_1 or value < 1 or value == int(value)
    return setting.at_least <= value <= most and fits_whole


def _difference(value: Any, default: Any) -> str:
    """The value; of a dict of many settings, those that differ."""
    if isinstance(value, Mapping) and isinstance(default, Mapping):
        value = {key: entry for key, entry in value.items() if key not in default or entry != default[key]} or value
    return shown(value)


def _check_classes(config: Any) -> None:
    from gspo_rllib.env_runners.agent_env_runner import AgentEnvRunner
    from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
    from gspo_rllib.learners.language_learner import LanguageLearner
    from gspo_rllib.modules import CausalLMModule

    runner = LanguageEnvRunner if config.play is None else AgentEnvRunner
    _check_class("env_runners.env_runner_cls", config.env_runner_cls, runner)
    _check_class("learners.learner_class", config._learner_class, LanguageLearner, optional=True)
    spec = config._rl_module_spec
    if spec is not None:
        if not isinstance(spec, RLModuleSpec):
            raise SettingError(
                f"rl_module.rl_module_spec is {shown(spec)}; allowed: an RLModuleSpec. There is one policy, "
                f"{DEFAULT_MODULE_ID!r}."
            )
        _check_class("rl_module.rl_module_spec.module_class", spec.module_class, CausalLMModule, optional=True)
        if spec.model_config:
            raise SettingError(
                f"rl_module.rl_module_spec.model_config is {shown(spec.model_config)}; allowed: None. Env runners "
                "would not see it. Set rl_module(model_config={...})."
            )
    for callbacks in force_list(config.callbacks_class):
        if isinstance(callbacks, type):
            _check_class("callbacks.callbacks_class", callbacks, RLlibCallback)
        overridden = getattr(callbacks, "on_environment_created", None)
        if overridden is not RLlibCallback.on_environment_created and log_once(f"gspo_rllib_{callbacks}_environment"):
            logger.warning(
                "callbacks.callbacks_class: %s.on_environment_created is never called. %s",
                getattr(callbacks, "__name__", callbacks),
                RLLIB_SETTINGS["callbacks_on_environment_created"].note,
            )


def _check_class(name: str, value: Any, base: type, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not (isinstance(value, type) and issubclass(value, base)):
        raise SettingError(f"{name} is {shown(value)}; allowed: {base.__name__}, or a subclass of it.")

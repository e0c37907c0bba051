"""A config as data: its settings as they are, and classes and functions in it by name.

What has no name (a lambda, an object) is marked as missing, and whoever loads the config gives it again. What would run
code, or reach outside, is looked up only as far as the caller trusts it; see ``checkpoints.code``.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.learner.learner import Learner
from ray.rllib.core.rl_module.rl_module import RLModule, RLModuleSpec
from ray.rllib.env.env_runner import EnvRunner

from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.algorithms.policy_gradient import rllib_checks
from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig
from gspo_rllib.algorithms.policy_gradient.reporting_settings import ReportingSettings
from gspo_rllib.algorithms.policy_gradient.rllib_settings import RLLIB_SETTINGS
from gspo_rllib.checkpoints import POLICY, REFERENCE, register
from gspo_rllib.checkpoints.code import Trust, name_of, refusal
from gspo_rllib.checkpoints.codec import NotDataError, encode, read_tree, write_tree
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import CheckpointError, shown
from gspo_rllib.learners.sharding_settings import LearnersSettings
from gspo_rllib.model_files import ADAPTER_WEIGHTS
from gspo_rllib.secret_texts import names_secret, without_secrets

NAME = "algorithm"
"""Of the files, without their endings."""
_CODE, _SPEC, _MISSING, _SECRET = "code of", "module spec of", "missing", "secret"
"""Keys that stand for a class or function, a module spec, what could not be saved, and what no checkpoint may hold."""

_KINDS: Mapping[str, type] = {
    "env": gym.Env,
    "env_runner_cls": EnvRunner,
    "_learner_class": Learner,
    "callbacks_class": RLlibCallback,
    "_rl_module_spec": RLModule,
}
"""What the class of a setting must be; those of this package's own need no trust then."""
_NOT_SAVED = frozenset({"class", "policies", "algo_class", "_is_frozen"})
OF_COMMAND = "is_of_the_command"
"""Attribute of a callback that a command adds for its own time: no part of what is trained, and not saved."""
PLAYED = frozenset({"env", "env_config", "curriculum", "play", "tasks", "evaluation_config"})
"""Settings that say what is played."""
_PLAIN_WORD = re.compile(r"\w+")


def save_config(algorithm: Algorithm, folder: pathlib.Path) -> None:
    """Writes the class of an algorithm and its config into a checkpoint."""
    config = algorithm.config
    _register_names(config)
    # Ray Tune trains a class of its own making, which has no name, and is the config's in all that matters.
    kind = type(algorithm) if name_of(type(algorithm)) is not None else config.algo_class
    tree = {"algorithm": name_of(kind), "config": name_of(type(config)), "settings": _settings(config)}
    register(kind, type(config))
    write_tree(folder, tree, name=NAME)


def load_config(
    folder: pathlib.Path, trust: Trust, *, passed_over: Collection[str] = (), begins_with_adapter: bool = False
) -> tuple[type[Algorithm], dict[str, Any]]:
    """The class of the algorithm and the config's state, its model paths replaced by those inside the checkpoint.

    Args:
        folder: A verified checkpoint.
        trust: What the checkpoint may name.
        passed_over: Settings that the caller gives anew; what the checkpoint has of them is not looked at.
        begins_with_adapter: Whether a policy that is built from the config has the checkpoint's adapter, as one that
            nothing is restored into needs.

    Raises:
        CheckpointError: It names what it may not, says nothing of a setting that could not be saved, or the model below
            its adapter is no longer there.
    """
    algorithm_class, tree = _read(folder, trust)
    config_class = trust.find(tree["config"], kind=PolicyGradientConfig, what="config class", where=str(folder))
    loader = _Loader(folder, trust, config_class)
    state = {name: loader.value(name, saved) for name, saved in tree["settings"].items() if name not in passed_over}
    state["_model_config"] = _model_config(folder, state, begins_with_adapter=begins_with_adapter)
    has_reference = (folder / REFERENCE).is_dir()
    if state.get("kl_coeff") and not (has_reference or _has_adapter(folder)):
        raise CheckpointError(f"checkpoint {folder}: it has a kl_coeff and no reference policy. Use an earlier one.")
    state["reference_path"] = str(folder / REFERENCE) if has_reference else None
    return algorithm_class, {**state, "class": config_class}


def _model_config(folder: pathlib.Path, state: Mapping[str, Any], *, begins_with_adapter: bool) -> dict[str, Any]:
    """What a policy is built from; of one with an adapter the checkpoint holds no more than that."""
    model = {**state.get("_model_config", {})}
    if not _has_adapter(folder):
        # A revision is one of a hub name, which this folder replaces.
        return {**model, "path": str(folder / POLICY), "revision": None}
    base, lora = model.get("path"), model.get("lora")
    if not isinstance(base, str) or not isinstance(lora, dict):
        raise CheckpointError(f"checkpoint {folder}: it holds an adapter and does not say of which model.")
    if os.path.isabs(base) and not os.path.isdir(base):
        raise CheckpointError(
            f"checkpoint {folder}: it holds an adapter, and the model below it, {shown(base)}, is not there. Put that "
            "model back (a link will do); its weights must be the same."
        )
    if begins_with_adapter or lora.get("adapter") is not None:
        model["lora"] = {"adapter": str(folder / POLICY)}
    return model


def _has_adapter(folder: pathlib.Path) -> bool:
    return (folder / POLICY / ADAPTER_WEIGHTS).is_file()


def load_algorithm_class(folder: pathlib.Path, trust: Trust) -> type[Algorithm]:
    """The class of the algorithm alone, for a caller who gives the config."""
    return _read(folder, trust)[0]


def _read(folder: pathlib.Path, trust: Trust) -> tuple[type[Algorithm], dict[str, Any]]:
    tree = read_tree(folder, name=NAME)
    if (
        not isinstance(tree, dict)
        or not isinstance(tree.get("settings"), dict)
        or not {"algorithm", "config"} <= set(tree)
    ):
        raise CheckpointError(f"checkpoint {folder}: its {NAME}.json holds no config. Use an earlier checkpoint.")
    return trust.find(tree["algorithm"], kind=Algorithm, what="algorithm", where=str(folder)), tree


def _register_names(config: Any) -> None:
    """What the user put into the config of this process may be named by the checkpoints that it loads."""
    for name in (config.env, config.play):
        if isinstance(name, str) and ":" in name:
            register(name.split(":")[0])
    for settings in [config.env_config, *config.curriculum]:
        for verifier in _verifiers(settings):
            register(verifier.split(":")[0])


def _settings(config: Any) -> dict[str, Any]:
    defaults = vars(type(config)())
    found = {}
    for name, value in config.get_state().items():
        # A whole table of classes that nobody has changed says nothing.
        same = name in defaults and rllib_checks._is_default(name, value, defaults[name])
        # Ray Tune hands a trial what it needs itself in the same dict, as __trial_info__ and the like.
        own = name in _NOT_SAVED or name.startswith("__") or getattr(value, OF_COMMAND, False)
        if own or (same and not _is_data(value)):
            continue
        found[name] = _named(value)
    return found


def _is_data(value: Any) -> bool:
    try:
        encode(value)
    except NotDataError:
        return False
    return True


def _named(value: Any, key: Any = None) -> Any:
    """A value with code in it by name; a mapping becomes pairs, so that no key of the user's is one of ours.

    Args:
        value: A setting, or what is in it.
        key: Under which it is in a mapping; what is a secret is left out.
    """
    if isinstance(value, str) and without_secrets(value, is_secret=names_secret(str(key))) != value:
        return {_SECRET: str(key)}
    if isinstance(value, Mapping):
        return {"pairs": [[key, _named(item, key)] for key, item in value.items()]}
    if type(value) in (list, tuple):
        return type(value)(_named(item) for item in value)
    if isinstance(value, RLModuleSpec):
        others = dataclasses.replace(value, module_class=None) != RLModuleSpec()
        return (
            {_MISSING: f"a spec with more than a module_class ({shown(value)})"}
            if others
            else {_SPEC: _named(value.module_class)}
        )
    if _is_data(value):
        return value
    name = name_of(value)
    if name is None:
        return {_MISSING: shown(value)}
    register(value)
    return {_CODE: name}


_PACKAGE = __name__.partition(".")[0]


class _Loader:
    """Reads the settings of one checkpoint."""

    def __init__(self, folder: pathlib.Path, trust: Trust, config_class: type[PolicyGradientConfig]) -> None:
        self._folder = folder
        self._trust = trust
        self._defaults = vars(config_class())
        kinds = (GenerationSettings, AgentSettings, ReportingSettings, LearnersSettings)
        every = (config_class.training_settings, *kinds)
        self._own = {field.name for kind in every for field in dataclasses.fields(kind)}
        # What the constructor of a class of the user's own adds is the business of that class.
        ours = next(kind for kind in config_class.__mro__ if kind.__module__.startswith(f"{_PACKAGE}."))
        self._own |= self._defaults.keys() - vars(ours()).keys()

    def value(self, name: str, saved: Any) -> Any:
        """The value of a setting.

        Raises:
            CheckpointError: It may not come from a checkpoint.
        """
        value = self._resolve(name, saved)
        if name not in self._defaults:
            raise CheckpointError(
                f"checkpoint {self._folder}: setting {shown(name)} is unknown here. Upgrade gspo-rllib."
            )
        if name not in self._own:
            setting = RLLIB_SETTINGS.get(name)
            if (
                (setting is None or setting.fate == "refused")
                and not rllib_checks._is_default(name, value, self._defaults[name])
                and (setting is None or value not in setting.also)
            ):
                raise CheckpointError(
                    f"checkpoint {self._folder}: its {name} is {shown(value)}, which no checkpoint of ours has. Give "
                    "the config again: from_checkpoint(path, config=...)."
                )
        self._check(name, value)
        return value

    def _resolve(self, name: str, saved: Any) -> Any:
        if type(saved) in (list, tuple):
            return type(saved)(self._resolve(name, item) for item in saved)
        if not isinstance(saved, dict):
            return saved
        mark, content = next(iter(saved.items())) if len(saved) == 1 else (None, None)
        if mark == "pairs" and content is not None:
            return {key: self._resolve(key if name == "evaluation_config" else name, item) for key, item in content}
        if mark == _SPEC:
            return RLModuleSpec(module_class=self._resolve(name, content))
        if mark == _CODE:
            return self._trust.find(content, kind=_KINDS.get(name), what=name, where=str(self._folder))
        if mark == _SECRET:
            raise CheckpointError(
                f"checkpoint {self._folder}: its {name} held a secret ({shown(content)}), which no checkpoint holds. "
                "Give the config again: from_checkpoint(path, config=...)."
            )
        if mark == _MISSING:
            raise CheckpointError(
                f"checkpoint {self._folder}: its {name} was {content}, which has no name to be found by. Give the "
                "config again: from_checkpoint(path, config=...)."
            )
        raise CheckpointError(f"checkpoint {self._folder}: its {name} cannot be read. Use an earlier checkpoint.")

    def _check(self, name: str, value: Any) -> None:
        """Refuses a value that would have code run, or something reached, that the caller has not listed."""
        if name in ("env", "play") and isinstance(value, str) and ":" in value:
            self._check_module(name, value)
        elif name in ("env_config", "curriculum"):
            for verifier in _verifiers(value):
                self._check_module(f"{name} verifier", verifier)
        elif name in ("_model_config", "model_config") and isinstance(value, dict):
            attention = value.get("attn_implementation")
            if attention is not None and not _PLAIN_WORD.fullmatch(str(attention)):
                self._refuse("attn_implementation", attention)
            if value.get("trust_remote_code"):
                self._refuse("trust_remote_code", True)
        elif name == "engine_options" and isinstance(value, dict):
            for option, given in value.items():
                if "trust" in str(option) or not isinstance(given, (bool, int, float, type(None))):
                    self._refuse("engine_options", {option: given})
        elif name == "host" and not _is_loopback(value):
            self._refuse("host", value)
        elif name == "evaluation_config" and isinstance(value, dict):
            for key, given in value.items():
                self._check(rllib_checks.attribute_of(key), given)

    def _check_module(self, what: str, name: str) -> None:
        module = name.partition(":")[0]
        if not self._trust.allows_module(module):
            raise CheckpointError(refusal(str(self._folder), what, name, module))

    def _refuse(self, word: str, value: Any) -> None:
        if not self._trust.allows(word):
            raise CheckpointError(refusal(str(self._folder), word, shown(value), word))


def _verifiers(settings: Any) -> list[str]:
    """What an environment's settings name to be imported: the check of answers that is a function of the user's."""
    if isinstance(settings, (list, tuple)):
        return [found for item in settings for found in _verifiers(item)]
    if not isinstance(settings, Mapping):
        return []
    own = settings.get("verifier")
    nested = [found for value in settings.values() for found in _verifiers(value)]
    return nested + ([own] if isinstance(own, str) and ":" in own else [])


def _is_loopback(host: Any) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

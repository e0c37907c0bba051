"""Easier versions of an environment, played in training before the environment itself.

Which version a group plays is part of the group's name, like everything else about it: so it depends neither on the
env runner nor on when it plays, a group that is in flight when the next stage begins is finished as it was begun, and a
checkpoint needs nothing but names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gspo_rllib.env_pool.factory import LanguageEnvSpec, check_language_env_spec
from gspo_rllib.env_runners.settings import GroupSettings
from gspo_rllib.errors import EnvError, SettingError


def check_stages(config: Any, *, worker_index: int = 0, tries: bool = False) -> list[LanguageEnvSpec]:
    """What is played in each stage of a config's ``curriculum``: its environment with some settings replaced.

    An evaluation has no stages.

    Args:
        config: An ``AlgorithmConfig``.
        worker_index: RLlib's index of the env runner.
        tries: Whether each is reset and stepped as well.

    Raises:
        SettingError: A stage is no mapping of settings.
        EnvError: The environment does not take these settings.
    """
    specs: list[LanguageEnvSpec] = []
    if config.in_evaluation:
        return specs
    for stage, changes in enumerate(GroupSettings.of(config).curriculum):
        if not isinstance(changes, Mapping) or not changes or not all(isinstance(name, str) for name in changes):
            raise SettingError(
                f"training.curriculum[{stage}] is {changes!r}; it must be a mapping of settings that replace those of "
                "env_config, e.g. {'rooms': 6}."
            )
        try:
            env_config = {**(config.env_config or {}), **changes}
            specs.append(check_language_env_spec(config.env, env_config, worker_index=worker_index, tries=tries))
        except EnvError as error:
            raise EnvError(f"training.curriculum[{stage}] is {changes!r}: {error}") from error
    return specs


def played_envs(config: Any) -> list[LanguageEnvSpec]:
    """A config's environment, and what the stages of its curriculum make of it.

    Raises:
        SettingError: A stage is no mapping of settings.
        EnvError: The environment cannot be used, or does not take the settings of a stage.
    """
    return [check_language_env_spec(config.env, config.env_config, tries=True), *check_stages(config, tries=True)]

"""How an environment is made from what ``config.environment(env, env_config)`` names, for a run and for its checks."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium as gym

from gspo_rllib.errors import EnvError, shown

_ID = re.compile(r"(?:\w+(?:\.\w+)*:)?(?:[\w.-]+/)*[\w.-]+")

EnvMaker = Callable[[], gym.Env]


def env_maker(
    env: str | type | None, env_config: Mapping[str, Any] | None = None, *, worker_index: int = 0
) -> EnvMaker:
    """How to make one environment; makes none yet.

    Args:
        env: A Gymnasium id, best in its ``"module:id"`` form, which imports the module that registers it, so that it
            works in every process; or a name registered with ``ray.tune.register_env``; or a class.
        env_config: Keyword arguments of the environment. A Tune-registered creator gets it whole, as RLlib does it;
            so does a class whose first parameter is called ``config`` or ``env_config``.
        worker_index: RLlib's index of the env runner; such a creator reads it as ``config.worker_index``.

    Raises:
        EnvError: ``env`` is missing or of another kind.
    """
    kwargs = dict(env_config or {})
    if isinstance(env, str) and env:
        creator = _tune_creator(env)
        if creator is not None:
            return lambda: creator(_context(kwargs, worker_index))
        if not _ID.fullmatch(env):
            raise EnvError(
                f"environment {shown(env)} is no Gymnasium id; allowed: 'name-v0', 'namespace/name-v0', or either with "
                "the module that registers it, as in 'gspo_rllib.envs:gspo_rllib/Calculator-v0'."
            )
        return lambda: gym.make(env, disable_env_checker=True, **kwargs)
    if callable(env):
        if _first_parameter(env) in ("config", "env_config"):  # what RLlib's own examples call it
            return lambda: env(_context(kwargs, worker_index))
        return lambda: env(**kwargs)
    raise EnvError(
        f"environment: got {shown(env)}; set config.environment(env=...) to a Gymnasium id such as "
        "'gspo_rllib.envs:gspo_rllib/Calculator-v0', a name registered with ray.tune.register_env, or a class."
    )


def _first_parameter(env: Callable[..., Any]) -> str | None:
    try:
        return next(iter(inspect.signature(env).parameters), None)
    except ValueError:  # some built-in types have no signature
        return None


def _tune_creator(name: str) -> Callable[[Any], gym.Env] | None:
    if "ray" not in sys.modules:  # so nothing was registered with it, here or in a cluster; importing it takes seconds
        return None
    from ray.tune.registry import ENV_CREATOR, _global_registry

    # Tune's registry takes no other names.
    if not name.isascii() or not _global_registry.contains(ENV_CREATOR, name):
        return None
    creator: Callable[[Any], gym.Env] = _global_registry.get(ENV_CREATOR, name)
    return creator


def _context(env_config: dict[str, Any], worker_index: int) -> dict[str, Any]:
    from ray.rllib.env.env_context import EnvContext

    context: dict[str, Any] = EnvContext(env_config, worker_index=worker_index)
    return context

"""From ``config.environment(env, env_config)`` to a function that makes one environment, checked before any use."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from gspo_rllib.env_maker import EnvMaker, env_maker
from gspo_rllib.env_pool.trial import (
    MAKE_S,
    check_reset,
    close_in_time,
    first_observations,
    in_main_thread_only,
    in_own_thread,
)
from gspo_rllib.errors import EnvError, GSPOError, described, did_you_mean, shown
from gspo_rllib.types import ChatSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LanguageEnvSpec:
    """What is known about an environment before it plays.

    Attributes:
        make: Makes one environment.
        observation_space: A ``gymnasium.spaces.Text``.
        action_space: A ``gymnasium.spaces.Text``.
        blocking: Whether a call may take long, and so needs a thread; ``metadata["blocking"]``, True by default.
        process: Whether each instance needs a process of its own; ``metadata["process"]``, False by default.
        chat: How it wants its conversation framed, if it says so.
        obs_role: The role of its observations after the first, ``"user"`` or ``"tool"``; its attribute ``obs_role``,
            else what goes with its tools. Each step may say otherwise.
        max_turns: Most turns of an episode; its attribute ``max_turns``, None where it has none.
        num_tasks: How many tasks it counts, named ``"0"``, ``"1"``, …; None where it has no ``num_tasks()``.
        first_observations: What it said first in some tasks, if it was tried.
        deterministic: Whether it answers equal replies to one task alike; ``metadata["deterministic"]``, True by
            default.
    """

    make: EnvMaker
    observation_space: gym.Space
    action_space: gym.Space
    blocking: bool
    process: bool
    chat: ChatSpec | None
    obs_role: str = "user"
    max_turns: int | None = None
    num_tasks: int | None = None
    first_observations: tuple[str, ...] = ()
    deterministic: bool = True


def check_language_env_spec(
    env: str | type | None,
    env_config: Mapping[str, Any] | None = None,
    *,
    worker_index: int = 0,
    tries: bool = False,
) -> LanguageEnvSpec:
    """Makes one environment, checks that it speaks text, and closes it again.

    All of it in a thread of its own: an environment that hangs, or raises ``KeyboardInterrupt``, is an error.

    Args:
        env: A Gymnasium id, a name registered with Ray Tune, or a class; see ``env_maker``.
        env_config: Keyword arguments of the environment; see ``env_maker``.
        worker_index: RLlib's index of the env runner.
        tries: Whether it is reset and stepped as well, so that what it returns is known.

    Raises:
        EnvError: It is unknown, cannot be made, is no ``gymnasium.Env``, its spaces are not text, its ``reset`` takes
            no seed, it needs a process of its own that it cannot be sent to, or returns what it must not.
    """
    make = env_maker(env, env_config, worker_index=worker_index)

    def look() -> LanguageEnvSpec:
        return _look(env, env_config, make, tries=tries)

    return in_own_thread(look, name=str(env), seconds=MAKE_S)


def _look(
    env: str | type | None, env_config: Mapping[str, Any] | None, make: EnvMaker, *, tries: bool
) -> LanguageEnvSpec:
    try:
        instance = make()
    except (gym.error.UnregisteredEnv, ModuleNotFoundError) as error:
        raise EnvError(_unknown(str(env), error)) from error
    # A constructor is foreign code: whatever it raises is reported as one clear error.
    except BaseException as error:
        if in_main_thread_only(error):
            raise
        raise EnvError(
            f"environment {shown(env)} could not be made with env_config={shown(dict(env_config or {}), 300)}: "
            f"{described(error)}"
        ) from error
    if not isinstance(instance, gym.Env):
        raise EnvError(f"environment {shown(env)} is a {type(instance).__name__}; it must be a gymnasium.Env.")
    try:
        spec = _describe(str(env), make, instance)
        check_reset(str(env), instance)
        if not tries:
            return spec
        return dataclasses.replace(
            spec, first_observations=tuple(first_observations(str(env), instance, counts=spec.num_tasks is not None))
        )
    except GSPOError:
        raise
    # So is what answers for its attributes.
    except BaseException as error:
        raise EnvError(
            f"environment {shown(env)}: asked for its spaces, metadata and chat, it raised {described(error)}. These "
            "attributes must be readable at any time."
        ) from error
    finally:
        close_in_time(instance, name=str(env))


def _describe(name: str, make: EnvMaker, instance: gym.Env) -> LanguageEnvSpec:
    for kind in ("observation_space", "action_space"):
        space = getattr(instance, kind, None)
        if not isinstance(space, gym.spaces.Text):
            raise EnvError(
                f"environment {name!r}: its {kind} is {shown(space, 200)}, but a language model reads and writes text: "
                "both spaces must be gymnasium.spaces.Text (for example gspo_rllib.envs.UnicodeText). Wrap it so that "
                "observations and actions are str."
            )
    chat = instance.get_wrapper_attr("chat") if instance.has_wrapper_attr("chat") else None
    if not isinstance(chat, ChatSpec | None):
        raise EnvError(f"environment {name!r}: its attribute `chat` is {shown(chat)}; it must be a ChatSpec or None.")
    metadata = instance.metadata or {}
    process = bool(metadata.get("process", False))
    if process:
        from gspo_rllib.env_pool.process import sendable  # imports ray, which other environments do without

        sendable(make)
    return LanguageEnvSpec(
        make=make,
        observation_space=instance.observation_space,
        action_space=instance.action_space,
        blocking=bool(metadata.get("blocking", True)),
        process=process,
        chat=chat,
        obs_role=_obs_role(instance, chat),
        max_turns=_max_turns(instance),
        num_tasks=counted_tasks(name, instance),
        deterministic=bool(metadata.get("deterministic", True)),
    )


def _obs_role(instance: gym.Env, chat: ChatSpec | None) -> str:
    role = _attribute(instance, "obs_role")
    if role in ("user", "tool"):
        return str(role)
    return "tool" if chat is not None and chat.tools else "user"


def _max_turns(instance: gym.Env) -> int | None:
    turns = _attribute(instance, "max_turns")
    return turns if isinstance(turns, int) and not isinstance(turns, bool) else None


def _attribute(instance: gym.Env, name: str) -> Any:
    """An attribute that an environment may have, and may have for its own ends: what it raises says no more than None.

    Other environments answer for these names only once they are reset.
    """
    try:
        return instance.get_wrapper_attr(name) if instance.has_wrapper_attr(name) else None
    except Exception:  # noqa: BLE001, whatever it raises
        return None


def counted_tasks(name: str, instance: gym.Env) -> int | None:
    """How many tasks an environment says that it has; None where it does not count them.

    Raises:
        EnvError: That is no number of tasks.
    """
    if not instance.has_wrapper_attr("num_tasks"):
        return None
    count = instance.get_wrapper_attr("num_tasks")
    if not callable(count):
        raise EnvError(
            f"environment {name!r}: num_tasks is {shown(count)}; it must be a method that returns how many tasks there "
            "are."
        )
    count = count()
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise EnvError(
            f"environment {name!r}: num_tasks() returned {shown(count)}; it must return how many tasks there are, an "
            "int >= 1, so that reset(options={'task_id': '0'}) plays the first. Leave num_tasks out where the tasks "
            "cannot be counted."
        )
    return count


def _unknown(name: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"environment {name!r}: {error} Install the package, or correct the part before the colon."
    module, _, env_id = name.rpartition(":")
    known = [
        spec.id for spec in gym.registry.values() if not str(spec.entry_point).startswith(("gymnasium.", "shimmy"))
    ]
    near = did_you_mean(env_id, known) if difflib.get_close_matches(env_id, known, n=1) else ""
    near = near or "`gspo-rllib list` names those of this package."
    hint = "" if module else " Its package may not be imported yet: write 'module:id' to import it first."
    return f"environment {name!r} is not registered with Gymnasium. {near}{hint}"

"""The user's function that plays one trajectory: found by name, and checked before anything starts."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Awaitable, Callable
from typing import Any

from gspo_rllib.agents.agent_session import AgentSession
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.errors import SettingError, described, did_you_mean, shown

Play = Callable[[dict[str, Any], AgentSession], Awaitable[float | AgentResult]]
"""``async def play(task, session)``: plays one trajectory and returns its reward."""

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_SIGNATURE = "it must be `async def play(task, session)`"


def find_play(play: str | Play) -> Play:
    """The function that plays a trajectory.

    Args:
        play: ``"module:name"``, imported in the process that plays, or the function itself.

    Raises:
        SettingError: It cannot be found, is not asynchronous, or does not take a task and a session.
    """
    function = _imported(play) if isinstance(play, str) else play
    name = repr(play) if isinstance(play, str) else shown(play)
    if not callable(function):
        raise SettingError(f"agent.play={name} is a {type(function).__name__}; {_SIGNATURE}.")
    if inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(type(function).__call__):
        raise SettingError(f"agent.play={name} yields; {_SIGNATURE} and return the reward once.")
    if not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)):
        raise SettingError(
            f"agent.play={name} is not asynchronous; {_SIGNATURE}. Blocking code may run in it: every trajectory has a "
            "thread of its own."
        )
    try:
        inspect.signature(function).bind({}, None)
    except TypeError as error:
        raise SettingError(
            f"agent.play={name} cannot be called with a task and a session ({error}); {_SIGNATURE}."
        ) from error
    return function


def _imported(name: str) -> Any:
    if not _NAME.fullmatch(name):
        raise SettingError(f"agent.play={name!r}: must be 'module:name', e.g. 'my_package.bot:play'.")
    module_name, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except KeyboardInterrupt:
        raise
    # A module of the user's may raise anything while it is imported.
    except BaseException as error:
        raise SettingError(f"agent.play={name!r}: {module_name} cannot be imported: {described(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [known for known in dir(found) if not known.startswith("_")]
            hint = did_you_mean(part, known) if known else ""
            raise SettingError(f"agent.play={name!r}: {module_name} has no {part!r}. {hint}".rstrip())
        found = getattr(found, part)
    return found

"""The user's function is found by name, and what cannot play is refused in words."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from gspo_rllib.agents.function import find_play
from gspo_rllib.errors import SettingError
from tests.env_runners import agents

MODULE = "tests.env_runners.agents"


@pytest.mark.parametrize(
    "play", [f"{MODULE}:two_turns", agents.two_turns, agents.Unreliable(), functools.partial(agents.two_turns)]
)
def test_an_asynchronous_function_of_task_and_session_is_taken(play: Any) -> None:
    assert callable(find_play(play))


@pytest.mark.parametrize(
    ("play", "words"),
    [
        ("lambda task, session: 1.0", "must be 'module:name', e.g. 'my_package.bot:play'."),
        ("my_package.bot.play", "must be 'module:name', e.g. 'my_package.bot:play'."),
        ("no_such_package.bot:play", "no_such_package.bot cannot be imported: ModuleNotFoundError"),
        (f"{MODULE}:two_turn", "has no 'two_turn'. Did you mean 'two_turns'?"),
        (f"{MODULE}:NO_FUNCTION", "is a int; it must be `async def play(task, session)`."),
        (f"{MODULE}:not_asynchronous", "is not asynchronous; it must be `async def play(task, session)`."),
        (f"{MODULE}:yields", "yields; it must be `async def play(task, session)` and return the reward once."),
        (lambda task, session: 1.0, "is not asynchronous; it must be `async def play(task, session)`."),
        (f"{MODULE}:takes_one", "cannot be called with a task and a session (too many positional arguments)"),
        (7, "is a int; it must be `async def play(task, session)`."),
    ],
)
def test_what_cannot_play_is_refused(play: Any, words: str) -> None:
    with pytest.raises(SettingError) as error:
        find_play(play)
    assert words in str(error.value) and str(error.value).startswith("agent.play=")

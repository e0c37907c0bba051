"""Tools, an environment made of them, and calls written as a policy would."""

from __future__ import annotations

import sys
from typing import Any, Literal

import gymnasium
import numpy as np

from gspo_rllib.envs.tools import tool
from gspo_rllib.envs.tools.calls import render_tool_call
from gspo_rllib.envs.tools.env import Task, ToolEnv
from gspo_rllib.errors import EnvError

call = render_tool_call


@tool
def add(a: int, b: int = 1) -> int:
    """Adds two integers.

    Overflow is no concern.

    Args:
        a: The first.
        b: The second,
            which may be left out.

    Returns:
        Their sum.
    """
    return a + b


@tool(name="look")
def look(
    at: str | None = None,
    *,
    how: Literal["near", "far"] = "near",
    places: list[int] | None = None,
    weights: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Looks."""
    return {"at": at, "how": how, "places": places, "weights": weights}


@tool
def fail(how: str) -> str:
    """Fails."""
    if how == "exit":
        sys.exit("bye")
    if how == "env":
        raise EnvError("the server is gone")
    raise KeyError(how)


@tool
def repeat(text: str, times: int) -> str:
    """Repeats."""
    return text * times


class SumEnv(ToolEnv):
    """Adds two numbers with the tool."""

    def __init__(self, **settings: Any) -> None:
        super().__init__([add, look, fail, repeat], **settings)

    def draw_task(self, random: np.random.Generator) -> Task:
        one, other = (int(random.integers(100)) for _ in range(2))
        return Task(f"{one} {other}", one + other)


def play(env: gymnasium.Env, *actions: str, seed: int = 0) -> list[tuple[str, float, bool, bool, dict[str, Any]]]:
    env.reset(seed=seed)
    return [env.step(action) for action in actions]

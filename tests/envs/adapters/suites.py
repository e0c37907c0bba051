"""What the tests of all adapters use: which suites are installed, hostile text, and playing by a policy."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable
from typing import Any

import gymnasium
import pytest

HOSTILE = [
    "",
    "\0",
    "\ud800",
    "[",
    "[1]",
    "[up]",
    "[999999999999999999999]",
    f"[{'9' * 5000}]",
    "[A 1]",
    "[-1 -1]",
    "[\u0663]",
]


def needs(*modules: str, java: bool = False) -> Any:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if java and not shutil.which("java"):
        missing.append("Java")
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def make(name: str, **settings: Any) -> Any:
    return gymnasium.make(f"gspo_rllib.envs:gspo_rllib/{name}-v0", disable_env_checker=True, **settings).unwrapped


def play(env: Any, policy: Callable[[str], str], **how: Any) -> tuple[float, list[Any]]:
    observation, info = env.reset(**how)
    episode: list[Any] = [(observation, info)]
    total, over = 0.0, False
    while not over:
        step = env.step(policy(observation))
        observation, reward, terminated, truncated, _ = step
        total, over = total + reward, terminated or truncated
        episode.append(step)
    return total, episode


def recorded(policy: Callable[[str], str]) -> tuple[Callable[[str], str], list[str]]:
    actions: list[str] = []

    def record(observation: str) -> str:
        actions.append(policy(observation))
        return actions[-1]

    return record, actions

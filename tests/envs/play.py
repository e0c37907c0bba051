"""Plays one episode of an environment by a policy of observations."""

from __future__ import annotations

from typing import Any


def steps_of(env: Any, policy: Any, seed: int | None = 0, **reset: Any) -> list[Any]:
    observation, _ = env.reset(seed=seed, **reset)
    steps: list[Any] = []
    while not steps or not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(policy(observation)))
        observation = steps[-1][0]
    return steps


def play(env: Any, policy: Any, **reset: Any) -> tuple[float, list[Any]]:
    """The return of an episode, and its steps; without a seed, the task is the environment's next one."""
    steps = steps_of(env, policy, **({"seed": None} | reset))
    return sum(step[1] for step in steps), steps

"""An environment made of one tool, and an expert that uses it.

python examples/tool_env.py
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gspo_rllib.envs.tools import Task, ToolEnv, render_tool_call, tool

STOCK = {"apple": 7, "pear": 12, "plum": 30}


@tool
def count(fruit: str) -> int:
    """Says how many of a fruit are in stock.

    Args:
        fruit: Name of the fruit, e.g. apple.
    """
    return STOCK[fruit]


class StockEnv(ToolEnv):
    """How many fruits of two kinds are there? The reward is 1 for their sum."""

    def __init__(self, max_turns: int = 6) -> None:
        super().__init__([count], system_prompt="Answer with a number alone.", max_turns=max_turns)

    def draw_task(self, random: np.random.Generator) -> Task:
        """Two kinds of fruit."""
        one, other = random.choice(sorted(STOCK), 2, replace=False)
        return Task(f"How many {one} and {other}?", STOCK[one] + STOCK[other])

    def expert(self) -> Callable[[str], str]:
        """Counts both kinds in one turn, then adds."""

        def policy(observation: str) -> str:
            words = observation.replace("?", "").replace("\n", " ").split()
            if words[:2] == ["How", "many"]:
                return "".join(render_tool_call("count", {"fruit": fruit}) for fruit in (words[2], words[4]))
            return str(int(words[1]) + int(words[3]))

        return policy


def main() -> float:
    """Plays one episode with the expert; returns its return."""
    env = StockEnv()
    policy, over, total = env.expert(), False, 0.0
    observation, _ = env.reset(seed=0)
    while not over:
        action = policy(observation)
        print(f"observation  {observation!r}\naction       {action!r}")
        observation, reward, terminated, truncated, _ = env.step(action)
        over, total = terminated or truncated, total + reward
    return total


if __name__ == "__main__":
    print(f"return       {main()}")

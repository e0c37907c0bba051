"""A two-turn text environment whose reward any policy can change: an untrained model earns it by chance."""

from __future__ import annotations

import string
from typing import Any, ClassVar

import gymnasium as gym

TEXT = gym.spaces.Text(max_length=100_000, min_length=0, charset=string.printable)


class CoinEnv(gym.Env):
    """Reward: the share of characters with an even code in each reply, so no two trajectories of a group agree.

    Args:
        turns: Of every trajectory.
        chatter: Characters, once to three times, that an observation has more; how often depends on the reply.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "blocking": False}
    observation_space = TEXT
    action_space = TEXT

    def __init__(self, turns: int = 2, chatter: int = 0) -> None:
        self.turns, self.chatter = turns, chatter
        self.turn = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = 0
        return f"toss {self.np_random.integers(100)}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        even = sum(ord(char) % 2 == 0 for char in action) / max(len(action), 1)
        return (
            f"again {self.turn}" + "o" * self.chatter * (1 + len(action) % 3),
            even,
            self.turn == self.turns,
            False,
            {"success": even > 0.5},
        )


gym.register(id="toy/Coin-v0", entry_point=CoinEnv)

"""Text environments for sampling while learning; env runners in processes of their own import them from here."""

from __future__ import annotations

import time

from tests.toy_envs.coin_env import CoinEnv


class SlowCoinEnv(CoinEnv):
    """Takes its time, in a thread, so that groups are under way while something else happens."""

    metadata = {"render_modes": [], "blocking": True}

    def __init__(self, seconds: float = 0.3) -> None:
        super().__init__()
        self.seconds = seconds

    def step(self, action):
        time.sleep(self.seconds)
        return super().step(action)


class HalfCoinEnv(CoinEnv):
    """Every other task pays nothing, so nothing can be learned from it."""

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        self.pays = self.np_random.integers(2)
        return observation, info

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward * self.pays, terminated, truncated, info

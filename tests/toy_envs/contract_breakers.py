"""Environments that each break one promise of the contract, and one that keeps them all."""

from __future__ import annotations

import pickle
import random
from typing import Any, ClassVar

import gymnasium
import numpy as np

from gspo_rllib.envs import UnicodeText


class GoodEnv(gymnasium.Env[str, str]):
    """Asks for a number three times; each test breaks one promise of it."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "blocking": False}

    def __init__(self) -> None:
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.number, self.turn = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        asked = (options or {}).get("task_id")
        self.number = int(self.np_random.integers(1000)) if asked is None else int(asked)
        self.turn = 0
        return f"say {self.number}", {"task_id": str(self.number)}

    def step(self, action: str) -> Any:
        self.turn += 1
        right = action == str(self.number)
        over = right or self.turn == 6
        info = {"valid_action": True} | ({"success": right} if over else {})
        return f"no, turn {self.turn}", float(right), right, over and not right, info


class WrongSpace(GoodEnv):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Text(100)


class NoSpace(GoodEnv):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Discrete(2)


class Chatty(GoodEnv):
    chat = "be brief"


class NumberObservation(GoodEnv):
    def step(self, action: str) -> Any:
        return (7, *super().step(action)[1:])


class FourTuple(GoodEnv):
    def step(self, action: str) -> Any:
        return super().step(action)[:4]


class InfiniteReward(GoodEnv):
    def step(self, action: str) -> Any:
        observation, _, *rest = super().step(action)
        return observation, float("inf"), *rest


class TensorInfo(GoodEnv):
    def step(self, action: str) -> Any:
        *rest, info = super().step(action)
        return *rest, info | {"raw": {1, 2}}


class OddRole(GoodEnv):
    def step(self, action: str) -> Any:
        *rest, info = super().step(action)
        return *rest, info | {"obs_role": "assistant"}


class Crashes(GoodEnv):
    def step(self, action: str) -> Any:
        if not action.isascii():
            raise ValueError("only ASCII")
        return super().step(action)


class IgnoresSeed(GoodEnv):
    made = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        observation, info = super().reset(seed=seed, options=options)
        IgnoresSeed.made += 1
        return f"{observation} ({IgnoresSeed.made})", info


class OneTask(GoodEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.number = 5
        return "say 5", {}


class DeafToTaskId(GoodEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        return super().reset(seed=seed)


class CountsToNothing(GoodEnv):
    def num_tasks(self) -> int:
        return 0


class CountsInAnAttribute(GoodEnv):
    num_tasks = 3


class CountsAndDrawsByTheSeed(GoodEnv):
    def num_tasks(self) -> int:
        return 3

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        return super().reset(seed=seed)[0], {}


class NumpyTruncates(GoodEnv):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, np.bool_(terminated), np.bool_(truncated), info


class NumpyNumbers(GoodEnv):
    """Keeps the contract, in numbers of numpy's."""

    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        parts = {"right": np.float32(reward), "count": np.int64(1)}
        over = {"success": np.bool_(info["success"])} if "success" in info else {}
        info |= {"valid_action": 1, "reward_parts": parts, "metrics": parts} | over
        return observation, np.float64(reward), np.bool_(terminated), truncated, info


class NoPart(GoodEnv):
    def step(self, action: str) -> Any:
        *rest, info = super().step(action)
        return *rest, info | {"reward_parts": {"form": float("nan")}}


class NamesTasksOtherwise(GoodEnv):
    def num_tasks(self) -> int:
        return 10

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        observation, info = super().reset(seed=seed, options=options)
        return observation, {"task_id": f"0{info['task_id']}"}


class WholeHistory(GoodEnv):
    history = ""

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        self.history = "" if self.turn == 1 else self.history
        self.history += f"{observation}\n"
        return self.history, *rest


class GlobalRandom(GoodEnv):
    def step(self, action: str) -> Any:
        random.random()
        return super().step(action)


class BadExpert(GoodEnv):
    def expert(self) -> Any:
        return lambda _: "0"


class ForgetfulCopy(GoodEnv):
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "turn": 0}

    def step(self, action: str) -> Any:
        if self.turn == 0 and not vars(self).get("fresh"):
            return (f"copy {self.number}", *super().step(action)[1:])
        return super().step(action)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        returned = super().reset(seed=seed, options=options)
        self.turn = 0
        return returned

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, number=-1)


class NeitherPickledNorReplayed(GoodEnv):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "deterministic": False}

    def __getstate__(self) -> Any:
        raise pickle.PicklingError("holds a connection")


class ClosesOnce(GoodEnv):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("already closed")
        self.closed = True


class OneTaskPerSeed(GoodEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        return super().reset(seed=seed)[0], {}

"""Text environments that are slow, short, endless or broken on purpose.

The task of an episode is a number drawn from ``reset(seed=...)``; every observation names it. What goes wrong is said
by keyword arguments, so one class serves many tests and any process can make it from ``env_config``.
"""

from __future__ import annotations

import asyncio
import string
import time
from typing import Any, ClassVar

import gymnasium as gym

from gspo_rllib.types import ChatSpec

TEXT = gym.spaces.Text(max_length=100_000, min_length=0, charset=string.printable)


class EchoEnv(gym.Env):
    """Plays a fixed number of turns; reward 1 in each; info carries ``success`` at the end.

    Args:
        turns: Episode length; None never ends.
        observation_chars: Length of every observation after the first.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "blocking": False}
    observation_space = TEXT
    action_space = TEXT

    def __init__(self, turns: int | None = 3, observation_chars: int = 10) -> None:
        self.turns = turns
        self.observation_chars = observation_chars
        self.actions: list[str] = []
        self.task = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.actions = []
        self.task = int(self.np_random.integers(1_000_000))
        return f"task {self.task}", {"task": self.task}

    def step(self, action: str) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        done = len(self.actions) == self.turns
        info: dict[str, Any] = {"success": self.task % 2 == 0} if done else {}
        text = f"{len(self.actions)} of {self.task} ".ljust(self.observation_chars, "x")
        return text[: self.observation_chars], 1.0, done, False, info


class ThreadedEchoEnv(EchoEnv):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}


class ChattyEnv(EchoEnv):
    """Frames its conversation, and answers as a tool."""

    chat = ChatSpec(system_prompt="You echo.")

    def step(self, action: str) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        info = {**info, "obs_role": "tool", "valid_action": False, "metrics": {"echoes": len(self.actions), "odd": "?"}}
        return observation, reward, terminated, truncated, info


class TruncatingEnv(EchoEnv):
    """Truncates itself after one turn."""

    def __init__(self, truncated_by: str | None = None) -> None:
        super().__init__()
        self.truncated_by = truncated_by

    def step(self, action: str) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, *_ = super().step(action)
        return observation, reward, False, True, {"truncated_by": self.truncated_by} if self.truncated_by else {}


class FailingEnv(EchoEnv):
    """Breaks the contract in one way, on some or all tasks.

    Args:
        fault: A key of ``FAULTS``, or ``"raise_reset"``, ``"raise_make"``, ``"exit"``, ``"hang"``.
        every: Only tasks divisible by it fail.
        times: Per process and task, only the first so many episodes fail; None for all.
        hang_s: How long ``"hang"`` sleeps.
    """

    FAULTS: ClassVar[dict[str, tuple[Any, ...]]] = {
        "nan_reward": ("ok", float("nan"), False, False, {}),
        "inf_reward": ("ok", float("inf"), False, False, {}),
        "none_reward": ("ok", None, False, False, {}),
        "str_reward": ("ok", "1.0", False, False, {}),
        "bytes_observation": (b"no", 1.0, False, False, {}),
        "none_observation": (None, 1.0, False, False, {}),
        "four_values": ("ok", 1.0, False, {}),
        "none_info": ("ok", 1.0, False, False, None),
        "int_flag": ("ok", 1.0, "no", False, {}),
        "unknown_role": ("ok", 1.0, False, False, {"obs_role": "oracle"}),
    }
    failures: ClassVar[dict[tuple[str, int], int]] = {}
    made: ClassVar[list[int]] = []

    def __init__(
        self, fault: str, every: int = 1, times: int | None = None, turns: int = 2, hang_s: float = 5.0
    ) -> None:
        super().__init__(turns)
        self.fault, self.every, self.times, self.hang_s = fault, every, times, hang_s
        self.made.append(id(self))
        if fault == "raise_make" and len(self.made) > 1:
            raise RuntimeError("no more environments")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        answer = super().reset(seed=seed)
        if self.fault == "raise_reset" and self._fails():
            raise OSError("the game server is away")
        return answer

    def step(self, action: str) -> tuple[Any, ...]:  # type: ignore[override]
        if self.fault != "raise_reset" and self._fails():
            if self.fault == "hang":
                time.sleep(self.hang_s)
            elif self.fault == "exit":
                raise SystemExit("an environment must not end the process")
            elif self.fault in self.FAULTS:
                return self.FAULTS[self.fault]
            else:
                raise ValueError(f"fault {self.fault} on task {self.task}")
        return super().step(action)

    def _fails(self) -> bool:
        if self.task % self.every:
            return False
        seen = self.failures.get((self.fault, self.task), 0)
        self.failures[self.fault, self.task] = seen + 1
        return self.times is None or seen < self.times


class TimeLimitError(BaseException):
    """A time-out as some libraries write it: no Exception, so that no one catches it by accident."""


class SpeechlessError(Exception):
    """Cannot say what went wrong."""

    def __str__(self) -> str:
        raise TimeLimitError

    __repr__ = __str__


RAISED: dict[str, tuple[BaseException, str]] = {
    "cancelled": (asyncio.CancelledError("over"), "CancelledError: over"),
    "generator": (GeneratorExit(), "GeneratorExit"),
    "timeout": (TimeLimitError("2 s"), "TimeLimitError: 2 s"),
    "exit": (SystemExit(3), "SystemExit: 3"),
    "group": (BaseExceptionGroup("all", [TimeLimitError()]), "BaseExceptionGroup: all (1 sub-exception)"),
    "speechless": (SpeechlessError(), "SpeechlessError: (its message cannot be shown: TimeLimitError)"),
    "huge": (ValueError("x" * 10**7), f"ValueError: {'x' * 100}"),
    "surrogate": (ValueError("\ud800"), "ValueError: \\ud800"),
}
"""What foreign code may raise, and how a message shows it."""


class RaisingEnv(EchoEnv):
    """Raises one of ``RAISED`` in one place: ``"make"``, ``"reset"``, ``"step"``, ``"close"`` or ``"chat"``.

    Args:
        what: A key of ``RAISED``.
        where: One of these places.
        blocking: Whether it asks for a thread.
    """

    def __init__(self, what: str, where: str, blocking: bool = False) -> None:
        super().__init__()
        self.what, self.where = what, where
        self.metadata = {**self.metadata, "blocking": blocking}  # type: ignore[misc]
        self._raise("make")

    def _raise(self, place: str) -> None:
        if place == self.where:
            raise RAISED[self.what][0].with_traceback(None)  # one of an earlier test would be kept

    @property
    def chat(self) -> None:
        self._raise("chat")

    def reset(self, **kwargs: Any) -> tuple[str, dict[str, Any]]:
        self._raise("reset")
        return super().reset(**kwargs)

    def step(self, action: str) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._raise("step")
        return super().step(action)

    def close(self) -> None:
        self._raise("close")


class ThreadedFailingEnv(FailingEnv):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}


class SeedlessEnv(EchoEnv):
    """Draws its task from a counter instead of from its seed."""

    count: ClassVar[list[int]] = [0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.count[0] += 1
        return f"task {self.count[0]}", {}


class UnpicklableInfoEnv(EchoEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        observation, info = super().reset(seed=seed)
        return observation, {**info, "engine": (n for n in range(3)), "env": self}


class NumberEnv(gym.Env):
    """Observes numbers: no language environment."""

    observation_space = gym.spaces.Box(0, 1, (3,))
    action_space = TEXT

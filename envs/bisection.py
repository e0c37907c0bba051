"""Bisection: find a hidden number by guessing, told after each guess whether it is higher or lower.

The turns are exactly what halving the range needs in the worst case, so no guess may be wasted.

Observation  str, the range at first, e.g. "1-16"; then "higher" or "lower" (the hidden number is), or "found"
Action       str, a number, e.g. "8"; spaces around it do not matter
Reward       1.0 when the number is found, else 0.0
Ends         terminated when found; truncated after floor(log2(n)) + 1 turns
Info         {"task_id": str, "answer": int} from reset, both the number; from step {"valid_action": bool,
             "obs_role": "user"}, and at the end {"success": bool}, with {"truncated_by": "turns"} when truncated
Settings     n: 2 to 9999, the largest number that may be hidden
Expert       halves the range
Ladder       n              limit   expert: return, turns avg (max)   random valid   random text
             16 (default)       5   1.00, 3.5 (5)                     0.25           0.01
             64                 7   1.00, 5.2 (7)                     0.14           0.00
             1024              11   1.00, 9.1 (10)                    0.03           0.00
Versions     v0
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from gspo_rllib.envs.tasks import checked_integer, requested_task, unknown_task
from gspo_rllib.envs.text_task import TextTaskEnv
from gspo_rllib.types import ChatSpec

LARGEST_N = 9999

_GUESS = re.compile(r"\s*([0-9]{1,4})\s*")
_TASK = re.compile(r"[1-9][0-9]{0,3}")
_RANGE = re.compile(r"([0-9]+)-([0-9]+)")


def compare(hidden: int, guess: int) -> str:
    """What the environment answers to a guess.

    Example:
        >>> compare(hidden=5, guess=8), compare(hidden=5, guess=2), compare(hidden=5, guess=5)
        ('lower', 'higher', 'found')
    """
    if hidden == guess:
        return "found"
    return "higher" if hidden > guess else "lower"


class BisectionEnv(TextTaskEnv):
    """See the card at the top of this file.

    Args:
        n: The hidden number is drawn from 1 to n; 2 to 9999.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: ``n`` is out of range.
    """

    chat = ChatSpec(
        system_prompt="Guess the hidden number in the given range: reply with a number only, such as 8. You are told "
        "whether it is higher or lower."
    )

    def __init__(self, n: int = 16, render_mode: str | None = None) -> None:
        self.n = checked_integer("n", n, 2, LARGEST_N)
        # n.bit_length() is floor(log2(n)) + 1: that many halvings leave a single number.
        super().__init__(max_turns=n.bit_length(), render_mode=render_mode)
        self._hidden = 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Hides a number; the same seed or ``options["task_id"]`` (the number) hides the same one.

        Raises:
            EnvError: ``options["task_id"]`` is no number in the range.
        """
        super().reset(seed=seed)
        task = requested_task(options)
        if task is None:
            self._hidden = int(self.np_random.integers(1, self.n + 1))
        elif _TASK.fullmatch(task) and int(task) <= self.n:
            self._hidden = int(task)
        else:
            raise unknown_task(task, f"a number from '1' to '{self.n}'")
        return self._begin_task(f"1-{self.n}", {"task_id": str(self._hidden), "answer": self._hidden})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes a guess; any other text costs the turn."""
        guess = _GUESS.fullmatch(action)
        told = compare(self._hidden, int(guess[1])) if guess else f"not a number such as 8, 1-{self.n}"
        if told == "found":
            return self._finish(told, 1.0, success=True)
        return self._go_on(told, valid=guess is not None)

    def expert(self) -> Callable[[str], str]:
        """A policy that halves the range and sees only observations; ask for a new one per episode."""
        return _Halving()

    def random_action(self, rng: np.random.Generator) -> str:
        """Any number in the range."""
        return str(rng.integers(1, self.n + 1))


class _Halving:
    def __init__(self) -> None:
        self._low = self._high = self._guess = 0

    def __call__(self, observation: str) -> str:
        if bounds := _RANGE.fullmatch(observation):
            self._low, self._high = int(bounds[1]), int(bounds[2])
        elif observation == "higher":
            self._low = self._guess + 1
        elif observation == "lower":
            self._high = self._guess - 1
        self._guess = (self._low + self._high) // 2
        return str(self._guess)

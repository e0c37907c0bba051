"""Arithmetic: work out a sum in one turn; the last integer of the reply counts.

Observation  str, e.g. "17 + 25 - 8 = ?"; at the end "right", "wrong" or "no integer in the reply"
Action       str, any text; the last integer in it is the answer: "17 + 25 is 42, so 34." answers 34
Reward       1.0 for the right answer, else 0.0
Ends         terminated by an answer, right or wrong; truncated after the only turn when there is none
Info         {"task_id": str, "answer": int} from reset, the task_id such as "17+25-8"; from step {"valid_action":
             bool, "obs_role": "user", "parsed": int | None, "success": bool}, with {"truncated_by": "turns"} when
             truncated
Settings     operands: 2 to 10; digits: 1 to 9, of each operand
Expert       always right
Ladder       operands/digits   expert: return, turns   random valid   random text
             2/1               1.00, 1                 0.02           0.06
             2/2 (default)     1.00, 1                 0.00           0.00
             6/5               1.00, 1                 0.00           0.00
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

# A number may have thousands separators. A minus right after a digit subtracts; 12.5 is no integer, nor are its parts.
# Numbers of more than 30 digits are no answer, because Python refuses to read very long integers.
_INTEGER = re.compile(r"(?<![0-9])(?<![0-9]\.)([-\u2212]?)([0-9]{1,3}(?:,[0-9]{3}){1,9}|[0-9]{1,30})(?![0-9]|\.[0-9])")
_TERM = re.compile(r"[+-]?[0-9]+")


def last_integer(text: str) -> int | None:
    """The last integer in a text, None where there is none.

    Example:
        >>> last_integer("17 + 25 = 42, minus 8 makes 34."), last_integer("about 1,234"), last_integer("= -8")
        (34, 1234, -8)
        >>> last_integer("no idea"), last_integer("12.5"), last_integer("7-5"), last_integer("9" * 5000)
        (None, None, 5, None)
    """
    found = _INTEGER.findall(text)
    if not found:
        return None
    sign, digits = found[-1]
    value = int(digits.replace(",", ""))
    return -value if sign else value


def evaluate(expression: str) -> int:
    """The value of a sum such as "17+25-8".

    Example:
        >>> evaluate("17+25-8"), evaluate("3-5")
        (34, -2)
    """
    return sum(map(int, _TERM.findall(expression)))


class ArithmeticEnv(TextTaskEnv):
    """See the card at the top of this file.

    Args:
        operands: Numbers in the sum, 2 to 10.
        digits: Digits of each, 1 to 9.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: A setting is out of range.
    """

    chat = ChatSpec(system_prompt="Reply with the value, such as 42.")

    def __init__(self, operands: int = 2, digits: int = 2, render_mode: str | None = None) -> None:
        self.operands = checked_integer("operands", operands, 2, 10)
        self.digits = checked_integer("digits", digits, 1, 9)
        super().__init__(max_turns=1, render_mode=render_mode)
        number = rf"[1-9][0-9]{{{digits - 1}}}"
        self._is_task = re.compile(rf"{number}(?:[+-]{number}){{{operands - 1}}}")
        self._answer = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draws a sum; the same seed or ``options["task_id"]`` (such as "17+25") gives the same one.

        Raises:
            EnvError: ``options["task_id"]`` is no sum of these settings.
        """
        super().reset(seed=seed)
        task = requested_task(options)
        if task is None:
            numbers = self.np_random.integers(10 ** (self.digits - 1), 10**self.digits, size=self.operands)
            signs = self.np_random.integers(2, size=self.operands)
            task = "".join(f"{'+-'[sign]}{number}" for sign, number in zip(signs, numbers, strict=True))[1:]
        elif not self._is_task.fullmatch(task):
            raise unknown_task(
                task, f"{self.operands} numbers of exactly {self.digits} digits, joined by + or -, without spaces"
            )
        self._answer = evaluate(task)
        question = f"{task.replace('+', ' + ').replace('-', ' - ')} = ?"
        return self._begin_task(question, {"task_id": task, "answer": self._answer})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Scores the reply; the episode is over."""
        parsed = last_integer(action)
        if parsed is None:
            return self._go_on("no integer in the reply", valid=False, facts={"parsed": None})
        success = parsed == self._answer
        return self._finish("right" if success else "wrong", float(success), success, facts={"parsed": parsed})

    def expert(self) -> Callable[[str], str]:
        """A policy that is always right and sees only observations."""
        return _work_out

    def random_action(self, rng: np.random.Generator) -> str:
        """Any integer that a sum of these settings could have."""
        largest = self.operands * 10**self.digits
        return str(rng.integers(-largest, largest))


def _work_out(observation: str) -> str:
    return str(evaluate(observation.removesuffix(" = ?").replace(" ", "")))

"""Calculator: work out a chained expression with one tool call per turn, then answer.

The tool takes one operation, such as ``3+4``, and writes the result in place of the expression's first operation. It
works out whatever it is given: a wrong call spoils the rest, and nothing says so. Only the final answer earns a
reward, so the number of turns that must all be right grows with ``operations``.

Observation  str, what is left of the expression, e.g. "3+4*2-5", then "7*2-5", … "9"; evaluated left to right
Action       str, a call such as "3+4" (numbers 0 to 99, one of + - *), or "answer 9"; spaces do not matter
Reward       1.0 for the right answer, else 0.0
Ends         terminated by an answer, right or wrong; truncated after 2 * operations + 2 turns
Info         {"task_id": str, "answer": int} from reset, the task_id is the expression; from step {"valid_action":
             bool, "obs_role": "tool"}, and at the end {"success": bool}, with {"truncated_by": "turns"} when truncated
Settings     operations: 1 to 30, the length of the expression; its intermediate results stay within 0 to 99
Expert       always right
Ladder       operations    limit   expert: return, turns   random valid   random text
             3                 8   1.00, 4                 0.02           0.00
             6 (default)      14   1.00, 7                 0.01           0.00
             10               22   1.00, 11                0.02           0.00
             30               62   1.00, 31                0.01           0.00
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

MAX_OPERATIONS = 30
LARGEST = 99

_CALL = re.compile(r"\s*([0-9]{1,2})\s*([-+*])\s*([0-9]{1,2})\s*")
_ANSWER = re.compile(r"\s*answer\s+([0-9]{1,2})\s*")
_EXPRESSION = re.compile(r"[1-9](?:[-+*][0-9])+")
_FIRST_OPERATION = re.compile(r"([0-9]+)([-+*])([0-9]+)")


def calculate(left: int, operator: str, right: int) -> int | None:
    """The calculator's display after one operation, or None where it would leave 0 to 99.

    Example:
        >>> calculate(3, "+", 4), calculate(9, "*", 9), calculate(2, "-", 1)
        (7, 81, 1)
        >>> calculate(60, "+", 40), calculate(1, "-", 2)
        (None, None)
    """
    result = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return result if 0 <= result <= LARGEST else None


def evaluate(expression: str) -> int:
    """The value of an expression of one-digit steps, evaluated left to right.

    Example:
        >>> evaluate("3+4*2-5")
        9
        >>> evaluate("42")
        42
    """
    first, *steps = re.split(r"([-+*])", expression)
    value = int(first)
    for operator, operand in zip(steps[::2], steps[1::2], strict=True):
        result = calculate(value, operator, int(operand))
        assert result is not None, f"{expression} leaves 0 to {LARGEST}"
        value = result
    return value


def draw_expression(operations: int, random: np.random.Generator) -> str:
    """A random expression whose intermediate results all stay within 0 to 99.

    Example:
        >>> evaluate(draw_expression(30, np.random.default_rng(0))) in range(100)
        True
    """
    value = int(random.integers(1, 10))
    expression = str(value)
    for _ in range(operations):
        # Steps that change nothing (adding 0, multiplying by 1, multiplying 0) are left out.
        most = {"+": min(9, LARGEST - value), "-": min(9, value), "*": min(9, LARGEST // value) if value else 0}
        least = {"+": 1, "-": 1, "*": 2}
        possible = [operator for operator in "+-*" if least[operator] <= most[operator]]
        operator = possible[random.integers(len(possible))]
        operand = int(random.integers(least[operator], most[operator] + 1))
        result = calculate(value, operator, operand)
        assert result is not None
        value = result
        expression += f"{operator}{operand}"
    return expression


def is_expression(text: str, operations: int) -> bool:
    """Whether a text is an expression of that many operations whose intermediate results all stay within 0 to 99.

    Example:
        >>> is_expression("3+4*2-5", operations=3), is_expression("3+4*2-5", operations=2)
        (True, False)
        >>> is_expression("9*9*9", operations=2), is_expression("1-2+5", operations=2)
        (False, False)
    """
    if len(text) != 2 * operations + 1 or not _EXPRESSION.fullmatch(text):
        return False
    value: int | None = int(text[0])
    for operator, operand in zip(text[1::2], text[2::2], strict=True):
        value = None if value is None else calculate(value, operator, int(operand))
    return value is not None


class CalculatorEnv(TextTaskEnv):
    """See the card at the top of this file.

    Args:
        operations: Operations in the expression, 1 to 30.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: ``operations`` is out of range.
    """

    obs_role = "tool"
    chat = ChatSpec(
        system_prompt="Reply with the leftmost operation alone, such as 3+4. When one number is left, reply with it, "
        "such as answer 7."
    )

    def __init__(self, operations: int = 6, render_mode: str | None = None) -> None:
        self.operations = checked_integer("operations", operations, 1, MAX_OPERATIONS)
        super().__init__(max_turns=2 * operations + 2, render_mode=render_mode)
        self._expression = "0"
        self._answer = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draws an expression; the same seed or ``options["task_id"]`` (the expression) gives the same one.

        Raises:
            EnvError: ``options["task_id"]`` is no expression of these settings.
        """
        super().reset(seed=seed)
        task = requested_task(options)
        if task is None:
            task = draw_expression(self.operations, self.np_random)
        elif not is_expression(task, self.operations):
            raise unknown_task(
                task,
                f"an expression of one-digit numbers and {self.operations} of + - * that starts with 1 to 9 and stays "
                f"within 0 to {LARGEST}, evaluated left to right",
            )
        self._expression = task
        self._answer = evaluate(self._expression)
        return self._begin_task(task, {"task_id": task, "answer": self._answer})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes a call or an answer; any other text costs the turn."""
        if answer := _ANSWER.fullmatch(action):
            success = int(answer[1]) == self._answer
            return self._finish("right" if success else "wrong", float(success), success)
        if self._call(action):
            return self._go_on(self._expression)
        explained = f"not a call such as 3+4 (0 to {LARGEST}), nor answer 7: {self._expression}"
        return self._go_on(explained, valid=False)

    def render(self) -> str | None:
        """What is left of the expression."""
        return self._expression if self.render_mode == "ansi" else None

    def expert(self) -> Callable[[str], str]:
        """A policy that is always right and sees only observations."""
        return _next_action

    def random_action(self, rng: np.random.Generator) -> str:
        """Any call that the display can show, or any answer."""
        kind = "+-*="[rng.integers(4)]
        if kind == "=":
            return f"answer {rng.integers(LARGEST + 1)}"
        left = int(rng.integers(10 if kind == "*" else LARGEST + 1))
        most = {"+": LARGEST - left, "-": left, "*": 9}[kind]
        return f"{left}{kind}{rng.integers(most + 1)}"

    def _call(self, action: str) -> bool:
        """Does the operation that an action asks for, and says whether it is one."""
        call = _CALL.fullmatch(action)
        result = calculate(int(call[1]), call[2], int(call[3])) if call else None
        if result is None:
            return False
        # An expression that is down to one number takes the result as it is, so the policy may go on calculating.
        head = _FIRST_OPERATION.match(self._expression)
        self._expression = f"{result}{self._expression[head.end() :] if head else ''}"
        return True


def _next_action(observation: str) -> str:
    expression = observation.rpartition(" ")[2]
    head = _FIRST_OPERATION.match(expression)
    return head[0] if head else f"answer {expression}"

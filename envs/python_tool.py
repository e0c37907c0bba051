"""PythonTool: follow a recipe of computations by running Python in a sandbox, then answer.

A number goes through one operation after another (primes, divisors, digits, Collatz, …); more `steps` make it longer.
Variables live through the episode, until a run is stopped by its time limit.

Observation  str, the recipe at first, e.g. "x = 57; then x = number of primes up to x. What is x?"; then what the code
             printed, with its error as the last line if it failed, at most `output_chars` characters
Action       str, Python code, plain or in ``` fences (then only what is fenced is run), or "answer 16"
Reward       1.0 for the right answer, else 0.0
Ends         terminated by an answer, right or wrong; truncated after 2 * steps + 4 turns
Info         {"task_id": str, "answer": int, "backend": str} from reset; from step {"valid_action": bool (the code ran
             to its end), "obs_role": "tool"}, and at the end {"success": bool}, with {"truncated_by": "turns"} when
             truncated
Settings     steps: 1 to 20; backend: "auto", "monty", "sandlock" or "bwrap"; seconds: 0.05 to 600, per run;
             output_chars: 40 to 10000
Expert       one line of code per step, on the variable of the step before, then the answer
Ladder       steps        turn limit   expert: return, turns   random valid   random text
             1            6            1.00, 2                 0.00           0.00
             3 (default)  10           1.00, 4                 0.00           0.00
             10           24           1.00, 11                0.00           0.00
             20           44           1.00, 21                0.00           0.00
Versions     v0
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gspo_rllib.envs.sandbox import Sandbox, SandboxLimits, find_backend, open_sandbox
from gspo_rllib.envs.tasks import checked_integer, numbered_task
from gspo_rllib.envs.text_task import TextTaskEnv
from gspo_rllib.types import ChatSpec

_ANSWER = re.compile(r"\s*answer\s+([0-9]{1,9})\s*")
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
_RECIPE = re.compile(r"x = ([0-9]+); then x = (.+)\. What is x\?")
_NEXT = "; then x = "
_LOWEST, _HIGHEST = 2, 9999


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of a recipe.

    Attributes:
        code: Python code that computes the new ``x`` from ``x``; what the expert runs.
        compute: A function that does the same for the verifier, in another way where there is one.
        least: Smallest x it is applied to.
        most: Largest x it is applied to.
    """

    code: str
    compute: Callable[[int], int]
    least: int
    most: int


def primes_below(bound: int) -> list[int]:
    """The primes smaller than a bound.

    Example:
        >>> primes_below(12)
        [2, 3, 5, 7, 11]
    """
    prime = [False, False, *[True] * (bound - 2)]
    for number in range(2, bound):
        if prime[number]:
            prime[number * number :: number] = [False] * len(prime[number * number :: number])
    return [number for number in range(bound) if prime[number]]


def divisor_sum(number: int) -> int:
    """The sum of all divisors, 1 and the number itself among them.

    Example:
        >>> divisor_sum(6), divisor_sum(16), divisor_sum(7)
        (12, 31, 8)
    """
    small = [divisor for divisor in range(1, int(number**0.5) + 1) if number % divisor == 0]
    return sum({*small, *(number // divisor for divisor in small)})


def digit_sum(number: int, power: int = 1) -> int:
    """The sum of the digits, each raised to a power.

    Example:
        >>> digit_sum(905), digit_sum(905, power=2)
        (14, 106)
    """
    total = 0
    while number:
        number, digit = divmod(number, 10)
        total += digit**power
    return total


def collatz_steps(number: int) -> int:
    """How often a number is halved, or tripled plus 1 if odd, until it is 1.

    Example:
        >>> collatz_steps(1), collatz_steps(8), collatz_steps(27)
        (0, 3, 111)
    """
    steps = 0
    while number != 1:
        number = 3 * number + 1 if number % 2 else number // 2
        steps += 1
    return steps


def without_seven(number: int) -> int:
    """How many of the integers from 0 to a number have no digit 7: its digits read in base 9, the 7 skipped.

    Example:
        >>> without_seven(9), without_seven(100), without_seven(75)
        (9, 82, 63)
    """
    total = 0
    for position, digit in enumerate(digits := [int(digit) for digit in str(number)]):
        total += (digit - (digit > 7)) * int(9 ** (len(digits) - position - 1))
        if digit == 7:
            return total
    return total + 1


_PRIME = "all(n % d for d in range(2, int(n**0.5) + 1))"
OPERATIONS = {
    "number of primes up to x": Operation(
        f"x = sum({_PRIME} for n in range(2, x + 1))", lambda x: len(primes_below(x + 1)), 10, 2000
    ),
    "the x-th prime": Operation(
        f"x = [n for n in range(2, 4000) if {_PRIME}][x - 1]", lambda x: primes_below(4000)[x - 1], 2, 500
    ),
    "sum of the divisors of x": Operation("x = sum(d for d in range(1, x + 1) if x % d == 0)", divisor_sum, 2, 4000),
    "sum of the squares of the digits of x": Operation(
        "x = sum(int(c)**2 for c in str(x))", lambda x: digit_sum(x, power=2), 2, _HIGHEST
    ),
    "sum of the digits of 2**x": Operation("x = sum(int(c) for c in str(2**x))", lambda x: digit_sum(2**x), 10, 2000),
    "number of 1s in x**x written in binary": Operation(
        "x = bin(x**x).count('1')", lambda x: (x**x).bit_count(), 5, 300
    ),
    "last three digits of 7**x": Operation("x = pow(7, x, 1000)", lambda x: 7**x % 1000, 5, 2000),
    "x with its digits reversed": Operation(
        "x = int(str(x)[::-1])", lambda x: int("".join(reversed(str(x)))), 12, _HIGHEST
    ),
    "x with its digits sorted, largest first": Operation(
        "x = int(''.join(sorted(str(x))[::-1]))",
        lambda x: int("".join(digit * str(x).count(digit) for digit in "9876543210")),
        12,
        _HIGHEST,
    ),
    "number of Collatz steps from x to 1": Operation(
        "n, x = x, 0\nwhile n > 1: n, x = 3*n + 1 if n % 2 else n // 2, x + 1", collatz_steps, 5, _HIGHEST
    ),
    "how many of 1 to x have a digit 7": Operation(
        "x = sum('7' in str(n) for n in range(1, x + 1))", lambda x: x + 1 - without_seven(x), 20, _HIGHEST
    ),
    "number of different remainders of n*n by x": Operation(
        "x = len({n * n % x for n in range(x)})", lambda x: len({n * n % x for n in range(x // 2 + 1)}), 5, 3000
    ),
}


def solve(start: int, names: list[str]) -> int:
    """The answer to a recipe, found without its code.

    Example:
        >>> solve(57, ["number of primes up to x", "sum of the divisors of x"])
        31
    """
    for name in names:
        start = OPERATIONS[name].compute(start)
    return start


def build_recipe(task: int, steps: int) -> tuple[int, list[str]]:
    """The first number and the operations of a task; every step changes the number, and keeps it within 2 to 9999.

    Example:
        >>> start, names = build_recipe(task=1, steps=20)
        >>> len(names), 2 <= solve(start, names) <= 9999
        (20, True)
    """
    draw = random.Random(task)
    start = value = draw.randint(30, 99)
    names: list[str] = []
    while len(names) < steps:
        for name in draw.sample(list(OPERATIONS), len(OPERATIONS)):
            operation = OPERATIONS[name]
            if names[-1:] == [name] or not operation.least <= value <= operation.most:
                continue
            result = operation.compute(value)
            if result != value and _LOWEST <= result <= _HIGHEST:
                break
        else:
            raise AssertionError(f"no operation goes on from {value}")
        names.append(name)
        value = result
    return start, names


def parse_action(text: str) -> tuple[str, str]:
    """Which it is, ``"answer"`` or ``"code"``, and the number or the code.

    Example:
        >>> parse_action("answer 42"), parse_action("print(1)")
        (('answer', '42'), ('code', 'print(1)'))
        >>> parse_action("Let me see.\\n```python\\nprint(1)\\n```\\nThat is it.")
        ('code', 'print(1)\\n')
    """
    if answer := _ANSWER.fullmatch(text):
        return "answer", answer[1]
    blocks = _FENCED.findall(text)
    return "code", "".join(blocks) if blocks else text


class PythonToolEnv(TextTaskEnv):
    """See the card at the top of this file.

    Args:
        steps: Operations of the recipe, 1 to 20.
        backend: Which sandbox runs the code; see ``gspo_rllib.envs.sandbox.open_sandbox``.
        seconds: Time limit of a run, 0.05 to 600.
        output_chars: Longest observation, 40 to 10,000 characters.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: A setting is out of range.
        EnvError: This machine has no such sandbox.
    """

    metadata = TextTaskEnv.metadata | {"blocking": True}
    obs_role = "tool"
    chat = ChatSpec(
        system_prompt="Compute x with Python: reply with code alone and print what you want to see; variables stay. "
        "Once you know x, reply with it alone, such as answer 12."
    )

    def __init__(
        self,
        steps: int = 3,
        backend: str = "auto",
        seconds: float = 2.0,
        output_chars: int = 400,
        render_mode: str | None = None,
    ) -> None:
        self.steps = checked_integer("steps", steps, 1, 20)
        self.output_chars = checked_integer("output_chars", output_chars, 40, 10_000)
        self.limits = SandboxLimits(seconds=seconds, output_chars=output_chars)
        self.backend = find_backend(backend)
        super().__init__(max_turns=2 * steps + 4, render_mode=render_mode)
        self._sandbox: Sandbox | None = None
        self._history: list[str] = []
        self._answer = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Draws a recipe; the same seed or ``options["task_id"]`` (a number) gives the same one.

        Raises:
            EnvError: ``options["task_id"]`` is no number of a task.
        """
        super().reset(seed=seed)
        task = numbered_task(options, self.np_random)
        self.close()
        start, names = build_recipe(task, self.steps)
        self._answer = solve(start, names)
        recipe = f"x = {start}{_NEXT}{_NEXT.join(names)}. What is x?"
        return self._begin_task(recipe, {"task_id": str(task), "answer": self._answer, "backend": self.backend})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Runs code or takes an answer; code that fails costs the turn.

        Raises:
            EnvError: The sandbox cannot be started; no action does that.
        """
        kind, content = parse_action(action)
        if kind == "answer":
            success = int(content) == self._answer
            return self._finish("right" if success else "wrong", float(success), success)
        printed, ran = self._run(content)
        return self._go_on(printed, valid=ran)

    def close(self) -> None:
        """Ends the sandbox's session."""
        if self._sandbox is not None:
            self._sandbox.close()
        self._sandbox = None
        self._history = []

    def expert(self) -> Callable[[str], str]:
        """A policy that runs the recipe step by step and sees only observations; ask for a new one per episode."""
        return _Programmer()

    def random_action(self, rng: np.random.Generator) -> str:
        """Prints a sum of random numbers, or answers with a random one."""
        if rng.random() < 0.5:
            return f"answer {rng.integers(_LOWEST, _HIGHEST + 1)}"
        return f"print({rng.integers(100)} + {rng.integers(100)})"

    def __getstate__(self) -> dict[str, Any]:
        # The session lives in another process and cannot be copied: a copy first runs the episode's code again.
        return self.__dict__ | {"_sandbox": None}

    def _run(self, code: str) -> tuple[str, bool]:
        if not code.strip():
            return "no code: reply with Python that prints, or answer 12", False
        if self._sandbox is None:
            self._sandbox = open_sandbox(self.backend, self.limits)
            for earlier in self._history:
                self._sandbox.run(earlier)
        result = self._sandbox.run(code)
        self._history = [] if result.state_lost else [*self._history, code]
        printed = result.output.rstrip()
        if result.error is None:
            return printed or "nothing was printed: use print", True
        error = f"error: {result.error}"[: self.output_chars]
        kept = printed[: max(0, self.output_chars - len(error) - 1)]
        return f"{kept}\n{error}" if kept else error, False


class _Programmer:
    """Knows the code of every operation, and what it has been shown."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __call__(self, observation: str) -> str:
        if recipe := _RECIPE.fullmatch(observation):
            self._lines = [f"{OPERATIONS[name].code}\nprint(x)" for name in recipe[2].split(_NEXT)]
            self._lines[0] = f"x = {recipe[1]}\n{self._lines[0]}"
        return self._lines.pop(0) if self._lines else f"answer {observation}"

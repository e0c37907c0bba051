"""Mastermind: find a hidden code; each guess is told how many of its symbols are right, and how many misplaced.

Observation  str, at first e.g. "code of 3 symbols from 1234, 6 tries"; then the last guess and what it scored, e.g.
             "1123: 2 black, 1 white", black for a right symbol in its place, white for one in another place; or "found"
Action       str, a code, e.g. "1123"; spaces do not matter
Reward       1.0 when the code is found, else 0.0
Ends         terminated when found; truncated after `tries` turns
Info         {"task_id": str, "answer": str} from reset, both the code; from step {"valid_action": bool,
             "obs_role": "user"}, and at the end {"success": bool}, with {"truncated_by": "turns"} when truncated
Settings     positions: 1 to 6; colours: 2 to 12, the symbols are the first of 123456789abc; tries: 1 to 30; at most
             20,736 codes (12^4), so that the expert can think about all of them
Expert       guesses a code that fits all it was told; finds every code of the ladder's settings (tested on every
             code), elsewhere as long as `tries` suffice
Ladder       positions/colours/tries   expert: return, turns avg (max)   random valid   random text
             3/4/6 (default)           1.00, 3.3 (5)                     0.08           0.00
             4/6/8                     1.00, 4.7 (7)                     0.02           0.00
             5/7/10                    1.00, 5.5 (9)                     0.00           0.00
Versions     v0
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from gspo_rllib.envs.tasks import checked_integer, requested_task, unknown_task
from gspo_rllib.envs.text_task import TextTaskEnv
from gspo_rllib.errors import SettingError
from gspo_rllib.types import ChatSpec

_Told = tuple[str, int, int]
"""A guess, and how many of its symbols are black and white."""

SYMBOLS = "123456789abc"
MOST_CODES = 12**4

_SPACE = re.compile(r"\s+")
_START = re.compile(r"code of ([0-9]+) symbols from ([0-9a-c]+), [0-9]+ tries")
_SCORED = re.compile(r"([0-9a-c]+): ([0-9]+) black, ([0-9]+) white")
# Where in the list of the codes that still fit the next guess is taken from, as a share of the list's length. Codes at
# its ends are alike, so guessing one of them tells little. Measured on all codes of 4 positions and 6 colours: guessing
# the first takes up to 9 turns, the middle one up to 7 (4.9 on average), the one at this share up to 7 (4.7).
_SHARE = 0.618


def feedback(code: str, guess: str) -> tuple[int, int]:
    """How many symbols of a guess are right and in their place, and how many more are right but misplaced.

    Every symbol of the code is counted once at most.

    Example:
        >>> feedback("1123", "1213")
        (2, 2)
        >>> feedback("1122", "2211"), feedback("1122", "1111"), feedback("1234", "1234")
        ((0, 4), (2, 0), (4, 0))
    """
    black = sum(map(str.__eq__, code, guess))
    common = sum(min(code.count(symbol), guess.count(symbol)) for symbol in set(guess))
    return black, common - black


class MastermindEnv(TextTaskEnv):
    """See the card at the top of this file.

    Args:
        positions: Symbols in the code, 1 to 6.
        colours: Different symbols there are, 2 to 12.
        tries: Guesses, 1 to 30.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: A setting is out of range, or there would be more than 20,736 codes.
    """

    chat = ChatSpec(
        system_prompt="Find the hidden code: reply with a code only, such as 112. You are told how many of its symbols "
        "are right and in place (black), and right but misplaced (white)."
    )

    def __init__(self, positions: int = 3, colours: int = 4, tries: int = 6, render_mode: str | None = None) -> None:
        self.positions = checked_integer("positions", positions, 1, 6)
        self.colours = checked_integer("colours", colours, 2, len(SYMBOLS))
        checked_integer("tries", tries, 1, 30)
        if colours**positions > MOST_CODES:
            raise SettingError(
                f"positions={positions}, colours={colours}: {colours**positions} codes; at most {MOST_CODES} are "
                "allowed. Take fewer colours or positions."
            )
        super().__init__(max_turns=tries, render_mode=render_mode)
        self._symbols = SYMBOLS[:colours]
        self._is_code = re.compile(f"[{self._symbols}]{{{positions}}}")
        self._code = ""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Hides a code; the same seed or ``options["task_id"]`` (the code) hides the same one.

        Raises:
            EnvError: ``options["task_id"]`` is no code.
        """
        super().reset(seed=seed)
        code = requested_task(options)
        if code is None:
            code = self._random_code(self.np_random)
        elif not self._is_code.fullmatch(code):
            raise unknown_task(code, f"a code of {self.positions} symbols from {self._symbols}")
        self._code = code
        told = f"code of {self.positions} symbols from {self._symbols}, {self.max_turns} tries"
        return self._begin_task(told, {"task_id": code, "answer": code})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Takes a guess; any other text costs the turn."""
        guess = _SPACE.sub("", action)
        if guess == self._code:
            return self._finish("found", 1.0, success=True)
        if not self._is_code.fullmatch(guess):
            return self._go_on(f"not a code of {self.positions} symbols from {self._symbols}", valid=False)
        black, white = feedback(self._code, guess)
        return self._go_on(f"{guess}: {black} black, {white} white")

    def expert(self) -> Callable[[str], str]:
        """A policy that guesses what fits all it was told; ask for a new one per episode."""
        return _ConsistentGuesses()

    def random_action(self, rng: np.random.Generator) -> str:
        """Any code."""
        return self._random_code(rng)

    def _random_code(self, random: np.random.Generator) -> str:
        return "".join([self._symbols[i] for i in random.integers(self.colours, size=self.positions)])


# Cached because episodes share their first guesses.
@lru_cache(maxsize=1024)
def _fitting(positions: int, symbols: str, told: tuple[_Told, ...]) -> tuple[str, ...]:
    """The codes that fit all that was told."""
    if not told:
        return tuple(map("".join, itertools.product(symbols, repeat=positions)))
    *before, (guess, *score) = told
    wanted = tuple(score)
    return tuple(code for code in _fitting(positions, symbols, tuple(before)) if feedback(code, guess) == wanted)


class _ConsistentGuesses:
    def __init__(self) -> None:
        self._positions, self._symbols = 0, ""
        self._told: tuple[_Told, ...] = ()

    def __call__(self, observation: str) -> str:
        if start := _START.fullmatch(observation):
            self._positions, self._symbols = int(start[1]), start[2]
        elif scored := _SCORED.fullmatch(observation):
            self._told += ((scored[1], int(scored[2]), int(scored[3])),)
        fitting = _fitting(self._positions, self._symbols, self._told)
        return fitting[int(_SHARE * len(fitting))]

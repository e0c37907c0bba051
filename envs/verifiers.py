"""Does a reply answer the question? Pure functions from a reply and a gold answer to a score from 0 to 1.

A verifier is a name from ``VERIFIERS``, ``"module:function"``, or a function. The function takes the reply, the gold
answer and the whole row of the dataset, and returns a number or a bool.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from gspo_rllib.errors import EnvError, SettingError, did_you_mean

Verifier = Callable[[str, str, Mapping[str, Any]], float | bool]

_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?|-?\.\d+")
_MARKED = re.compile(r"####|\banswer\s*(?:is)?\s*[:=]|\banswer\s+is\b", re.IGNORECASE)
_RELATIVE_TOLERANCE = 1e-6
_LONGEST_REPLY = 100_000


def final_answer(reply: str) -> str:
    """The part of a reply that states its answer: what is boxed, else what follows the last mark, else all of it.

    Example:
        >>> final_answer("6 * 7 = 42, so #### 42"), final_answer(r"so \\boxed{x^{2}}."), final_answer(" Paris ")
        ('42', 'x^{2}', 'Paris')
        >>> final_answer("The answer is: 3/4.")
        '3/4'
    """
    boxed = _boxed(reply)
    if boxed is not None:
        return boxed.strip()
    marks = list(_MARKED.finditer(reply))
    stated = reply[marks[-1].end() :] if marks else reply
    return stated.strip().removesuffix(".").strip() if marks else stated.strip()


def exact(reply: str, answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the stated answer is the gold one, apart from case and the amount of white space.

    Example:
        >>> exact("Answer:  new  york", "New York", {}), exact("York", "New York", {})
        (True, False)
    """
    return _plain(final_answer(reply)) == _plain(final_answer(answer))


def numeric(reply: str, answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the last number of the stated answer is that of the gold one: ``1,234.50``, ``-7`` or ``3/4``.

    Example:
        >>> numeric("it costs $1,234.50", "#### 1234.5", {}), numeric("0.75", "3/4", {}), numeric("12", "2", {})
        (True, True, False)
    """
    stated, gold = last_number(final_answer(reply)), last_number(final_answer(answer))
    return stated is not None and gold is not None and math.isclose(stated, gold, rel_tol=_RELATIVE_TOLERANCE)


def math_verify(reply: str, answer: str, row: Mapping[str, Any]) -> bool:
    """Whether two formulas are equal, by the package ``math-verify``: LaTeX, sets, intervals, matrices.

    Raises:
        EnvError: The package is not installed.
    """
    package = _math_verify_package()
    gold, stated = (package.parse(text, parsing_timeout=None) for text in (_as_math(answer), _as_math(reply)))
    return bool(package.verify(gold, stated, timeout_seconds=None))


VERIFIERS: dict[str, Verifier] = {"exact": exact, "numeric": numeric, "math_verify": math_verify}
"""The verifiers that have a name."""


def find_verifier(verifier: str | Verifier) -> Verifier:
    """The function that a setting means.

    Args:
        verifier: A name, ``"module:function"``, or a function ``(reply, answer, row) -> score``.

    Raises:
        SettingError: There is no such verifier.
        EnvError: Its package is not installed.
    """
    if callable(verifier):
        return verifier
    if verifier == "math_verify":
        _math_verify_package()
    if verifier in VERIFIERS:
        return VERIFIERS[verifier]
    module, colon, function = str(verifier).partition(":")
    if not colon:
        raise SettingError(
            f"verifier={verifier!r}: allowed: {', '.join(VERIFIERS)}, 'module:function', or a function. "
            f"{did_you_mean(str(verifier), VERIFIERS)}"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise SettingError(
            f"verifier={verifier!r}: {error}. Correct the name, or make its module importable."
        ) from error
    if not callable(found):
        raise SettingError(f"verifier={verifier!r} is a {type(found).__name__}; it must be a function.")
    return found  # type: ignore[no-any-return]  # only a call can show what it takes and returns


def score(verifier: Verifier, reply: str, answer: str, row: Mapping[str, Any]) -> float:
    """What a reply earns, 0 to 1.

    Raises:
        EnvError: The verifier raised, or returned something else: it is broken, which no reply is to blame for.
    """
    try:
        earned = verifier(reply[:_LONGEST_REPLY], answer, row)
    # A verifier is foreign code: whatever it raises is one error that names it.
    except Exception as error:
        raise EnvError(
            f"verifier {_name(verifier)} raised {type(error).__name__}: {str(error)[:300]} for the reply "
            f"{reply[:80]!r} and the answer {answer[:80]!r}. A verifier must return a score for every text."
        ) from error
    if not isinstance(earned, (bool, int, float)) or not 0.0 <= earned <= 1.0:
        raise EnvError(
            f"verifier {_name(verifier)} returned {earned!r}; it must return a number from 0 to 1, or a bool."
        )
    return float(earned)


def last_number(text: str) -> float | None:
    """The last number in a text, None if there is none.

    Example:
        >>> last_number("from 1 to 2,500"), last_number("-3/4"), last_number("none")
        (2500.0, -0.75, None)
    """
    numbers = _NUMBER.findall(text)
    if not numbers:
        return None
    numerator, _, denominator = numbers[-1].replace(",", "").partition("/")
    try:
        return float(Fraction(numerator.strip()) / Fraction(denominator.strip() or 1))
    # Python refuses to read a number of thousands of digits.
    except (ZeroDivisionError, OverflowError, ValueError):
        return None


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for position in range(start + len("\\boxed"), len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if depth == 0:
            return text[start + len("\\boxed{") : position]
    return None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _as_math(text: str) -> str:
    return f"\\boxed{{{final_answer(text)}}}"


def _math_verify_package() -> Any:
    try:
        return importlib.import_module("math_verify")
    except ImportError as error:
        raise EnvError(
            "verifier='math_verify' needs the package math-verify: pip install 'gspo-rllib[datasets]'."
        ) from error


def _name(verifier: Verifier) -> str:
    return getattr(verifier, "__qualname__", repr(verifier))

"""Does a reply answer the question? Pure functions from a reply and a gold answer to a score from 0 to 1.

A verifier is a name from ``VERIFIERS``, ``"module:function"``, or a function. The function takes the reply, the gold
answer and the whole row of the dataset, and returns a number or a bool.
"""

from __future__ import annotations

import importlib
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gspo_rllib.envs.answers import Stated, stated_answer
from gspo_rllib.envs.answers import final_answer as final_answer
from gspo_rllib.envs.judge import judge_formulas
from gspo_rllib.envs.numbers import last_number as last_number
from gspo_rllib.envs.numbers import read_number
from gspo_rllib.envs.plain_maths import MINUSES
from gspo_rllib.errors import EnvError, SettingError, described, did_you_mean, shown

Verifier = Callable[[str, str, Mapping[str, Any]], float | bool]

_TYPOGRAPHY: dict[int, str | None] = (
    dict.fromkeys(map(ord, MINUSES), "-")
    | dict.fromkeys(map(ord, "\u2018\u2019\u02bc"), "'")
    | dict.fromkeys(map(ord, "\u201c\u201d"), '"')
    | dict.fromkeys(map(ord, "\u200b\u200e\u200f\u2060\ufeff\u00ad"))  # take no room, so nobody sees them
)
_WRAPPERS = (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("\\text{", "}"))
_FORMULA_CHARS = 2000  # of a reply that marks no answer, this much of its end is read as a formula


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a reply earns.

    Attributes:
        score: From 0 to 1.
        reason: Why there was nothing to judge, or no way to; None where the answer itself is right or wrong.
    """

    score: float
    reason: str | None = None


def exact(reply: str, answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the stated answer is the gold one, apart from case, white space, typography and markup around it.

    Example:
        >>> exact("Answer:  new  york", "New York", {}), exact("York", "New York", {})
        (True, False)
        >>> exact("The answer is **−5**.", "-5", {}), exact("<think>Paris", "Paris", {})
        (True, False)
    """
    return _judge_exact(reply, answer).score == 1.0


def numeric(reply: str, answer: str, row: Mapping[str, Any]) -> bool:
    """Whether the last number of the stated answer is that of the gold one; ``numbers`` says how numbers are read.

    Every case of ``answer_table`` is one of its promises.

    Example:
        >>> numeric("it costs $1,234.50", "#### 1234.5", {}), numeric("0.75", "3/4", {}), numeric("12", "2", {})
        (True, True, False)
    """
    return _judge_numeric(reply, answer).score == 1.0


def math_verify(reply: str, answer: str, row: Mapping[str, Any]) -> bool:
    """Whether two formulas are equal, by the package ``math-verify``: LaTeX, sets, intervals, matrices.

    They are judged in another process, which is stopped when it takes too long: the answer is wrong then.

    Raises:
        EnvError: The package is not installed, or no process can be started.
    """
    return _judge_formula(reply, answer).score == 1.0


def _judge_exact(reply: str, answer: str) -> Verdict:
    stated, gold = stated_answer(reply), stated_answer(answer)
    if stated.missing or gold.missing:
        return Verdict(0.0, stated.missing or "the gold answer is empty")
    return Verdict(float(_plain(stated.text) == _plain(gold.text)))


def _judge_numeric(reply: str, answer: str) -> Verdict:
    stated, gold = stated_answer(reply), stated_answer(answer)
    if stated.missing:
        return Verdict(0.0, stated.missing)
    number, right = (read_number(one.text, formula=one.is_boxed) for one in (stated, gold))
    if number is None or right is None:
        return Verdict(0.0, "the answer is no number" if number is None else "the gold answer is no number")
    return Verdict(float(number.equals(right)))


def _judge_formula(reply: str, answer: str) -> Verdict:
    _math_verify_package()
    stated, gold = stated_answer(reply), stated_answer(answer)
    if stated.missing or gold.missing:
        return Verdict(0.0, stated.missing or "the gold answer is empty")
    right, why = judge_formulas(_as_math(gold), _as_math(stated))
    return Verdict(float(right), why and f"the answer was not judged: {why}")


VERIFIERS: dict[str, Verifier] = {"exact": exact, "numeric": numeric, "math_verify": math_verify}
"""The verifiers that have a name."""

_JUDGES: tuple[tuple[Verifier, Callable[[str, str], Verdict]], ...] = (
    (exact, _judge_exact),
    (numeric, _judge_numeric),
    (math_verify, _judge_formula),
)


def find_verifier(verifier: str | Verifier) -> Verifier:
    """The function that a setting means.

    Args:
        verifier: A name, ``"module:function"``, or a function ``(reply, answer, row) -> score``.

    Raises:
        SettingError: There is no such verifier.
        EnvError: The package math-verify is not installed.
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


def judge(verifier: Verifier, reply: str, answer: str, row: Mapping[str, Any]) -> Verdict:
    """What a reply earns, and why it could not be judged, if so.

    Raises:
        EnvError: The verifier raised, or returned something else: it is broken, which no reply is to blame for.
    """
    for named, judge_named in _JUDGES:
        if verifier is named:
            return judge_named(reply, answer)
    try:
        earned = verifier(reply, answer, row)
        is_score = (
            isinstance(earned, (bool, int, float, np.bool_, np.integer, np.floating)) and 0.0 <= float(earned) <= 1.0
        )
    except KeyboardInterrupt:
        raise
    # A verifier is foreign code: whatever it raises is one error that names it.
    except BaseException as error:
        raise EnvError(
            f"verifier {_name(verifier)} raised {described(error, 300)} for the reply {reply[:80]!r} and the answer "
            f"{answer[:80]!r}. A verifier must return a score for every text."
        ) from error
    if not is_score:
        raise EnvError(
            f"verifier {_name(verifier)} returned {shown(earned)}; it must return a number from 0 to 1, or a bool."
        )
    return Verdict(float(earned))


def score(verifier: Verifier, reply: str, answer: str, row: Mapping[str, Any]) -> float:
    """What a reply earns, 0 to 1.

    Raises:
        EnvError: As ``judge``.
    """
    return judge(verifier, reply, answer, row).score


def answer_key(verifier: Verifier, reply: str) -> str | None:
    """What a reply states as its answer, such that replies which a verifier takes for one answer have one key.

    Args:
        verifier: What answers are judged by; one that is no named one is taken to compare texts.
        reply: Any text.

    Returns:
        Under ``numeric`` the number, exactly, else the plain text; None where nothing is stated.

    Example:
        >>> answer_key(numeric, "so #### 1,234.50"), answer_key(numeric, "2469/2"), answer_key(exact, "**Rome**.")
        ('2469/2', '2469/2', 'rome')
        >>> answer_key(exact, "<think>5") is None
        True
    """
    stated = stated_answer(reply)
    if stated.missing:
        return None
    if verifier is not numeric:
        return _plain(stated.text)
    number = read_number(stated.text, formula=stated.is_boxed)
    return None if number is None else str(number.value)


def _plain(text: str) -> str:
    """What two texts have in common that differ by case, white space, typography and the markup around them."""
    text = unicodedata.normalize("NFC", text).translate(_TYPOGRAPHY)
    for _ in range(4):  # markup within markup, as far as people go
        for sign in ("`", "*", "."):  # where nothing else is stated, they are the answer
            text = text.strip()
            text = (text.removesuffix(sign) if sign == "." else text.strip(sign)) or text
        for opening, closing in _WRAPPERS:
            within = text[len(opening) : -len(closing)]
            if text.startswith(opening) and text.endswith(closing) and within.strip() and closing not in within:
                text = within
    return " ".join(text.casefold().split())


def _as_math(stated: Stated) -> str:
    return f"\\boxed{{{stated.text if stated.is_boxed else stated.text[-_FORMULA_CHARS:]}}}"


def _math_verify_package() -> Any:
    try:
        return importlib.import_module("math_verify")
    except ImportError as error:
        raise EnvError(
            "verifier='math_verify' needs the package math-verify: pip install 'gspo-rllib[datasets]'."
        ) from error


def _name(verifier: Verifier) -> str:
    return getattr(verifier, "__qualname__", repr(verifier))

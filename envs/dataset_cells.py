"""What the columns of a dataset hold: what a row asks, and its gold answer."""

from __future__ import annotations

import datetime
import decimal
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from gspo_rllib.envs.answers import Stated, stated_answer
from gspo_rllib.envs.numbers import read_number
from gspo_rllib.envs.verifiers import VERIFIERS, Verifier, exact, numeric
from gspo_rllib.errors import shown

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*(?:["'](?:role|content)["'])\s*:""")
"""How messages begin where a file that knows texts only, as CSV does, holds them."""
_EXACT_DIGITS = 15  # any number of so many digits is itself again after it was a float
_PLAIN_NUMBER = re.compile("-?[0-9]{1,100}(?:[.][0-9]{1,100})?")
"""What is a number whoever reads it: almost all gold answers are, and reading one exactly takes twice as long as the
rest of the look at its row."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a row asks.

    Attributes:
        text: The text of the message that the policy is to answer.
        system_prompt: The text of the row's system message; None where it has none.
    """

    text: str
    system_prompt: str | None = None


def question_of(value: Any) -> Asked:
    """What the question column of a row asks: a text, a number, or a list of messages.

    Raises:
        ValueError: It holds anything else; the message says what.

    Example:
        >>> question_of([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "6 * 7?"}])
        Asked(text='6 * 7?', system_prompt='Be brief.')
        >>> question_of(None)
        Traceback (most recent call last):
        ValueError: holds nothing
    """
    if isinstance(value, Mapping) and "role" in value:
        value = [value]
    if isinstance(value, (list, tuple, np.ndarray)):
        return _conversation(list(value))
    if isinstance(value, (bool, np.bool_)):
        raise ValueError(f"holds {value!r}, which is no question")
    if isinstance(value, str) and _MESSAGES.match(value):
        return _conversation(_written_messages(value))
    return Asked(_text(value, "write it as a text, or as a list of messages with 'role' and 'content'"))


def gold_reader(verifier: Verifier) -> Callable[[Any], str]:
    """How the answer column is read for a verifier: a function from what it holds to the gold answer.

    It raises ``ValueError``, which says what is wrong, where the column holds nothing, or what is no answer: for a
    named verifier, a text that states none, and for ``numeric`` one that states no number: no reply could be right.

    Args:
        verifier: Compares with the gold answers. One of the user's own is given a mapping or a list as JSON.

    Example:
        >>> from gspo_rllib.envs.verifiers import exact, numeric
        >>> gold_reader(exact)(42), gold_reader(exact)(True), gold_reader(lambda *_: 1.0)([1])
        ('42', 'True', '[1]')
        >>> gold_reader(numeric)("#### n/a")
        Traceback (most recent call last):
        ValueError: holds '#### n/a', which is no number; verifier='exact' and 'math_verify' take others
    """
    if verifier is numeric or verifier is exact:
        return _gold_number if verifier is numeric else _gold_exact
    return _gold_stated if verifier in VERIFIERS.values() else gold_of_any_form


def gold_of_any_form(value: Any) -> str:
    """What a verifier of the user's own is given: a text, or JSON."""
    if isinstance(value, (Mapping, list, tuple, np.ndarray)):
        return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value, ensure_ascii=False, default=str)
    return _gold_text(value)


def _gold_stated(value: Any) -> str:
    return _stated(value)[0]


def _stated(value: Any) -> tuple[str, Stated]:
    text = _gold_text(value)
    stated = stated_answer(text)
    if stated.missing:
        raise ValueError(f"holds {shown(text, 60)}, which states no answer: {stated.missing}")
    return text, stated


def _gold_exact(value: Any) -> str:
    if isinstance(value, (float, np.floating)) and math.isfinite(value):
        # A table with a gap holds whole numbers as 2.0, and one of 32-bit floats 0.1 as 0.10000000149011612.
        text = str(value)
        if float(value).is_integer() or len(text.partition("e")[0].strip("-0.").replace(".", "")) > _EXACT_DIGITS:
            raise ValueError(f"holds the float {text}, whose text no reply may match; verifier='numeric' does")
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        raise ValueError(f"holds the time {value}, where a reply may give the day alone; write it as a text")
    return _gold_stated(value)


def _gold_number(value: Any) -> str:
    text, stated = _stated(value)
    if not _PLAIN_NUMBER.fullmatch(stated.text) and read_number(stated.text, formula=stated.is_boxed) is None:
        raise ValueError(f"holds {shown(text, 60)}, which is no number; verifier='exact' and 'math_verify' take others")
    return text


def _gold_text(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return str(value)
    return _text(value, "name a column of text, or a verifier of your own, which is given it as JSON")


def agree(gold: str, other: str) -> bool:
    """Whether two gold answers state the same, whatever is written around them.

    Example:
        >>> agree("6 * 7 = 42 #### 42", "42.0"), agree("paris", "Paris"), agree("41", "42")
        (True, True, False)
    """
    one, two = stated_answer(gold), stated_answer(other)
    if one.text.casefold() == two.text.casefold():
        return True
    numbers = [read_number(stated.text, formula=stated.is_boxed) for stated in (one, two)]
    return numbers[0] is not None and numbers[1] is not None and numbers[0].equals(numbers[1])


def _text(value: Any, remedy: str) -> str:
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("holds an empty text")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"holds half a character ({value[error.start]!r}), which no tokenizer takes"
                ) from error
        return str.__str__(value)
    if value is None or (isinstance(value, (Real, decimal.Decimal, datetime.date)) and value != value):
        raise ValueError("holds nothing")
    if isinstance(value, (Real, decimal.Decimal)) and not isinstance(value, (bool, np.bool_)) and math.isfinite(value):
        return str(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return str(value)
    raise ValueError(f"holds {shown(value, 60)}, a {type(value).__name__}; {remedy}")


def _conversation(messages: list[Any]) -> Asked:
    turns: list[tuple[str, str]] = []
    for number, message in enumerate(messages, start=1):
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in _ROLES:
            raise ValueError(
                f"message {number} is {shown(message, 60)}; each must have a 'role' ({', '.join(_ROLES)}) and 'content'"
            )
        turns.append((role, _content(message.get("content"), number)))
    system = "\n\n".join(text for role, text in turns if role in ("system", "developer"))
    turns = [(role, text) for role, text in turns if role not in ("system", "developer")]
    if not turns:
        raise ValueError("has no message of the user")
    if turns[-1][0] == "assistant":
        raise ValueError("ends with a message of the assistant, which would tell the answer; end it with the user's")
    if len(turns) == 1:
        return Asked(turns[0][1], system or None)
    return Asked("\n\n".join(f"{role}: {text}" for role, text in turns), system or None)


def _written_messages(text: str) -> list[Any]:
    try:
        return list(json.loads(text))
    except ValueError as error:
        raise ValueError(
            f"holds {shown(text, 60)}, which are messages, but not in JSON ({error}); write them with json.dumps"
        ) from error


def _content(content: Any, number: int) -> str:
    parts = list(content) if isinstance(content, (list, tuple, np.ndarray)) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else part for part in parts]
    text = "".join(part for part in texts if isinstance(part, str))
    if not text.strip() or not all(isinstance(part, str) for part in texts):
        raise ValueError(f"message {number} holds {shown(content, 60)}; only text can be asked")
    return text

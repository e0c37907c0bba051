"""What the columns of a dataset hold: what a row asks, and its gold answer."""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from gspo_rllib.envs.answers import stated_answer
from gspo_rllib.envs.numbers import read_number
from gspo_rllib.errors import shown

_ROLES = ("system", "developer", "user", "assistant", "tool")


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
    return Asked(_text(value, "write it as a text, or as a list of messages with 'role' and 'content'"))


def answer_of(value: Any, *, structured: bool, number: bool = False) -> str:
    """The gold answer in the answer column of a row.

    Args:
        value: What the column holds.
        structured: Whether a mapping or a list is handed on as JSON, to a verifier that can read it.
        number: Whether it must state a number, since no reply to anything else could be right.

    Raises:
        ValueError: It holds nothing, or what is no answer; the message says what.

    Example:
        >>> answer_of(42, structured=False), answer_of(True, structured=False), answer_of([1], structured=True)
        ('42', 'True', '[1]')
        >>> answer_of(None, structured=True)
        Traceback (most recent call last):
        ValueError: holds nothing
    """
    if isinstance(value, (bool, np.bool_)):
        return str(value)
    if structured and isinstance(value, (Mapping, list, tuple, np.ndarray)):
        return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value, ensure_ascii=False, default=str)
    text = _text(value, "name a column of text, or a verifier of your own, which is given it as JSON")
    if structured:
        return text
    stated = stated_answer(text)
    if stated.missing:
        raise ValueError(f"holds {shown(text, 60)}, which states no answer: {stated.missing}")
    if number and read_number(stated.text, formula=stated.is_boxed) is None:
        raise ValueError(f"holds {shown(text, 60)}, which is no number; verifier='exact' and 'math_verify' take others")
    return text


def _text(value: Any, remedy: str) -> str:
    if value is None or (isinstance(value, (Real, decimal.Decimal, datetime.date)) and value != value):
        raise ValueError("holds nothing")
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("holds an empty text")
        return str.__str__(value)
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


def _content(content: Any, number: int) -> str:
    parts = list(content) if isinstance(content, (list, tuple, np.ndarray)) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else part for part in parts]
    text = "".join(part for part in texts if isinstance(part, str))
    if not text.strip() or not all(isinstance(part, str) for part in texts):
        raise ValueError(f"message {number} holds {shown(content, 60)}; only text can be asked")
    return text

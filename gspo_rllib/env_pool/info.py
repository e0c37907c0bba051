"""What of an environment's ``info`` comes along: plain data that is its own, and the words a run reads in their types.

Environments hand out objects that they go on changing, and numbers of numpy's. What is kept is a copy, so that a turn
says later what it said when it was played, in whichever process that was.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np

from gspo_rllib.errors import shown
from gspo_rllib.types import REWARD_PARTS

OBSERVATION_ROLES = ("user", "tool")

_PLAIN = frozenset({str, int, float, bool, type(None)})
_VALUE_OF: dict[type, Callable[[Any], Any]] = {str: str.__str__, int: int.__int__, float: float.__float__}
_FOREIGN = object()


class ContractError(Exception):
    """An environment returned something the language-env contract does not allow."""


def plain_info(info: object, call: str) -> dict[str, Any]:
    """A copy of the plain data in an ``info``, numbers of numpy's as Python's; other objects are left behind.

    Args:
        info: What the environment returned.
        call: ``"reset"`` or ``"step"``.

    Raises:
        ContractError: It is no dict, is nested without end, or one of the words a run reads is not what it must be.
    """
    if not isinstance(info, dict):
        raise ContractError(f"{call}() returned the info {shown_with_type(info)}; it must be a dict.")
    if not isinstance(role := info.get("obs_role", "user"), str) or role not in OBSERVATION_ROLES:
        raise ContractError(f"info['obs_role'] is {shown_with_type(role)}; allowed: {', '.join(OBSERVATION_ROLES)}.")
    try:
        plain: dict[str, Any] = _plain(info)
    except RecursionError:
        raise ContractError(f"{call}() returned an info that is nested without end; it must be plain data.") from None
    for word, (read, allowed) in _WORDS.items():
        if word not in info:
            continue
        try:
            plain[word] = read(info[word])
        except ValueError:
            raise ContractError(f"info[{word!r}] is {shown_with_type(info[word])}; {allowed}.") from None
    return plain


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number; an integer beyond all floats is not."""
    # Asking the abstract Real takes longer than all else together, so the usual types come first.
    with contextlib.suppress(OverflowError):
        return isinstance(value, (float, int, np.bool_, Real)) and math.isfinite(value)
    return False


def shown_with_type(value: object) -> str:
    """A value as messages show it, its type included."""
    text = shown(value)
    return text if text.endswith(")") and "… (" in text else f"{text} ({type(value).__name__})"


def _plain(value: Any) -> Any:
    """A copy as plain data, or ``_FOREIGN``; what is foreign in a dict is left out of it."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, dict):
        pairs = ((key, _plain(item)) for key, item in value.items() if isinstance(key, str))
        return {key: item for key, item in pairs if item is not _FOREIGN}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        if any(item is _FOREIGN for item in items):
            return _FOREIGN
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        item = value.item()
        return item if type(item) in _PLAIN else _FOREIGN
    # Of a subclass, only the value: the class may be unknown where it is sent.
    return next((read(value) for base, read in _VALUE_OF.items() if isinstance(value, base)), _FOREIGN)


def _flag(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    if (plain := _plain(value)) not in (True, False):  # 1 and 0.0 are among them
        raise ValueError
    return bool(plain)


def _numbers(value: Any) -> dict[str, float]:
    plain = _plain(value)
    if not isinstance(value, dict) or len(plain) < len(value) or not all(map(is_finite, plain.values())):
        raise ValueError
    return {name: float(number) for name, number in plain.items()}


_WORDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "success": (_flag, "it must be True or False, or None where there is no such thing"),
    "valid_action": (_flag, "it must be True or False"),
    REWARD_PARTS: (_numbers, "it must be a dict of names and finite numbers"),
}
"""How a run reads a word, and what it may be."""

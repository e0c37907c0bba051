"""Fields of a recorded trajectory, checked: names that are known, ids, log-probabilities, versions, numbers.

What is refused is a ``RecordError`` that begins with the place, so that it can be found in a file of many groups.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gspo_rllib.errors import RecordError, did_you_mean, shown

_END = 2**31
"""Ids and versions are int32."""


def checked_fields(row: Any, allowed: Collection[str], place: str) -> Mapping[str, Any]:
    """An object without unknown names: a misspelt one would otherwise be a missing one.

    Raises:
        RecordError: It is no object, or has another name.
    """
    if not isinstance(row, Mapping):
        raise RecordError(f"{place} is {shown(row)}; it must be an object. Allowed: {', '.join(sorted(allowed))}.")
    for name in row:
        if name not in allowed:
            raise RecordError(f"{place}: {shown(name)} is unknown. {did_you_mean(str(name), allowed)}")
    return row


def checked_list(value: Any, what: str, place: str) -> Sequence[Any]:
    """A list with something in it.

    Raises:
        RecordError: It is none.
    """
    if not isinstance(value, list | tuple) or not value:
        raise RecordError(f"{place} is {shown(value)}; it must be a list of at least one {what}.")
    return value


def checked_ids(value: Any, place: str, what: str = "token id") -> np.ndarray:
    """int32, token ids or versions.

    Raises:
        RecordError: It is no list of whole numbers from 0.
    """
    ids = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(ids, list | tuple) or set(map(type, ids)) - {int}:
        raise RecordError(f"{place} is {shown(value)}; it must be a list of whole numbers.")
    for token_id in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= token_id < _END:
            raise RecordError(f"{place} holds {shown(token_id)}, which is no {what}; each must be at least 0.")
    return np.array(ids, dtype=np.int32)


def checked_logprobs(value: Any, count: int, place: str) -> np.ndarray:
    """float32, one log-probability for each sampled id.

    Args:
        value: What was recorded.
        count: Sampled ids.
        place: Where.

    Raises:
        RecordError: There are more or fewer, or one is no finite number of at most 0.
    """
    logprobs = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(logprobs, list | tuple):
        raise RecordError(f"{place} is {shown(value)}; it must be a list of numbers, or left out.")
    if len(logprobs) != count:
        raise RecordError(
            f"{place} has {len(logprobs)} numbers for {count} sampled ids; there must be one log-probability for each. "
            "Where some are missing, leave out all of them."
        )
    if set(map(type, logprobs)) - {int, float}:
        wrong = next(n for n, one in enumerate(logprobs) if type(one) not in (int, float))
        raise RecordError(f"{place}[{wrong}] is {shown(logprobs[wrong])}; it must be a number (nats).")
    with np.errstate(over="ignore"):
        rounded = np.array(logprobs, dtype=np.float64).astype(np.float32)
    (wrongs,) = np.nonzero(~(np.isfinite(rounded) & (rounded <= 0)))
    if len(wrongs):
        raise RecordError(
            f"{place}[{wrongs[0]}] is {shown(logprobs[wrongs[0]])}; each must be finite and at most 0 (nats)."
        )
    return rounded


def checked_version(value: Any, count: int, place: str) -> tuple[int, np.ndarray | None]:
    """The weights version that sampled a reply: the oldest, and that of each id where they are listed.

    Args:
        value: A version, or one for each sampled id.
        count: Sampled ids.
        place: Where.

    Raises:
        RecordError: It is neither.
    """
    if isinstance(value, list | tuple):
        versions = checked_ids(value, place, "version")
        if len(versions) != count:
            raise RecordError(
                f"{place} has {len(versions)} versions for {count} sampled ids; one each, or one for all."
            )
        return int(versions.min()), versions
    if not is_whole(value) or not 0 <= value < _END:
        raise RecordError(f"{place} is {shown(value)}; it must be a whole number of at least 0, or one for each id.")
    return int(value), None


def is_whole(value: Any) -> bool:
    """Whether something is a whole number; True and 1.0 are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def checked_number(value: Any, place: str) -> float:
    """A finite number.

    Raises:
        RecordError: It is none; booleans and texts are none.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not _is_finite(value):
        raise RecordError(f"{place} is {shown(value)}; it must be a finite number.")
    return float(value)


def checked_text(value: Any, place: str) -> str:
    """A text.

    Raises:
        RecordError: It is none.
    """
    if not isinstance(value, str):
        raise RecordError(f"{place} is {shown(value)}; it must be a text.")
    return value


def checked_choice(value: Any, allowed: Collection[Any], place: str) -> Any:
    """One of a few values.

    Raises:
        RecordError: It is another one.
    """
    # 1 is equal to True.
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise RecordError(f"{place} is {shown(value)}; allowed: {', '.join(map(repr, allowed))}.")
    return value


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False

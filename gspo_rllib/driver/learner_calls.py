"""Calls of learners whose errors come back as values.

RLlib ends a process in which anything is raised, and the error with it: what was wrong is then known to its log alone.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import ray.cloudpickle

from gspo_rllib.errors import described


@dataclass(frozen=True, slots=True)
class Raised:
    """What a call raised.

    Attributes:
        error: The exception; another one with its words where it cannot be sent.
        text: What it is, and where it was raised.
    """

    error: Exception
    text: str

    @classmethod
    def by(cls, error: Exception) -> Raised:
        """What is told of an exception that was caught."""
        return cls(_sendable(error), f"{described(error, 300)} ({raised_where(error)})")


@dataclass(frozen=True, slots=True)
class GuardedCall:
    """A function of a learner, or the name of a method, that can be sent to it.

    Attributes:
        function: Called with the learner and further arguments.
        num_values: How many values it returns, each of which Ray keeps for itself.
    """

    function: Callable[..., Any] | str
    num_values: int = 1

    def __call__(self, learner: Any, **kwargs: Any) -> Any:
        """What the function returns; where it raises, ``Raised`` in place of its first value."""
        try:
            if isinstance(self.function, str):
                return getattr(learner, self.function)(**kwargs)
            return self.function(learner, **kwargs)
        except Exception as error:  # noqa: BLE001, of any class: it is raised again where it can be answered for
            raised = Raised.by(error)
            return raised if self.num_values == 1 else (raised, *[None] * (self.num_values - 1))


@dataclass(frozen=True, slots=True)
class GuardedStream:
    """A generator of a learner that can be sent to it; how it ended is asked for afterwards.

    Attributes:
        function: Called with the learner.
    """

    function: Callable[[Any], Iterator[Any]]

    def __call__(self, learner: Any) -> Iterator[Any]:
        """What the function yields."""
        learner.stream_ended_with = None
        try:
            yield from self.function(learner)
        except Exception as error:  # noqa: BLE001, of any class: it is raised again where it can be answered for
            learner.stream_ended_with = Raised.by(error)

    @staticmethod
    def ended_with(learner: Any) -> Raised | None:
        """What the latest one of a learner raised."""
        return cast("Raised | None", learner.stream_ended_with)


def set_kept(learner: Any, *, small: list[ray.ObjectRef], arrays: list[ray.ObjectRef]) -> None:
    """Sets in a learner what its ``kept_state`` gave; in lists, values stay in the object store until their turn.

    Args:
        learner: One that was built as the one that gave it.
        small: The first value, alone.
        arrays: All others.
    """
    learner.set_kept_state(*ray.get(small[0]), map(ray.get, arrays))


def own_copy(tree: Any) -> Any:
    """A state out of the object store, its arrays copied: torch would write into those, and all who read them.

    Args:
        tree: Nested mappings and sequences.

    Example:
        >>> shared = np.zeros(1)
        >>> shared.flags.writeable = False
        >>> own_copy({"moments": [shared]})["moments"][0].flags.writeable
        True
    """
    if isinstance(tree, np.ndarray):
        return tree if tree.flags.writeable else tree.copy()
    if isinstance(tree, dict):
        own = copy.copy(tree)
        own.update((key, own_copy(value)) for key, value in tree.items())
        return own
    if type(tree) in (list, tuple):
        return type(tree)(map(own_copy, tree))
    return tree


def raised_where(error: BaseException) -> str:
    """File and line that raised an exception, e.g. ``learner.py:120``.

    Example:
        >>> raised_where(ValueError("made, never raised"))
        'nowhere'
    """
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else "nowhere"


def _sendable(error: Exception) -> Exception:
    try:
        ray.cloudpickle.loads(ray.cloudpickle.dumps(error))
    except Exception:  # noqa: BLE001, whatever an exception's own pickling raises
        return RuntimeError(described(error))
    return error

"""Calls of env runners whose errors come back as what they are.

RLlib takes an exception in a remote env runner for its death: it logs it there, restarts the runner, and the driver
sees a runner that is gone. A refusal of ours would come again with every restart; so it comes back as a value. A lost
engine is one that a new runner does not have; it is raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gspo_rllib.errors import EngineLostError, GSPOError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Raised:
    """What a call raised."""

    error: GSPOError


@dataclass(frozen=True, slots=True)
class RunnerCall(Generic[T]):
    """A function of an env runner that can be sent to it.

    Attributes:
        function: Called with the env runner.
    """

    function: Callable[[Any], T]

    def __call__(self, runner: Any) -> T | Raised:
        """What the function returns, or the error of ours that it raised; any other error is raised."""
        try:
            return self.function(runner)
        except EngineLostError:
            raise
        except GSPOError as error:
            return Raised(error)


def returned(answers: Iterable[T | Raised]) -> list[T]:
    """The answers of runners.

    Raises:
        GSPOError: The first error among them.
    """
    good: list[T] = []
    for answer in answers:
        if isinstance(answer, Raised):
            raise answer.error
        good.append(answer)
    return good

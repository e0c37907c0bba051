"""How many threads torch computes with in a process that Ray has not started.

Ray gives its actors as many as CPUs they were given. Torch's own default is all of a machine's: a matrix is then cut
otherwise and rounded otherwise than in an actor, so that the same model samples other texts there, and steps of a small
model, of microseconds each, wait for whatever else runs on the machine.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import ClassVar

from gspo_rllib.engines.choice import SMALL, num_parameters
from gspo_rllib.errors import ModelError

_ASKED_FOR = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def compute_threads(model: str, num_cpus: float, *, trust_remote_code: bool = False) -> int | None:
    """Threads that a model computes with where it was given so many CPUs.

    Args:
        model: Local Hugging Face folder or hub name.
        num_cpus: CPUs that its process was given.
        trust_remote_code: Whether the model folder may run its own code.

    Returns:
        The number; None to leave it as it is: the user or Ray has set it, or the model is not small.
    """
    if any(os.environ.get(name) for name in _ASKED_FOR):
        return None
    try:
        size = num_parameters(model, trust_remote_code)
    except ModelError:  # told where the model is loaded
        return None
    return max(1, int(num_cpus)) if size is not None and size <= SMALL else None


class ComputeThreads:
    """Has torch compute with so many threads until it is released, or at the end of a ``with`` block.

    Of several that are held the last one counts; after the last, torch has as many as before the first.

    Args:
        number: Threads; None changes nothing.
    """

    _held: ClassVar[list[ComputeThreads]] = []
    _before: ClassVar[int] = 0

    def __init__(self, number: int | None) -> None:
        import torch

        if number is None:
            return
        self._number = number
        if not self._held:
            ComputeThreads._before = torch.get_num_threads()
        self._held.append(self)
        torch.set_num_threads(number)

    def release(self) -> None:
        """Gives torch its threads back, once."""
        import torch

        if self in self._held:
            self._held.remove(self)
            torch.set_num_threads(self._held[-1]._number if self._held else self._before)

    def __enter__(self) -> ComputeThreads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

"""Suites that draw from the global random generators: they get their own state, and the caller's comes back."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_lock = threading.Lock()


class OwnRandomness:
    """A state of ``random`` and of NumPy's global generator that belongs to one environment.

    Inside ``with own.active():`` the global generators are in that state, and only one thread of the process is there
    at a time; afterwards they are as they were. A thread that draws from them elsewhere meanwhile disturbs it, as it
    disturbs everybody.

    Args:
        seed: Where the state starts.

    Example:
        >>> before = random.getstate()
        >>> own = OwnRandomness(7)
        >>> with own.active():
        ...     first = random.random()
        >>> with own.active():
        ...     second = random.random()
        >>> reference = random.Random(7)
        >>> (first, second) == (reference.random(), reference.random()), random.getstate() == before
        (True, True)
    """

    def __init__(self, seed: int) -> None:
        self._python: Any = random.Random(seed).getstate()
        self._numpy: Any = np.random.RandomState(seed).get_state()

    @contextmanager
    def active(self) -> Iterator[None]:
        """The global generators are this state's while the block runs."""
        with _lock:
            outside = random.getstate(), np.random.get_state()
            random.setstate(self._python)
            np.random.set_state(self._numpy)
            try:
                yield
            finally:
                self._python, self._numpy = random.getstate(), np.random.get_state()
                random.setstate(outside[0])
                np.random.set_state(outside[1])

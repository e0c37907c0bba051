"""Sees that an engine does not answer: a call of it that hangs would otherwise be waited for without end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOKS = 10  # within a timeout
_LONGEST_LOOK_S = 1.0


class EngineWatch:
    """Looks from a thread of its own how long a call of an engine has taken; ``close`` ends it.

    Args:
        timeout_s: How long one call may take.
        on_late: Called from the thread with the seconds a call has taken; once for each call.
    """

    def __init__(self, timeout_s: float, on_late: Callable[[float], None]) -> None:
        self._timeout_s = timeout_s
        self._on_late = on_late
        self._since: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="gspo-engine-watch", daemon=True).start()

    @contextmanager
    def call(self) -> Iterator[None]:
        """The block is one call; a call within a call is part of it."""
        if self._since is not None:
            yield
            return
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def close(self) -> None:
        """Looks no more."""
        self._closed.set()

    def _run(self) -> None:
        told: float | None = None
        while not self._closed.wait(min(_LONGEST_LOOK_S, self._timeout_s / _LOOKS)):
            since = self._since
            if since is None or since == told:
                continue
            taken = time.monotonic() - since
            if taken >= self._timeout_s:
                told = since
                self._on_late(taken)

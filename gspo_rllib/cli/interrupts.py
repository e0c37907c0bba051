"""Ctrl-C and SIGTERM end a run between two iterations, where a checkpoint is whole."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Inside ``with``, the first SIGINT or SIGTERM asks to stop; a second one raises ``KeyboardInterrupt`` at once.

    Args:
        after: What is finished first, as the answer to the signal names it.

    Attributes:
        signal: The signal that asked; None so far.
    """

    def __init__(self, after: str = "this iteration") -> None:
        self._after = after
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        print(f"\nstopping after {self._after}, then saving; once more to stop at once", file=sys.stderr, flush=True)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it; 0 when nobody asked."""
        return 128 + self.signal if self.signal is not None else 0

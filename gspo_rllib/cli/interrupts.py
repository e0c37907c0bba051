"""Ctrl-C, SIGTERM and SIGHUP end a run between two iterations, where a checkpoint is whole; before that, at once."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from gspo_rllib.cli.output import nobody_reads

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a command; SIGHUP comes where the terminal is gone."""

_AGAIN_S = 0.1
"""After which a signal that came where nothing can be raised comes once more."""


class Terminated(KeyboardInterrupt):
    """A signal ended the command while there was nothing to save; like Ctrl-C, foreign code may not swallow it.

    Attributes:
        signal: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it."""
        return 128 + self.signal


@contextlib.contextmanager
def ends_on_signals() -> Iterator[None]:
    """Inside ``with``, SIGTERM and SIGHUP raise ``Terminated``, so that what was started is stopped on the way out."""
    previous = {number: signal.getsignal(number) for number in ENDING}
    hook = sys.unraisablehook
    try:
        sys.unraisablehook = _Again(hook)
        for number in ENDING:
            _handle(number, _terminate)
        yield
    finally:
        for number, handler in previous.items():
            _handle(number, handler)
        sys.unraisablehook = hook


@contextlib.contextmanager
def handler_kept() -> Iterator[None]:
    """Inside ``with``, Ray may start, whose handler of SIGTERM takes the place of ours; afterwards ours answers again.

    Raises:
        Terminated: The signal came meanwhile: Ray's handler exits with the signal's number.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as exit:
        if callable(before) and _signal_of(exit) is not None:
            raise Terminated(signal.SIGTERM) from exit
        raise
    finally:
        if callable(before):
            _handle(signal.SIGTERM, before)


class StopRequest:
    """Inside ``with``, the first SIGINT, SIGTERM or SIGHUP asks to stop; a second raises ``KeyboardInterrupt`` at once.

    A pipe that takes the output and is closed (``| head``, a ``tee`` that was ended) asks likewise, as SIGPIPE.

    Args:
        after: What is finished first, as the answer to the signal names it.

    Attributes:
        signal: The signal that asked; None so far.
    """

    def __init__(self, after: str = "this iteration") -> None:
        self._after = after
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._output = nobody_reads(self._lose_reader)

    def __enter__(self) -> StopRequest:
        self._output.__enter__()
        for number in (signal.SIGINT, *ENDING):
            self._previous[number] = signal.getsignal(number)
            _handle(number, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            _handle(number, handler)
        self._output.__exit__(kind, error, trace)

    def _lose_reader(self) -> None:
        self.signal = self.signal or signal.SIGPIPE

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
            if self.signal is not None:
                # A terminal that closes says so more than once.
                return
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        with contextlib.suppress(OSError):
            print(
                f"\nstopping after {self._after}, then saving; once more to stop at once", file=sys.stderr, flush=True
            )

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it; 0 when nobody asked."""
        return 128 + self.signal if self.signal is not None else 0


def _terminate(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        _leave_terminal()
    # For a moment of Ray's start its C++ handler of failures answers first, and has the process abort in three seconds.
    signal.alarm(0)
    raise Terminated(number)


class _Again:
    """Sends a signal once more whose exception came where Python passes over it: in a finaliser, or a C callback."""

    def __init__(self, hook: Callable[[Any], Any]) -> None:
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        number = _signal_of(unraisable.exc_value)
        if number is None:
            self._hook(unraisable)
        else:
            threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number)).start()


def _signal_of(error: BaseException | None) -> int | None:
    if isinstance(error, Terminated):
        return error.signal
    # While Ray starts, it is Ray's handler that answers.
    return signal.SIGTERM if isinstance(error, SystemExit) and error.code == signal.SIGTERM else None


def _handle(number: int, handler: Any) -> None:
    # Whoever started this with `nohup` wants it to go on without a terminal.
    is_ignored = number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN
    if handler is not None and not is_ignored and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _leave_terminal() -> None:
    """Has output go nowhere that would go to a terminal which is gone: writing to it fails, and would end the run."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            # Not isatty, which says no of a terminal that is gone.
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)

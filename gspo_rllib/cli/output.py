"""What a command prints, to streams that may fail: a full disk below a log ends no run, and no character does.

Python ends a command with a traceback where its output finds no room, where the locale lacks a character, or where it
was started without output at all (``>&-``); then the first file that is opened takes the number of standard output, and
whatever is printed goes into it.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

EXIT_OUTPUT_LOST = 74
"""EX_IOERR of ``sysexits.h``: the command did its work, and not all of what it printed could be written."""

_listeners: list[Callable[[], None]] = []


class Output:
    """What became of a command's output.

    Attributes:
        is_lost: Whether something that was printed could not be written.
    """

    def __init__(self) -> None:
        self.is_lost = False

    def lose(self, error: OSError) -> None:
        """Notes that standard output takes no more, and says so the first time."""
        if not self.is_lost:
            self.is_lost = True
            print(
                f"gspo-rllib: what is printed cannot be written now ({error.strerror or error}) and is lost; the "
                "command goes on",
                file=sys.stderr,
                flush=True,
            )


@contextlib.contextmanager
def sturdy_output() -> Iterator[Output]:
    """Inside ``with``, printing fails only where nobody reads a pipe any more; streams somebody has replaced are kept.

    Yields:
        What became of standard output.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    output, before = Output(), (sys.stdout, sys.stderr)
    sys.stdout = _sturdy(sys.stdout, sys.__stdout__, 1, output.lose)
    sys.stderr = _sturdy(sys.stderr, sys.__stderr__, 2, _pass_over)
    try:
        yield output
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def nobody_reads(tell: Callable[[], None]) -> Iterator[None]:
    """Inside ``with``, output to a pipe that nobody reads any more is passed over.

    Args:
        tell: Called for every such output.
    """
    _listeners.append(tell)
    try:
        yield
    finally:
        _listeners.remove(tell)


def _pass_over(error: OSError) -> None:
    """There is no other place to say it."""


def _sturdy(stream: Any, own: Any, descriptor: int, lose: Callable[[OSError], None]) -> TextIO:
    if stream is None:
        return open(descriptor, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    if stream is not own or not isinstance(stream, io.TextIOWrapper):
        return stream  # type: ignore[no-any-return]  # somebody's own
    stream.flush()
    raw = _Raw(descriptor, lose)
    unbuffered = not isinstance(stream.buffer, io.BufferedWriter)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),  # type: ignore[type-var, unused-ignore]
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _Raw(io.RawIOBase):
    """Bytes to a descriptor; those that cannot be written are passed over."""

    def __init__(self, descriptor: int, lose: Callable[[OSError], None]) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lose = lose

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        left = memoryview(content).cast("B")
        size = left.nbytes
        while left:  # all of it: a text stream without a buffer does not look how much was written
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # a terminal that another program has made non-blocking
                select.select([], [self._descriptor], [])
            except BrokenPipeError:
                if not _listeners:
                    raise
                for tell in _listeners:
                    tell()
                break
            except OSError as error:
                self._lose(error)
                break
        return size

"""How wide the terminal is, and text that fits it; what is piped stays one line per thing, for ``grep``."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import TextIO

NARROWEST = 20
"""Characters that a line of text has at least, however narrow the terminal is."""

BESIDE = 40
"""Characters that are left beside the names where texts stand there; with fewer they stand below."""


def columns() -> int | None:
    """Width of the terminal in characters (``COLUMNS`` says another); None where output goes to a file or a pipe."""
    if "COLUMNS" in os.environ or sys.stdout.isatty():
        return shutil.get_terminal_size().columns
    return None


def wrapped(text: str, *, indent: int, width: int | None) -> list[str]:
    """A text as lines, each indented.

    Args:
        text: One paragraph.
        indent: Spaces before each line.
        width: Longest line, in characters; None for one line of any length.

    Example:
        >>> wrapped("one two three four five six", indent=2, width=24)
        ['  one two three four', '  five six']
    """
    if width is None:
        return [" " * indent + text]
    lines = textwrap.wrap(text, max(width - indent, NARROWEST), break_long_words=False, break_on_hyphens=False)
    return [" " * indent + line for line in lines]


def tell(text: str, *, to: TextIO | None = None) -> None:
    """Prints a line at once; on a terminal too narrow for it, as several that end between words.

    Args:
        text: The line.
        to: Where to; None for the standard output.
    """
    file = sys.stdout if to is None else to
    width = shutil.get_terminal_size().columns if file.isatty() else None
    first, *rest = [text] if width is None or len(text) <= width else wrapped(text, indent=2, width=width)
    print(first.strip(), *rest, sep="\n", file=file, flush=True)


class TellsWarnings(logging.Handler):
    """Prints what is logged to the standard error, as ``tell`` does; Python's own prints one line, however long."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called by ``logging``."""
        try:
            tell(record.getMessage(), to=sys.stderr)
        except Exception:  # noqa: BLE001, as of every handler: nothing ends because it could not be logged
            self.handleError(record)


@contextlib.contextmanager
def warnings_told() -> Iterator[None]:
    """Inside ``with``, this package's warnings are printed as ``tell`` does, unless somebody else prints them."""
    logger, handler = logging.getLogger("gspo_rllib"), TellsWarnings(logging.WARNING)
    if logger.hasHandlers():
        yield
        return
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def print_names(title: str, rows: Iterable[tuple[str, str]], *, width: int | None) -> None:
    """Prints names and, in a column beside them, what they are; below them where the terminal is too narrow.

    Args:
        title: Line above them.
        rows: Name and text of each.
        width: As for ``wrapped``.
    """
    rows = list(rows)
    column = 2 + max(len(name) for name, _ in rows) + 2
    print(title)
    for name, text in rows:
        if width is not None and width - column < BESIDE:
            print(f"  {name}", *wrapped(text, indent=6, width=width), sep="\n")
        else:
            first, *rest = wrapped(text, indent=column, width=width) or [""]
            print(f"  {name:<{column - 2}}{first.strip()}".rstrip(), *rest, sep="\n")

"""A process that ends others once the one that started it is gone, however that went.

On each line of its standard input is a number: a process group to end when the input ends, or less than 0, one to
forget. It is run as source, and imports nothing of this package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterable


def guard(lines: Iterable[bytes]) -> None:
    """Reads to the end, then ends what is left."""
    groups: set[int] = set()
    for line in lines:
        number = int(line)
        groups.add(number) if number > 0 else groups.discard(-number)
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__" and os.fork() == 0:
    # As nobody's child: Ray ends the children of a worker that goes, before this could end what they have started.
    guard(sys.stdin.buffer)

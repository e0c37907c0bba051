"""Whether memory that was freed goes back to the machine."""

from __future__ import annotations

import ctypes
import functools

_M_MMAP_THRESHOLD = -3
"""glibc's number of that parameter, from malloc.h."""


@functools.cache
def return_large_blocks() -> None:
    """Has glibc give freed blocks of 4 MiB and more back at once, in this process, from now on.

    By itself it keeps blocks of up to 32 MiB for later, in a heap that grows around what is still in use: twice what a
    plan was worked out to take was seen. Other allocators have no such call, and on GPUs it changes nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 4 << 20)

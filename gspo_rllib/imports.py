"""Imports of frameworks: thousands of modules, whose objects stay, so that nobody need look for garbage among them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Inside ``with``, Python collects no garbage: what is imported stays, and looking through it takes an eighth of
    the time.

    What was imported is looked through once, after the block, and collection goes on as it was before.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()

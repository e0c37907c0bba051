"""Imports of frameworks: thousands of modules, whose objects stay, so that nobody need look for garbage among them; and
some draw from the global random states.
"""

from __future__ import annotations

import contextlib
import gc
import random
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


@contextlib.contextmanager
def draws_undone() -> Iterator[None]:
    """Restores the global generators of Python and numpy after the block."""
    import numpy as np

    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)

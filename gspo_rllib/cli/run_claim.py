"""One process trains a run, or a sweep, at a time: it holds a lock in its folder."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from gspo_rllib.claims import held

FILE = ".training"
"""Name of the file that is locked; it says who trains the run."""


def claimed(folder: Path, *, otherwise: str = "") -> AbstractContextManager[None]:
    """Inside ``with``, no other process can claim the folder; where a file system knows no locks, any can.

    Args:
        folder: The folder of a run or a sweep.
        otherwise: What else can be done than to end the process that has it.

    Raises:
        SettingError: On entering: another process trains there.
    """
    return held(folder / FILE, f"{folder} is being trained", otherwise=otherwise)

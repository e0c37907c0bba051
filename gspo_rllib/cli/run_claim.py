"""One process trains a run, or a sweep, at a time: it holds a lock in its folder, which ends with the process."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from gspo_rllib.errors import SettingError

FILE = ".training"
"""Name of the file that is locked; it says who trains the run."""


@contextlib.contextmanager
def claimed(folder: Path, *, otherwise: str = "") -> Iterator[None]:
    """Inside ``with``, no other process can claim the folder; where a file system knows no locks, any can.

    Args:
        folder: The folder of a run or a sweep.
        otherwise: What else can be done than to end the process that has it.

    Raises:
        SettingError: Another process trains there.
    """
    file = None
    try:
        file = _locked(folder / FILE)
    except BlockingIOError as error:
        raise SettingError(
            f"{folder} is being trained {_owner(folder / FILE)}, and two processes would write over each other's "
            f"results. End that one first{otherwise}."
        ) from error
    except OSError:  # no locks there, or a folder that cannot be written, which is refused where it is looked at
        pass
    if file is None:
        yield
        return
    with file:
        file.write(f"by process {os.getpid()} of {platform.node()} since {datetime.datetime.now():%Y-%m-%d %H:%M}")
        file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the folder is gone
                (folder / FILE).unlink()


def _locked(path: Path) -> IO[str]:
    """The file, locked; made where it is not there.

    Raises:
        BlockingIOError: Another process has locked it.
    """
    while True:
        with contextlib.ExitStack() as undo:
            file = undo.enter_context(path.open("a+", encoding="utf-8"))
            try:
                # A lock of the process: no fork of it holds it any longer than the process lives.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except PermissionError as error:  # what some systems say in its place
                raise BlockingIOError from error
            with contextlib.suppress(FileNotFoundError):
                # Whoever held it may have removed it since it was opened.
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    file.truncate(0)
                    undo.pop_all()
                    return file


def _owner(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8") or "by another process"
    return "by another process"

"""A file that one process holds at a time: a lock, which ends with the process whatever ends it."""

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


@contextlib.contextmanager
def held(path: Path, what: str, *, otherwise: str = "") -> Iterator[None]:
    """Inside ``with``, no other process can hold the file; where a file system knows no locks, any can.

    Args:
        path: The file, which says who holds it; made here, and removed at the end.
        what: What is done by whoever holds it, e.g. ``"models/seed is being made"``.
        otherwise: What else can be done than to end the process that has it.

    Raises:
        SettingError: Another process holds it.
    """
    file = None
    try:
        file = _locked(path)
    except BlockingIOError as error:
        raise SettingError(
            f"{what} {_owner(path)}, and two processes would write over each other's results. End that one "
            f"first{otherwise}."
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
                path.unlink()


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

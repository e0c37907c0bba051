"""Where a checkpoint is written: under a temporary name until it is whole, and then in one step under its own.

Whoever is killed, or finds the disk full, leaves what was there before as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from gspo_rllib.checkpoints.manifest import MANIFEST, swapped_out, sync_folder
from gspo_rllib.errors import CheckpointError, described, own_error, shown

WRITING = ".writing_"
"""Leading part of the name of a folder in which a checkpoint is being written."""
_AT_FDCWD, _EXCHANGE = -100, 2


@contextlib.contextmanager
def written(path: Any) -> Iterator[tuple[pathlib.Path, pathlib.Path]]:
    """A folder to write a checkpoint into; at the end of the block it is where it should be, or nothing has changed.

    Args:
        path: Where the checkpoint is to be; None for a new folder below the system's temporary one. A checkpoint that
            is there is replaced. In a folder with other files it is put beside them.

    Returns:
        The folder to write into, and where its content will be.

    Raises:
        CheckpointError: The place cannot be written to, or writing failed.
    """
    target = _place(path)
    try:
        kept = _must_be_kept(target)
        staging = target / ".writing" if kept else target.with_name(f"{WRITING}{target.name}")
        _delete(staging)
        staging.mkdir(parents=True)
        try:
            yield staging, target
            if kept:
                _move_in(staging, target)
            else:
                _take_name(staging, target)
        except BaseException:
            _delete(staging)
            raise
    except Exception as error:
        ours = own_error(error)
        if isinstance(ours, CheckpointError):
            raise ours from (None if ours is error else error)
        if ours is not None or not _is_of_writing(error):
            raise
        raise CheckpointError(f"save: {target} could not be written ({described(_cause(error), 200)}).") from error


def delete_checkpoint(folder: pathlib.Path) -> None:
    """Deletes a checkpoint so that no part of it is ever there under its name."""
    trash = folder.with_name(f".deleting_{folder.name}")
    _delete(trash)
    folder.rename(trash)
    _delete(trash)


def remove_leftovers(folder: pathlib.Path) -> list[str]:
    """Removes what a run that was killed left of its savings, which is nobody's now; returns the names."""
    found = [p for kind in (WRITING, ".deleting_", ".replaced_") for p in sorted(folder.glob(f"{kind}*"))]
    for path in found:
        own = path.with_name(path.name.removeprefix(".replaced_"))
        if path.name.startswith(".replaced_") and not own.exists():
            path.rename(own)
        else:
            _delete(path)
    return [path.name for path in found]


def _place(path: Any) -> pathlib.Path:
    """An absolute path whose parents are there.

    Raises:
        CheckpointError: It is no path, or no folder can be there.
    """
    if path is None:
        return pathlib.Path(tempfile.mkdtemp(prefix="checkpoint_"))
    text = str(path).removeprefix("file://") if isinstance(path, (str, os.PathLike)) else ""
    if not text.strip() or "\0" in text:
        raise CheckpointError(f"save: {shown(path)} is no path; give the folder that the checkpoint is to be in.")
    if "://" in text:
        raise CheckpointError(
            f"save: {shown(path)} is not on this machine's file systems; save to a local folder and copy it there."
        )
    try:
        target = pathlib.Path(text).expanduser().absolute()
        if target.exists() and not target.is_dir():
            raise CheckpointError(f"save: {target} is a file; give the folder that the checkpoint is to be in.")
        target.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"save: no folder can be made at {shown(path)} ({described(error, 200)}).") from error
    return pathlib.Path(os.path.normpath(target))


def _must_be_kept(target: pathlib.Path) -> bool:
    """Whether a folder is there that cannot be replaced as a whole."""
    if not target.is_dir():
        return False
    foreign = any(target.iterdir()) and not (target / MANIFEST).is_file()
    return foreign or not os.access(target.parent, os.W_OK) or os.path.ismount(target) or target.is_symlink()


def _take_name(staging: pathlib.Path, target: pathlib.Path) -> None:
    """Has what was written take the name; what was there before goes once the disk has the change, and not before."""
    old, aside = staging, swapped_out(target)
    moves = [(staging, target)]
    if target.is_dir() and any(target.iterdir()):
        if _exchange(staging, target):
            moves = []
        else:
            _delete(aside)
            old, moves = aside, [(target, aside), (staging, target)]
    for source, place in moves:
        source.rename(place)  # over an empty folder, too
    try:
        sync_folder(target.parent)
    except OSError:
        if not moves:
            _exchange(staging, target)
        for source, place in reversed(moves):
            place.rename(source)
        raise
    _delete(old)


def _move_in(staging: pathlib.Path, target: pathlib.Path) -> None:
    """Puts the entries beside those that are there, the manifest last: until then it is no checkpoint."""
    (target / MANIFEST).unlink(missing_ok=True)
    for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == MANIFEST):
        if (target / entry.name).is_dir():
            shutil.rmtree(target / entry.name)
        entry.replace(target / entry.name)
    staging.rmdir()
    sync_folder(target)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchanges two names in one step, where system and file system can."""
    with contextlib.suppress(AttributeError, OSError):
        rename = ctypes.CDLL(None).renameat2
        return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0)
    return False


def _delete(folder: pathlib.Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _is_of_writing(error: BaseException) -> bool:
    from ray.exceptions import RayError
    from safetensors import SafetensorError

    return isinstance(error, (OSError, SafetensorError, RayError, MemoryError))


def _cause(error: BaseException) -> BaseException:
    """What happened in the process that wrote."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error

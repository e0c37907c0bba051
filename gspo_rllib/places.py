"""Files and folders that people name: as paths, tried before the work whose result goes there, and written whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gspo_rllib.errors import SettingError, shown


def named_path(text: str | os.PathLike[str]) -> Path:
    """A path with the user's home in place of ``~``; where there is no such user, as it is written.

    Example:
        >>> named_path("~nobody-of-that-name/x")
        PosixPath('~nobody-of-that-name/x')
    """
    return Path(os.path.expanduser(text))


@contextlib.contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """Inside ``with``, a place to write what becomes the file at its end; what fails leaves the file as it was.

    Args:
        file: In a folder that is there; it need not be there itself.

    Yields:
        Another name in that folder.
    """
    partial = file.with_name(f".writing_{file.name}")
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def check_folder(path: str | os.PathLike[str], option: str) -> None:
    """Refuses a folder that cannot be made and written into; leaves nothing behind.

    Args:
        path: The folder, there already or not.
        option: What messages call the setting that names it.

    Raises:
        SettingError: It cannot be.
    """
    folder, made = named_path(path), list[Path]()
    try:
        missing = [folder, *folder.parents]
        while missing and not missing[0].exists():
            made.append(missing.pop(0))
        for new in reversed(made):
            new.mkdir()
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingError(
            f"{option} is {shown(str(path))}, where no folder can be written: {why}. Name a folder that can."
        ) from error
    finally:
        for new in made:
            with contextlib.suppress(OSError, ValueError):
                new.rmdir()


def check_file(path: str | os.PathLike[str], option: str) -> None:
    """Refuses a file that cannot be written; one that is there stays as it is, and nothing is left behind.

    Args:
        path: The file, there already or not; its folder is.
        option: What messages call the setting that names it.

    Raises:
        SettingError: It cannot be.
    """
    file = named_path(path)
    try:
        new = not file.exists()
        with file.open("ab"):
            pass
        if new:
            file.unlink()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingError(f"{option}: {shown(str(path))} cannot be written: {why}. Name another file.") from error


def file_to_write(path: str, option: str, endings: str, why: str = "") -> Path:
    """The file that a command will write at its end, checked before anything is played.

    Args:
        path: As it was given.
        option: What messages call the setting that names it.
        endings: Those allowed, e.g. ``".jsonl or .parquet"``.
        why: What messages add about them.

    Raises:
        SettingError: It ends otherwise, its folder does not exist, or it cannot be written.
    """
    file = named_path(path)
    if file.suffix not in endings.split(" or "):
        raise SettingError(f"{option}: {path!r} must end in {endings}{why}.")
    if not file.parent.is_dir():
        raise SettingError(f"{option}: there is no folder {str(file.parent)!r} to write {file.name!r} into.")
    check_file(file, option)
    return file

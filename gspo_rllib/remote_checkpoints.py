"""Checkpoints on storage that is no local folder: ``s3://``, ``gs://`` and whatever else pyarrow or fsspec can open.

Object stores cannot rename, so a checkpoint is committed by a marker. Its files go to a folder with a name of its own,
``.data/NAME-RANDOM``; every one is read back and compared by SHA-256; then ``NAME.checkpoint.json`` is written, which
says where the files are and what they hash to. Who reads looks at markers only: an upload that was cut off is never
taken for a checkpoint, and one of the same name is replaced whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from gspo_rllib import checkpoints
from gspo_rllib.errors import CheckpointError, SettingError

MARKER = ".checkpoint.json"
"""Ending of the file that commits a checkpoint."""
FORMAT = 1

_DATA = ".data"
_BLOCK = 2**22
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")


def is_remote(place: str | Path) -> bool:
    """Whether a text names storage by a URI, rather than a folder of this machine."""
    return _SCHEME.match(str(place)) is not None and not str(place).startswith("file://")


def joined(uri: str, name: str) -> str:
    """A place below another; what stands behind ``?`` concerns the storage.

    Example:
        >>> joined("s3://bucket/runs?region=x", "best")
        's3://bucket/runs/best?region=x'
    """
    place, mark, options = uri.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def check_storage(uri: str) -> None:
    """Writes a few bytes to the storage, reads them back and removes them.

    Raises:
        SettingError: It cannot be opened, written, or read.
    """
    filesystem, root = _opened(uri)
    probe, written = f"{root}/.probe-{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
    try:
        filesystem.create_dir(root, recursive=True)
        with filesystem.open_output_stream(probe) as file:
            file.write(written)
        with filesystem.open_input_stream(probe) as file:
            same = file.read() == written
        filesystem.delete_file(probe)
    except Exception as error:  # of any class: storage is foreign code
        raise SettingError(_unusable(uri, error)) from error
    if not same:
        raise SettingError(f"storage {uri!r}: it does not return what was written to it. Use another.")


def upload(checkpoint: str | Path, uri: str, *, name: str | None = None) -> str:
    """Copies a checkpoint to storage and commits it there; one of its name is replaced.

    Args:
        checkpoint: A whole checkpoint of this machine.
        uri: Where checkpoints are kept.
        name: What it is called there; None for the name of its folder.

    Returns:
        What ``download`` takes.

    Raises:
        CheckpointError: The checkpoint is not whole, or the storage did not keep it; nothing was committed.
    """
    folder = checkpoints.verify(checkpoint)
    name = name or folder.name
    filesystem, root = _opened(uri)
    before = _read_marker(filesystem, root, name)
    data = f"{_DATA}/{name}-{uuid.uuid4().hex[:12]}"
    files: dict[str, list[Any]] = {}
    with _storage_errors(f"{uri}/{name}"):
        try:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                inside = file.relative_to(folder).as_posix()
                files[inside] = [file.stat().st_size, _copied(filesystem, file, f"{root}/{data}/{inside}")]
            _write_whole(
                filesystem,
                f"{root}/{name}{MARKER}",
                json.dumps({"format": FORMAT, "data": data, "files": files}, indent=1).encode(),
            )
        except BaseException:
            with contextlib.suppress(Exception):
                filesystem.delete_dir(f"{root}/{data}")
            raise
        if before is not None:
            with contextlib.suppress(Exception):  # it is out of use; a later clean-up may take it
                filesystem.delete_dir(f"{root}/{before['data']}")
    return joined(uri, name)


def download(uri: str, folder: str | Path) -> Path:
    """Fetches a committed checkpoint.

    Args:
        uri: What ``upload`` returned.
        folder: Folder to put it under, with its own name; one that is there already and whole is taken as it is.

    Raises:
        CheckpointError: There is no committed checkpoint of that name, or a file of it is missing or differs.
    """
    parent, name = _split(uri)
    filesystem, root = _opened(parent)
    with _storage_errors(uri):
        marker = _read_marker(filesystem, root, name)
    if marker is None:
        there = ", ".join(committed(parent)) or "none"
        raise CheckpointError(f"checkpoint {uri!r}: it was never committed there. Whole checkpoints there: {there}.")
    target = Path(folder) / name
    partial = target.with_name(f".fetching_{name}-{uuid.uuid4().hex[:8]}")
    try:
        with _storage_errors(uri):
            for inside, (size, digest) in marker["files"].items():
                _fetch(filesystem, f"{root}/{marker['data']}/{inside}", _inside(partial, inside), size, digest, uri)
        checkpoints.verify(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def committed(uri: str) -> list[str]:
    """Names of the whole checkpoints on the storage, in order."""
    from pyarrow.fs import FileSelector

    filesystem, root = _opened(uri)
    with _storage_errors(uri):
        found = filesystem.get_file_info(FileSelector(root, allow_not_found=True))
    return sorted(info.base_name.removesuffix(MARKER) for info in found if info.base_name.endswith(MARKER))


def _opened(uri: str) -> tuple[Any, str]:
    """A pyarrow file system, and the path in it."""
    from pyarrow import fs

    if not is_remote(uri) and not uri.startswith("file://"):
        return fs.LocalFileSystem(), str(Path(uri).expanduser().resolve())
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except Exception as not_arrows:  # noqa: BLE001, of any class; a scheme that pyarrow does not know may be fsspec's
        try:
            import fsspec

            opened, path = fsspec.core.url_to_fs(uri)
        except Exception as error:
            why = not_arrows if uri.startswith(("s3://", "gs://", "hdfs://")) else error
            raise SettingError(_unusable(uri, why)) from error
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(opened))
    return filesystem, path.rstrip("/")


def _split(uri: str) -> tuple[str, str]:
    """Where a checkpoint is kept, and its name: what ``joined`` joined.

    Example:
        >>> _split("s3://bucket/runs/best?region=x")
        ('s3://bucket/runs?region=x', 'best')
    """
    place, mark, options = uri.partition("?")
    parent, _, name = place.rstrip("/").rpartition("/")
    return f"{parent}{mark}{options}", name


def _unusable(uri: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    return (
        f"storage {uri!r} cannot be used ({type(error).__name__}: {said}). Give a URI that pyarrow or fsspec opens, "
        "e.g. s3://BUCKET/FOLDER, with its credentials in the environment; what pyarrow does not open itself needs its "
        "package (adlfs, …)."
    )


@contextlib.contextmanager
def _storage_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(_unusable(uri, error)) from error


def _copied(filesystem: Any, source: Path, target: str) -> str:
    """Copies a file, reads the copy back, and returns its SHA-256."""
    filesystem.create_dir(str(PurePosixPath(target).parent), recursive=True)
    sent, kept = hashlib.sha256(), hashlib.sha256()
    with source.open("rb") as file, filesystem.open_output_stream(target) as out:
        _through(file.read, sent.update, out.write)
    with filesystem.open_input_stream(target) as file:
        _through(file.read, kept.update)
    if kept.digest() != sent.digest():
        raise CheckpointError(f"{target}: the storage holds other bytes than were sent. Nothing was committed.")
    return sent.hexdigest()


def _fetch(filesystem: Any, source: str, target: Path, size: int, digest: str, uri: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    state = hashlib.sha256()
    try:
        with filesystem.open_input_stream(source) as file, target.open("wb") as out:
            _through(file.read, state.update, out.write)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {uri!r}: {source} is missing. Use an earlier checkpoint.") from error
    if target.stat().st_size != size or state.hexdigest() != digest:
        raise CheckpointError(f"checkpoint {uri!r}: {source} is corrupt. Use an earlier checkpoint.")


def _through(read: Callable[[int], bytes], *takers: Callable[[bytes], Any]) -> None:
    while block := read(_BLOCK):
        for take in takers:
            take(block)


def _inside(folder: Path, name: str) -> Path:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise CheckpointError(
            f"checkpoint: its marker names the file {name!r}, which lies outside of it. Do not use it."
        )
    return folder / path


def _write_whole(filesystem: Any, path: str, content: bytes) -> None:
    """Writes a file that is there whole or not at all: an object store does so anyway, a file system by renaming."""
    from pyarrow.fs import LocalFileSystem

    is_local = isinstance(filesystem, LocalFileSystem)
    first = f"{path}.partial" if is_local else path
    with filesystem.open_output_stream(first) as file:
        file.write(content)
    if is_local:
        filesystem.move(first, path)


def _read_marker(filesystem: Any, root: str, name: str) -> dict[str, Any] | None:
    try:
        with filesystem.open_input_stream(f"{root}/{name}{MARKER}") as file:
            marker: dict[str, Any] = json.loads(file.read())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"checkpoint {name}: its marker is damaged. Use an earlier checkpoint.") from error
    if not isinstance(marker, dict) or marker.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {name}: its marker is of another format. Upgrade gspo-rllib.")
    return marker

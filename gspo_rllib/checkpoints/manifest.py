"""Which folder is a checkpoint of ours, and whether all of it is there.

The manifest is written last: every file's size and SHA-256, and a SHA-256 of the manifest itself. A folder without one
is incomplete or foreign; a file that differs is corrupt; a file that is not listed, below the folders that are read, is
no part of the checkpoint and not tolerated there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from gspo_rllib.errors import CheckpointError, described, shown
from gspo_rllib.model_files import ADAPTER_BASE, ADAPTER_CONFIG, ADAPTER_WEIGHTS

MANIFEST = "gspo_manifest.json"
FORMAT = 2
PICKLED_FORMAT = 1
"""Of checkpoints of 0.1: RLlib's part of them is pickles."""
POLICY = pathlib.PurePosixPath("learner_group/learner/rl_module/default_policy")
"""Where in a checkpoint the policy's Hugging Face folder is."""
WEIGHTS_VERSION = "weights_version"
"""Key in the manifest."""
REFERENCE = "reference"
"""Where in a checkpoint the frozen reference policy's Hugging Face folder is, if the run has one."""

_DIGEST = "digest"
_LARGEST = 64 * 2**20
"""Bytes of a manifest; one of a 70B model with a thousand files has 200 kB."""
_PROGRAMS = (".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".npy", ".npz")
"""Endings of files that hold, or may hold, pickles."""
_OTHER = "Use an earlier checkpoint."
_NOT_FOR_FOLDERS = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)
"""How network file systems say that a folder cannot be synced."""


def policy_folder(checkpoint: Any) -> pathlib.Path:
    """The Hugging Face folder (safetensors, tokenizer, chat template) inside a verified checkpoint.

    Raises:
        CheckpointError: The folder does not exist, has no manifest, or a file is missing or differs.
    """
    return verify(checkpoint) / POLICY


def write_manifest(checkpoint: str | pathlib.Path, *, weights_version: int = 0) -> None:
    """Lists the files of a checkpoint that has just been written; the last step of saving.

    Every file is on the disk, and not only on its way there, when the manifest appears.

    Args:
        checkpoint: Folder of the checkpoint.
        weights_version: Number of updates that made the weights.

    Raises:
        CheckpointError: The policy's weights are missing.
    """
    folder = pathlib.Path(checkpoint)
    if not _holds_policy(folder / POLICY):
        raise CheckpointError(
            f"{folder}: the learner did not write the policy's weights, so this checkpoint cannot be used. See its log "
            "(a full disk, a lost learner) and save again to a new folder."
        )
    (folder / MANIFEST).unlink(missing_ok=True)
    files = {
        file.relative_to(folder).as_posix(): [file.stat().st_size, _sha256(file, synced=True)]
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    manifest = {"format": FORMAT, "algorithm": "GSPO", WEIGHTS_VERSION: weights_version, "files": files}
    manifest[_DIGEST] = _digest(manifest)
    temporary = folder / f"{MANIFEST}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)
    for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(inner)


def weights_version(folder: pathlib.Path) -> int:
    """What the learners of a run that goes on from a checkpoint call its weights; 0 where an old one does not say.

    Args:
        folder: A verified checkpoint.
    """
    return int(_read(folder).get(WEIGHTS_VERSION, 0))


def is_pickled(folder: pathlib.Path) -> bool:
    """Whether RLlib's part of a verified checkpoint is pickles, as 0.1 wrote it."""
    return bool(_read(folder)["format"] == PICKLED_FORMAT)


def write_reference(checkpoint: str | pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Puts the reference policy into a checkpoint, before its manifest is written.

    Args:
        checkpoint: The checkpoint's folder.
        files: The files of a Hugging Face folder, name relative to the folder to content.
    """
    folder = pathlib.Path(checkpoint) / REFERENCE
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def verify(checkpoint: Any) -> pathlib.Path:
    """Checks a checkpoint against its manifest before anything is loaded from it.

    Args:
        checkpoint: A folder, or a Ray ``Checkpoint``.

    Returns:
        The folder, absolute.

    Raises:
        CheckpointError: It does not exist, has no manifest, or a file is missing or differs.
    """
    try:
        if hasattr(checkpoint, "to_directory"):
            from pyarrow.fs import LocalFileSystem

            # `to_directory` copies what lies here already, and nobody removes the copy.
            is_here = isinstance(checkpoint.filesystem, LocalFileSystem)
            checkpoint = checkpoint.path if is_here else checkpoint.to_directory()
        folder = _folder(checkpoint)
        manifest = _read(folder)
        for name, (size, digest) in manifest["files"].items():
            file = folder / name
            if not file.is_file():
                raise CheckpointError(f"checkpoint {folder}: {_printable(name)} is missing. {_OTHER}")
            if file.stat().st_size != size or _sha256(file) != digest:
                raise CheckpointError(f"checkpoint {folder}: {_printable(name)} is corrupt. {_OTHER}")
        if manifest["format"] == FORMAT:
            _refuse_strangers(folder, manifest["files"])
            _check_model_configs(folder, manifest["files"])
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {shown(checkpoint)} cannot be read ({described(error, 200)}).") from error
    return folder


def sync_folder(folder: pathlib.Path) -> None:
    """Returns when the names in a folder are on the disk.

    Args:
        folder: The folder.

    Raises:
        OSError: The disk did not take them.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS:
            raise
    finally:
        os.close(descriptor)


def swapped_out(folder: pathlib.Path) -> pathlib.Path:
    """Where a checkpoint is for the moment in which another one takes its name."""
    return folder.with_name(f".replaced_{folder.name}")


def _folder(checkpoint: Any) -> pathlib.Path:
    """The folder that was meant, which exists."""
    if not isinstance(checkpoint, (str, os.PathLike)) or not os.fspath(checkpoint):
        raise CheckpointError(f"checkpoint {shown(checkpoint)}: expected the path of a folder.")
    text = str(os.fspath(checkpoint))
    folder = pathlib.Path(text.removeprefix("file://")).expanduser().resolve()
    if not folder.exists() and swapped_out(folder).is_dir():
        # Killed between the two renames of a file system that cannot exchange names.
        swapped_out(folder).rename(folder)
    if not folder.is_dir():
        raise CheckpointError(
            f"checkpoint {shown(text, 300)}: there is no such folder. Give what save_to_path returned."
        )
    return folder


def _read(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest, checked: its own digest, and what each entry is made of."""
    file = folder / MANIFEST
    if not file.exists():
        raise CheckpointError(
            f"checkpoint {folder}: it has no {MANIFEST}, so it was not written by GSPO.save_to_path, or saving was "
            f"interrupted. {_OTHER}"
        )
    damaged = CheckpointError(f"checkpoint {folder}: its {MANIFEST} is damaged. {_OTHER}")
    if not file.is_file() or file.stat().st_size > _LARGEST:
        raise damaged
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        raise damaged from None
    if not isinstance(manifest, dict) or "format" not in manifest or not _are_files(manifest.get("files")):
        raise damaged
    version = manifest["format"]
    if type(version) is not int or version not in (PICKLED_FORMAT, FORMAT):
        raise CheckpointError(
            f"checkpoint {folder}: format {shown(version)}, this version reads {PICKLED_FORMAT} and {FORMAT}. Upgrade "
            "gspo-rllib."
        )
    if version == FORMAT and manifest.pop(_DIGEST, None) != _digest(manifest):
        raise damaged
    counted = manifest.get(WEIGHTS_VERSION, 0)
    if type(counted) is not int or counted < 0:
        raise damaged
    return manifest


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; one that gives a key twice says two things."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _are_files(files: Any) -> bool:
    return isinstance(files, dict) and bool(files) and all(_is_file(name, entry) for name, entry in files.items())


def _is_file(name: str, entry: Any) -> bool:
    """Whether an entry is a file inside the folder, with its size and digest."""
    parts = name.split("/")
    inside = "\0" not in name and not any(part in ("", ".", "..") for part in parts) and "\\" not in name
    if not inside or not isinstance(entry, list) or len(entry) != 2:
        return False
    size, digest = entry
    return type(size) is int and size >= 0 and isinstance(digest, str) and len(digest) == 64


def _holds_policy(folder: pathlib.Path) -> bool:
    """Whether a policy's folder has all that loading it takes: a model, or an adapter and which model it belongs to."""
    names = {file.name for file in folder.glob("*")}
    if names & {ADAPTER_WEIGHTS, ADAPTER_CONFIG}:
        return names >= {ADAPTER_WEIGHTS, ADAPTER_CONFIG, ADAPTER_BASE}
    return "config.json" in names and any(name.endswith(".safetensors") for name in names)


def _printable(name: str) -> str:
    return name.encode("ascii", "backslashreplace").decode()[:300]


def _digest(manifest: Mapping[str, Any]) -> str:
    """Of all but itself, in one spelling."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _refuse_strangers(folder: pathlib.Path, files: Mapping[str, Any]) -> None:
    """Refuses files that would be read, or run, beside those of the manifest."""
    for name in files:
        if name.lower().endswith(_PROGRAMS):
            raise CheckpointError(
                f"checkpoint {folder}: {_printable(name)} may hold a pickle, which is a program; no checkpoint of this "
                "format has one, so this one is not from here."
            )
    for top in {name.split("/")[0] for name in files if "/" in name}:
        for file in (folder / top).rglob("*"):
            found = file.relative_to(folder).as_posix()
            if not file.is_dir() and found not in files:
                raise CheckpointError(
                    f"checkpoint {folder}: {_printable(found)} is not in its {MANIFEST}, so it came later. Remove it."
                )


def _check_model_configs(folder: pathlib.Path, files: Mapping[str, Any]) -> None:
    """Refuses a model config that has transformers fetch kernels, which are programs, from a hub."""
    for name in files:
        if not name.endswith("config.json"):
            continue
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise CheckpointError(f"checkpoint {folder}: {_printable(name)} is no JSON. {_OTHER}") from None
        fetched = [value for key, value in _entries(found) if key.endswith("_implementation") and "/" in str(value)]
        if fetched:
            raise CheckpointError(
                f"checkpoint {folder}: {_printable(name)} asks for {shown(fetched[0])}, a program from elsewhere. "
                "Remove it from the model's config before training."
            )


def _entries(value: Any) -> list[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    if isinstance(value, list):
        return [entry for item in value for entry in _entries(item)]
    if not isinstance(value, dict):
        return []
    return [*value.items(), *(entry for item in value.values() for entry in _entries(item))]


def _sha256(file: pathlib.Path, *, synced: bool = False) -> str:
    with file.open("rb") as handle:
        if synced:
            os.fsync(handle.fileno())
        return hashlib.file_digest(handle, "sha256").hexdigest()

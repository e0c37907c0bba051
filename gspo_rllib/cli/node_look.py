"""What one node of a cluster sees: its versions, the model, the storage. Runs on the node, as a Ray task.

It is sent there by value and imports nothing of this package at its top: a node that lacks the package must be able to
say so.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import socket
import uuid
from dataclasses import dataclass, field
from pathlib import Path

COMPARED = ("ray", "torch", "transformers", "vllm")
"""Distributions whose version must be the same everywhere, or be missing everywhere."""
PACKAGE = "gspo_rllib"
MARKER = ".gspo_rllib_preflight"
"""Beginning of the names of the files that are written to see whether a folder is the same one everywhere."""

_WHOLE = 2**26
_BLOCK = 2**20
_BLOCKS = 8


@dataclass(frozen=True)
class Question:
    """What a node is asked.

    Attributes:
        folders: Folders of models, which must be readable; absolute.
        storage: Folder that must be writable; None where nothing is stored.
        marker: Name of a file that lies in it.
        written: What that file says.
    """

    folders: tuple[str, ...]
    storage: str | None = None
    marker: str = ""
    written: str = ""


@dataclass
class Answer:
    """What a node sees.

    Attributes:
        host: Name of the node.
        versions: Version by name: Python's, this package's, and those of ``COMPARED``; None for what is not installed.
        digests: By folder, a digest of what is in it; what is wrong with it is in ``problems`` instead.
        problems: What is wrong, each a sentence with its path and what to do.
        left: Name of the file that the node wrote into the storage; None where it could not.
    """

    host: str
    versions: dict[str, str | None] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    left: str | None = None


def look(question: Question) -> Answer:
    """Answers a question; whatever is wrong is part of the answer."""
    answer = Answer(socket.gethostname(), versions())
    for folder in question.folders:
        try:
            answer.digests[folder] = digest(Path(folder))
        except OSError as error:
            answer.problems.append(
                f"model {folder} cannot be read there ({error.strerror or error}). Put the model at this path on every "
                "node, or on storage that all of them mount"
            )
    if question.storage is not None:
        _look_at_storage(question, answer)
    return answer


def versions() -> dict[str, str | None]:
    """Versions of what must be the same on every node; this package's ends with a digest of its sources."""
    found: dict[str, str | None] = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in COMPARED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    spec = importlib.util.find_spec(PACKAGE)
    found[PACKAGE] = None if spec is None or not spec.origin else _sources(Path(spec.origin).parent)
    return found


def _sources(package: Path) -> str:
    text = (package / "__init__.py").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("__version__")]
    version = lines[0].partition("=")[2].strip(" \"'") if lines else "?"
    state = hashlib.sha256()
    for folder, subfolders, files in os.walk(package, followlinks=True):
        subfolders.sort()
        for name in sorted(name for name in files if name.endswith(".py")):
            state.update(os.path.relpath(os.path.join(folder, name), package).encode())
            state.update(Path(folder, name).read_bytes())
    return f"{version} (sources {state.hexdigest()[:8]})"


def digest(folder: Path) -> str:
    """A digest of a folder's files: of their names, sizes and content.

    Of files above 64 MiB eight blocks are read, spread from the first byte to the last: a model of any size is compared
    within seconds, and two that differ in training differ in every block.

    Raises:
        OSError: It is no folder, is empty, or a file cannot be read.
    """
    state = hashlib.sha256()
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if not files:
        raise OSError("the folder is empty")
    for path in files:
        size = path.stat().st_size
        state.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                state.update(hashlib.file_digest(file, "sha256").digest())
                continue
            for number in range(_BLOCKS):
                file.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                state.update(file.read(_BLOCK))
    return state.hexdigest()


def _look_at_storage(question: Question, answer: Answer) -> None:
    storage = Path(str(question.storage))
    shared = "Use storage that every node mounts at the same path (run.storage, --storage)"
    try:
        seen = (storage / question.marker).read_text(encoding="utf-8")
    except OSError:
        seen = None
    if seen != question.written:
        answer.problems.append(
            f"storage {storage} is another folder there, or none: a file of this node is missing. {shared}"
        )
        return
    mine = f"{question.marker}-{uuid.uuid4().hex}"
    try:
        (storage / mine).write_text(question.written, encoding="utf-8")
    except OSError as error:
        answer.problems.append(f"storage {storage} cannot be written there ({error.strerror or error}). {shared}")
        return
    answer.left = mine

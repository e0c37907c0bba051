"""What a node sees of versions, models and storage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import gspo_rllib
from gspo_rllib.cli import node_look
from gspo_rllib.cli.node_look import MARKER, Question, digest, look, versions


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    (tmp_path / f"{MARKER}-1").write_text("here")
    return tmp_path


def test_versions_are_those_of_this_process() -> None:
    import ray
    import torch

    found = versions()
    assert found["ray"] == ray.__version__
    assert str(found["torch"]).partition("+")[0] == torch.__version__.partition("+")[0]
    assert str(found["gspo_rllib"]).startswith(f"{gspo_rllib.__version__} (sources ")


def test_changed_sources_are_another_version(tmp_path: Path) -> None:
    package = tmp_path / "gspo_rllib"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "1.0"\n')
    before = node_look._sources(package)
    (package / "loss.py").write_text("SIGN = -1\n")
    assert before.startswith("1.0 (sources ") and node_look._sources(package) != before


def test_a_copy_of_a_model_is_the_same_and_a_changed_byte_is_not(tiny_dense: str, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_dense, tmp_path / "copy")
    assert digest(copy) == digest(Path(tiny_dense))
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert digest(copy) != digest(Path(tiny_dense))


def test_a_large_file_is_compared_in_blocks_from_the_first_byte_to_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_look, "_WHOLE", 1000)
    monkeypatch.setattr(node_look, "_BLOCK", 10)
    file = tmp_path / "model.safetensors"
    content = bytearray(5000)

    def changed(place: int) -> str:
        file.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
        return digest(tmp_path)

    file.write_bytes(content)
    same = digest(tmp_path)
    assert changed(0) != same and changed(4999) != same and changed(2142) != same
    file.write_bytes(content + b"\0")
    assert digest(tmp_path) != same


@pytest.mark.parametrize("kind", ["missing", "empty", "a file"])
def test_a_model_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if kind == "empty":
        folder.mkdir()
    elif kind == "a file":
        folder.write_text("")
    answer = look(Question((str(folder),)))
    (problem,) = answer.problems
    assert f"model {folder} cannot be read there" in problem and "on every node" in problem
    assert not answer.digests


def test_shared_storage_is_written_to(storage: Path) -> None:
    answer = look(Question((), str(storage), f"{MARKER}-1", "here"))
    assert not answer.problems and answer.left is not None
    assert (storage / answer.left).is_file()


@pytest.mark.parametrize("written", [None, "of another run"])
def test_storage_without_this_nodes_marker_is_another_folder(storage: Path, written: str | None) -> None:
    marker = storage / f"{MARKER}-1"
    marker.unlink() if written is None else marker.write_text(written)
    (problem,) = look(Question((), str(storage), marker.name, "here")).problems
    assert f"storage {storage} is another folder there" in problem and "run.storage" in problem


def test_storage_that_cannot_be_written_is_named(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    answer = look(Question((), str(storage), f"{MARKER}-1", "here"))
    assert answer.left is None
    assert f"storage {storage} cannot be written there (No space left on device)" in answer.problems[0]

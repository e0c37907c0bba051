"""Manifests: whatever is in one, and whatever is asked for, the answer is the checkpoint or one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gspo_rllib import checkpoints
from gspo_rllib.errors import CheckpointError

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("../../etc/passwd"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def whole(tmp_path: pathlib.Path) -> pathlib.Path:
    """A checkpoint, as far as a manifest is concerned."""
    folder = tmp_path / "checkpoint"
    (folder / checkpoints.POLICY).mkdir(parents=True)
    (folder / checkpoints.POLICY / "model.safetensors").write_bytes(b"weights")
    (folder / checkpoints.POLICY / "config.json").write_text('{"model_type": "tiny"}')
    (folder / "state.json").write_text("{}")
    checkpoints.write_manifest(folder, weights_version=3)
    return folder


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


def _changed(manifest: Any, place: tuple[Any, ...], value: Any, how: str) -> Any:
    if not place:
        return value
    changed = json.loads(json.dumps(manifest))
    parent = changed
    for key in place[:-1]:
        parent = parent[key]
    if how == "delete":
        del parent[place[-1]]
    elif how == "rename" and isinstance(parent, dict):
        parent[str(value)] = parent.pop(place[-1])
    else:
        parent[place[-1]] = value
    return changed


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data(), value=_JSON, how=st.sampled_from(["set", "delete", "rename"]), signed=st.booleans())
def test_a_manifest_that_was_changed_is_refused(
    whole: pathlib.Path, data: st.DataObject, value: Any, how: str, signed: bool
) -> None:
    """Anywhere, into anything; with a digest of its own, too, as someone would write who knows how."""
    file = whole / checkpoints.MANIFEST
    before = file.read_text()
    try:
        manifest = json.loads(before)
        changed = _changed(manifest, data.draw(st.sampled_from(_places(manifest))), value, how)
        if signed and isinstance(changed, dict):
            changed.pop("digest", None)
            changed["digest"] = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
        file.write_text(json.dumps(changed))
        refused = None
        try:
            checkpoints.verify(whole)
        except CheckpointError as error:
            refused = str(error)
        if refused is not None:
            assert "\n" not in refused
            return
        # Not one file fewer, and none that is another one: a folder without a file that it had is another checkpoint.
        if not signed:
            assert json.loads(file.read_text()) == manifest
        assert checkpoints.weights_version(whole) >= 0
    finally:
        file.write_text(before)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "3",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"format": 2, "format": 2, "files": {}}',
        '{"format": true, "files": {"state.json": [2, "x"]}}',
        '{"format": 1, "files": []}',
        '{"format": 1, "files": {}}',
        '{"format": 1, "files": {"state.json": null}}',
        '{"format": 1, "files": {"state.json": [2]}}',
        '{"format": 1, "files": {"state.json": 2}}',
        '{"format": 1, "files": {"../x": [2, "' + "0" * 64 + '"]}}',
        '{"format": 1, "files": {"/etc/passwd": [2, "' + "0" * 64 + '"]}}',
        '{"format": 1, "files": {"a\\u0000b": [2, "' + "0" * 64 + '"]}}',
        '{"format": 1, "files": {"' + "n" * 300 + '": [2, "' + "0" * 64 + '"]}}',
        '{"format": ' + "1" * 5000 + "}",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
def test_a_manifest_of_another_shape_is_refused_in_one_sentence(whole: pathlib.Path, text: str) -> None:
    (whole / checkpoints.MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"damaged|is missing|format .* this version reads|cannot be read"):
        checkpoints.verify(whole)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing", "huge"])
def test_a_manifest_that_is_no_file_is_refused(whole: pathlib.Path, kind: str) -> None:
    file = whole / checkpoints.MANIFEST
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "link to nothing":
        file.symlink_to("nowhere")
    else:
        with file.open("w") as opened:
            opened.truncate(2**30)
    with pytest.raises(CheckpointError, match=r"damaged|has no gspo_manifest.json"):
        checkpoints.verify(whole)


@pytest.mark.parametrize(
    "path", ["", "a\0b", "n" * 300, "~nobody-of-that-name/x", None, 7, [], "/dev/null", "/proc/x", b""]
)
def test_what_is_no_checkpoint_is_said_in_one_sentence(path: Any) -> None:
    with pytest.raises(CheckpointError) as refused:
        checkpoints.verify(path)
    assert "\n" not in str(refused.value)


def test_what_came_later_is_refused_where_it_would_be_read(whole: pathlib.Path) -> None:
    (whole / "NOTES.txt").write_text("mine")
    (whole / ".tune_metadata").write_bytes(b"Tune's")
    checkpoints.verify(whole)
    for name in ("adapter_config.json", "modeling.py"):
        (whole / checkpoints.POLICY / name).write_text("{}")
        with pytest.raises(CheckpointError, match=rf"{name} is not in its gspo_manifest.json, so it came later"):
            checkpoints.verify(whole)
        (whole / checkpoints.POLICY / name).unlink()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "state.pkl", "training.PT", "x.msgpack"])
def test_a_file_that_may_hold_a_pickle_is_in_no_checkpoint(whole: pathlib.Path, name: str) -> None:
    (whole / checkpoints.POLICY / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    checkpoints.write_manifest(whole)
    with pytest.raises(CheckpointError, match="may hold a pickle, which is a program"):
        checkpoints.verify(whole)


def test_a_model_config_may_not_send_for_kernels(whole: pathlib.Path) -> None:
    config = {"model_type": "tiny", "text_config": {"attn_implementation": "someone/kernels"}}
    (whole / checkpoints.POLICY / "config.json").write_text(json.dumps(config))
    checkpoints.write_manifest(whole)
    with pytest.raises(CheckpointError, match=r"config.json asks for 'someone/kernels', a program from elsewhere"):
        checkpoints.verify(whole)


def test_every_flipped_bit_and_every_missing_file_is_found(whole: pathlib.Path, tmp_path: pathlib.Path) -> None:
    files = [path for path in whole.rglob("*") if path.is_file()]
    for file in files:
        content = file.read_bytes()
        for place in range(0, len(content), max(1, len(content) // 40)):
            flipped = bytearray(content)
            flipped[place] ^= 1
            file.write_bytes(flipped)
            if file.name == checkpoints.MANIFEST and _says_the_same(content, bytes(flipped)):
                continue
            with pytest.raises(CheckpointError):
                checkpoints.verify(whole)
        file.unlink()
        with pytest.raises(CheckpointError):
            checkpoints.verify(whole)
        file.write_bytes(content)
    assert checkpoints.verify(shutil.copytree(whole, tmp_path / "moved")).name == "moved"


def _says_the_same(one: bytes, other: bytes) -> bool:
    """Space between two words of JSON may become another space."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False

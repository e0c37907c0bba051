"""Checkpoints on other storage: committed whole or not at all, verified both ways."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gspo_rllib import checkpoints, remote_checkpoints
from gspo_rllib.errors import CheckpointError, SettingError
from gspo_rllib.remote_checkpoints import MARKER, check_storage, committed, download, is_remote, upload


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small folder with a checkpoint's manifest."""
    folder = tmp_path / "run" / "iteration_000002"
    (folder / checkpoints.POLICY).mkdir(parents=True)
    (folder / checkpoints.POLICY / "model.safetensors").write_bytes(b"weights")
    (folder / checkpoints.POLICY / "config.json").write_bytes(b"{}")
    (folder / "state.safetensors").write_bytes(os.urandom(10_000))
    checkpoints.write_manifest(folder)
    return folder


@pytest.fixture
def local(tmp_path: Path) -> str:
    return str(tmp_path / "storage")


@pytest.fixture(params=["folder", "file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return {
        "folder": str(tmp_path / "storage"),
        "file": f"file://{tmp_path}/storage",
        "memory": f"memory://{tmp_path}/storage",
    }[request.param]


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_comes_back_as_it_went(checkpoint: Path, uri: str, tmp_path: Path) -> None:
    check_storage(uri)
    assert committed(uri) == []
    place = upload(checkpoint, uri)
    assert place == f"{uri}/iteration_000002" and committed(uri) == ["iteration_000002"]
    fetched = download(place, tmp_path / "here")
    assert fetched == tmp_path / "here" / "iteration_000002" and _files(fetched) == _files(checkpoint)
    assert [path.name for path in fetched.parent.iterdir()] == [fetched.name], "nothing half fetched is left"


def test_one_of_the_same_name_is_replaced_whole(checkpoint: Path, local: str, tmp_path: Path) -> None:
    upload(checkpoint, local, name="best")
    (checkpoint / "state.safetensors").write_bytes(b"newer")
    checkpoints.write_manifest(checkpoint)
    place = upload(checkpoint, local, name="best")
    assert _files(download(place, tmp_path)) == _files(checkpoint)
    assert len([*Path(local, ".data").iterdir()]) == 1, "the older one's files are gone"


@pytest.mark.parametrize("nth", range(4))
def test_an_upload_that_is_cut_off_is_no_checkpoint(
    nth: int, checkpoint: Path, local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut at every file and at the marker: the older one of the name stays what it was."""
    before = _files(checkpoint)
    upload(checkpoint, local, name="best")
    (checkpoint / "state.safetensors").write_bytes(b"newer")
    checkpoints.write_manifest(checkpoint)
    copied, whole, done = remote_checkpoints._copied, remote_checkpoints._write_whole, []

    def cut(step):
        def run(*arguments):
            done.append(arguments)
            if len(done) == nth + 1:
                raise OSError("the line is cut")
            return step(*arguments)

        return run

    monkeypatch.setattr(remote_checkpoints, "_copied", cut(copied))
    monkeypatch.setattr(remote_checkpoints, "_write_whole", cut(whole))
    with pytest.raises(CheckpointError, match="the line is cut"):
        upload(checkpoint, local, name="best")
    assert _files(download(f"{local}/best", tmp_path)) == before
    assert len([*Path(local, ".data").iterdir()]) == 1


def test_storage_that_keeps_other_bytes_is_found_out(
    checkpoint: Path, local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful:
        def __init__(self, filesystem):
            self._filesystem = filesystem

        def __getattr__(self, name):
            return getattr(self._filesystem, name)

        def open_output_stream(self, path):
            if path.endswith("state.safetensors"):
                path += ".elsewhere"
                Path(path.removesuffix(".elsewhere")).write_bytes(b"other")
            return self._filesystem.open_output_stream(path)

    opened = remote_checkpoints._opened
    monkeypatch.setattr(remote_checkpoints, "_opened", lambda uri: (Forgetful(opened(uri)[0]), opened(uri)[1]))
    with pytest.raises(CheckpointError, match=r"state\.safetensors: the storage holds other bytes than were sent"):
        upload(checkpoint, local)
    assert committed(local) == []


def test_a_changed_or_missing_file_is_refused(checkpoint: Path, local: str, tmp_path: Path) -> None:
    place = upload(checkpoint, local)
    (data,) = Path(local, ".data").iterdir()
    content = (data / "state.safetensors").read_bytes()
    (data / "state.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"state\.safetensors is corrupt"):
        download(place, tmp_path / "here")
    (data / "state.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"state\.safetensors is missing"):
        download(place, tmp_path / "here")
    assert not [*(tmp_path / "here").iterdir()]


def test_what_was_never_committed_is_refused_with_what_there_is(checkpoint: Path, local: str, tmp_path: Path) -> None:
    upload(checkpoint, local)
    with pytest.raises(CheckpointError, match=r"never committed there\. Whole checkpoints there: iteration_000002"):
        download(f"{local}/iteration_000003", tmp_path)
    with pytest.raises(CheckpointError, match="Whole checkpoints there: none"):
        download(f"{local}/empty/best", tmp_path)


@pytest.mark.parametrize(
    ("content", "said"), [("{", "damaged"), ('{"format": 9}', "another format"), ("[]", "another format")]
)
def test_a_marker_that_cannot_be_read_is_refused(content: str, said: str, local: str, tmp_path: Path) -> None:
    Path(local).mkdir()
    Path(local, f"best{MARKER}").write_text(content)
    with pytest.raises(CheckpointError, match=said):
        download(f"{local}/best", tmp_path)


def test_a_marker_cannot_write_outside_of_the_checkpoint(checkpoint: Path, local: str, tmp_path: Path) -> None:
    place = upload(checkpoint, local)
    file = Path(local, f"iteration_000002{MARKER}")
    marker = json.loads(file.read_text())
    marker["files"]["../../escaped"] = marker["files"]["state.safetensors"]
    file.write_text(json.dumps(marker))
    with pytest.raises(CheckpointError, match="outside of it"):
        download(place, tmp_path / "a" / "b")
    assert not (tmp_path / "escaped").exists()


def test_a_checkpoint_that_is_not_whole_is_not_sent(checkpoint: Path, local: str) -> None:
    (checkpoint / "state.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="corrupt"):
        upload(checkpoint, local)
    assert not Path(local).exists()


@pytest.mark.parametrize("text", ["nope://bucket/x", "s3://", "memory"])
def test_what_is_a_uri_is_told_from_a_folder(text: str, tmp_path: Path) -> None:
    assert is_remote(text) is ("://" in text)
    if text == "nope://bucket/x":
        with pytest.raises(SettingError, match=r"nope://bucket/x' cannot be used .*s3://BUCKET/FOLDER"):
            check_storage(text)


def test_storage_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="cannot be used"):
        check_storage(str(tmp_path / "file" / "below"))


@pytest.fixture
def s3() -> Iterator[str]:
    """A bucket on moto's S3 server."""
    with socket.socket() as once:
        once.bind(("127.0.0.1", 0))
        port = once.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if b"Running on" in line:
                break
        else:
            raise AssertionError("moto's server did not start; install the extra test")
        request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        yield f"s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    finally:
        server.terminate()
        server.wait(timeout=20)


@pytest.mark.slow
def test_an_s3_bucket_keeps_checkpoints(
    s3: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    check_storage(s3)
    place = upload(checkpoint, s3)
    assert committed(s3) == ["iteration_000002"]
    assert _files(download(place, tmp_path / "here")) == _files(checkpoint)
    with pytest.raises(SettingError, match="cannot be used"):
        check_storage(s3.replace("bucket", "no-such-bucket"))

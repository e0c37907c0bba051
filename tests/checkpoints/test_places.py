"""Where checkpoints are written: whole or not at all, whatever is there already and whatever the disk does."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gspo_rllib import checkpoints
from gspo_rllib.checkpoints import manifest, places
from gspo_rllib.checkpoints.places import delete_checkpoint, remove_leftovers, written
from gspo_rllib.errors import CheckpointError, SettingError


def _save(path: Any, content: bytes = b"weights", *, size: int = 0) -> None:
    with written(path) as (folder, _):
        (folder / checkpoints.POLICY).mkdir(parents=True)
        (folder / checkpoints.POLICY / "model.safetensors").write_bytes(content + b"\0" * size)
        (folder / checkpoints.POLICY / "config.json").write_bytes(b"{}")
        (folder / "reference").mkdir()
        (folder / "reference" / "config.json").write_bytes(b"{}")
        checkpoints.write_manifest(folder)


def _content(folder: pathlib.Path) -> bytes:
    return (checkpoints.policy_folder(folder) / "model.safetensors").read_bytes()


@contextlib.contextmanager
def _no_file_larger_than(size: int) -> Iterator[None]:
    """The disk is full, as far as this process can tell."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a checkpoint", "a folder of mine"])
def test_a_save_is_whole_and_leaves_nothing_beside_it(tmp_path: pathlib.Path, there: str) -> None:
    target = tmp_path / "a" / "checkpoint"
    if there != "nothing":
        target.mkdir(parents=True)
    if there == "a checkpoint":
        _save(target, b"old")
    if there == "a folder of mine":
        (target / "reference").mkdir()
        (target / "reference" / "old").write_text("of a save that was interrupted")
        (target / "notes.txt").write_text("mine")
    _save(target, b"new")
    assert _content(target) == b"new"
    assert [path.name for path in target.parent.iterdir()] == ["checkpoint"]
    assert (target / "notes.txt").exists() == (there == "a folder of mine")
    assert not (target / "reference" / "old").exists()


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_save_that_fails_changes_nothing(
    tmp_path: pathlib.Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(places, "_exchange", lambda *_: False)
    target = tmp_path / "checkpoint"
    _save(target, b"old")
    with _no_file_larger_than(50_000), pytest.raises(CheckpointError, match=r"could not be written \(OSError: .*large"):
        _save(target, b"new", size=100_000)
    assert _content(target) == b"old"
    with pytest.raises(SettingError), written(target):
        raise SettingError("one of our own stays what it is")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    _save(target, b"newer")
    assert _content(target) == b"newer"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("there", ["nothing", "an empty folder", "a checkpoint"])
def test_a_disk_that_takes_no_name_leaves_the_one_before(
    tmp_path: pathlib.Path, there: str, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder cannot be synced, so after a loss of power either name could be there: the old one must be whole."""
    target = tmp_path / "checkpoint"
    if there == "an empty folder":
        target.mkdir()
    if there == "a checkpoint":
        _save(target, b"old")

    def fail(folder: pathlib.Path) -> None:
        assert _content(target) == b"new"
        assert there != "a checkpoint" or b"old" in {_content(path) for path in tmp_path.iterdir()}
        raise OSError(errno.EIO, "Input/output error")

    if not exchanges:
        monkeypatch.setattr(places, "_exchange", lambda *_: False)
    with monkeypatch.context() as failing:
        failing.setattr(places, "sync_folder", fail)
        with pytest.raises(CheckpointError, match=r"could not be written .*Input/output error"):
            _save(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == (["checkpoint"] if there == "a checkpoint" else [])
    assert there != "a checkpoint" or _content(target) == b"old"
    _save(target, b"newer")
    assert _content(target) == b"newer"


@pytest.mark.parametrize(("code", "raises"), [(errno.EIO, True), (errno.ENOSPC, True), (errno.EINVAL, False)])
def test_a_folder_that_no_file_system_syncs_is_no_failure(
    tmp_path: pathlib.Path, code: int, raises: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(code, "said by the disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="said by the disk") if raises else contextlib.nullcontext():
        manifest.sync_folder(tmp_path)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "is no path"),
        ("  ", "is no path"),
        ("a\0b", "is no path"),
        (7, "7 is no path"),
        ("s3://bucket/x", "not on this machine's file systems"),
        ("/proc/x", "could not be written|no folder can be made"),
        ("/dev/null", "is a file"),
        ("/dev/null/x", "no folder can be made"),
        ("n" * 300, "could not be written|no folder can be made"),
        ("~nobody-of-that-name/x", "no folder can be made"),
    ],
)
def test_a_place_that_cannot_be_is_said_in_one_sentence(path: Any, said: str) -> None:
    before = set(os.listdir())
    with pytest.raises(CheckpointError, match=said) as refused:
        _save(path)
    assert "\n" not in str(refused.value)
    assert set(os.listdir()) == before


def test_the_swap_is_found_again_where_names_cannot_be_exchanged(tmp_path: pathlib.Path) -> None:
    """Killed between the two renames: the old checkpoint is under its other name, and comes back."""
    _save(tmp_path / "best", b"old")
    (tmp_path / "best").rename(tmp_path / ".replaced_best")
    assert _content(tmp_path / "best") == b"old"
    (tmp_path / "best").rename(tmp_path / ".replaced_best")
    (tmp_path / ".writing_x").mkdir()
    (tmp_path / ".deleting_y").mkdir()
    (tmp_path / "mine").mkdir()
    assert remove_leftovers(tmp_path) == [".writing_x", ".deleting_y", ".replaced_best"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "mine"]


def test_deleting_leaves_nothing(tmp_path: pathlib.Path) -> None:
    _save(tmp_path / "one")
    delete_checkpoint(tmp_path / "one")
    assert not list(tmp_path.iterdir())


_SAVER = """
    import pathlib, sys
    from tests.checkpoints.test_places import _save
    from gspo_rllib.checkpoints.places import delete_checkpoint
    folder, first = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    for number in range(first, first + 100_000):
        # A new one, the best one in place of another, and the oldest deleted: what a run does.
        _save(folder / f"iteration_{number:06d}", str(number).encode(), size=20_000)
        print("saved", number, flush=True)
        _save(folder / "best", str(number).encode(), size=20_000)
        print("best", number, flush=True)
        if number - first > 3:
            print("goes", number - 3, flush=True)
            delete_checkpoint(folder / f"iteration_{number - 3:06d}")
"""


def kills(folder: pathlib.Path, number: int, *, pause: float = 0.004) -> tuple[int, int]:
    """Kills a process that saves, replaces and deletes checkpoints, at ``number`` moments.

    Returns:
        How many saves were acknowledged, and how many of those that nobody deleted are not there, or not whole.
    """
    acknowledged, lost, first = 0, 0, 0
    for moment in range(number):
        command = [sys.executable, "-c", textwrap.dedent(_SAVER), str(folder), str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            words = [process.stdout.readline()]  # it has begun
            time.sleep(moment % 37 * pause)
            process.send_signal(signal.SIGKILL)
            words += process.stdout.readlines()
        done = [match.groups() for word in words if (match := re.fullmatch(r"(\w+) (\d+)\n", word))]
        saved = {int(n) for what, n in done if what == "saved"} - {int(n) for what, n in done if what == "goes"}
        best = max((int(n) for what, n in done if what == "best"), default=-1)
        acknowledged += sum(what != "goes" for what, _ in done)
        for one in saved:
            lost += not _is_whole(folder / f"iteration_{one:06d}", one)
        lost += best >= 0 and not _is_whole(folder / "best", best)
        for path in folder.glob("[!.]*"):
            checkpoints.verify(path)  # under its name, everything is whole
        first = max(saved, default=first) + 2
    return acknowledged, lost


def _is_whole(folder: pathlib.Path, least: int) -> bool:
    with contextlib.suppress(CheckpointError):
        return int(_content(folder).rstrip(b"\0")) >= least
    return False


def test_a_kill_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: pathlib.Path) -> None:
    acknowledged, lost = kills(tmp_path, 3)
    assert acknowledged >= 3
    assert lost == 0


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing_that_was_acknowledged(tmp_path: pathlib.Path) -> None:
    acknowledged, lost = kills(tmp_path, 100)
    print(f"100 kills, {acknowledged} acknowledged, {lost} lost")
    assert acknowledged >= 100
    assert lost == 0

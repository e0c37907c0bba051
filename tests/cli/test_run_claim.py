"""One process trains a run, or makes a warm start, at a time."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gspo_rllib import claims
from gspo_rllib.cli.main import main
from gspo_rllib.cli.run_claim import FILE, claimed
from gspo_rllib.errors import SettingError


@contextmanager
def claimed_by_another(folder: Path) -> Iterator[int]:
    """Inside the block another process trains the run; its number. It is killed at the end."""
    with held_by_another(claimed(folder)) as owner:
        yield owner


@contextmanager
def held_by_another(claim: AbstractContextManager[None]) -> Iterator[int]:
    """Inside the block another process holds the claim; its number. It is killed at the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with claim:
            os.write(writing, b"claimed")
            signal.pause()
    os.close(writing)
    try:
        assert os.read(reading, 100) == b"claimed"
        yield child
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_another_process_is_refused_until_the_first_has_ended_whatever_ended_it(tmp_path: Path) -> None:
    with claimed_by_another(tmp_path) as owner, pytest.raises(SettingError) as refused, claimed(tmp_path):
        pass
    assert f"by process {owner} of " in str(refused.value)
    assert (tmp_path / FILE).exists(), "the process was killed"
    with claimed(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / FILE).read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_being_trained_is_not_resumed_and_loses_nothing(
    trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()}
    with claimed_by_another(trained.folder):
        assert main(["train", "--resume", str(trained.folder), "--iterations", "3"]) == 2
        (trained.folder / FILE).unlink()  # somebody else's file, in the way of the comparison
        assert {path: path.read_bytes() for path in trained.folder.rglob("*") if path.is_file()} == before
    assert f"{trained.folder} is being trained by process" in capsys.readouterr().err


def test_a_sweep_that_goes_on_is_not_resumed_beside_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = {"search": None, "samples": None, "metric": None, "grid": [], "overrides": []}
    (tmp_path / "sweep.json").write_text(json.dumps(start))
    with claimed_by_another(tmp_path):
        assert main(["sweep", "--resume", str(tmp_path)]) == 2
    assert f"{tmp_path} is being trained by process" in capsys.readouterr().err


def test_a_warm_start_that_is_being_made_is_not_made_beside_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "models" / "seed"
    out.parent.mkdir()
    with held_by_another(claims.held(out.with_name(".seed.making"), "it is made")) as owner:
        assert main(["warmstart", "gspo_rllib.envs:gspo_rllib/Arithmetic-v0", str(out)]) == 2
    assert [path.name for path in out.parent.iterdir()] == [".seed.making"], "of the process that was killed"
    said = capsys.readouterr().err
    assert f"{out} is being made by process {owner} of " in " ".join(said.split())
    assert "or choose another `out`." in " ".join(said.split())


def test_a_claim_that_was_just_given_back_is_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lockf, removed = fcntl.lockf, []

    def late(file: Any, how: int) -> None:
        if not removed:
            removed.append((tmp_path / FILE).unlink())
        lockf(file, how)

    monkeypatch.setattr(claims.fcntl, "lockf", late)
    with claimed(tmp_path):
        assert (tmp_path / FILE).exists()


def test_a_file_system_without_locks_has_no_claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(claims.fcntl, "lockf", refusing)
    with claimed(tmp_path), claimed(tmp_path):
        pass
    with claimed(tmp_path / "missing"):
        pass

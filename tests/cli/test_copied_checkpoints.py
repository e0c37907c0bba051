"""A run whose checkpoints are copied to other storage, and one that goes on from there."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from gspo_rllib.cli.main import main
from gspo_rllib.remote_checkpoints import committed


@pytest.mark.slow
def test_a_run_goes_on_from_a_copied_checkpoint(
    config_file: str,
    ray_local: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = f"memory://{uuid.uuid4().hex}"
    train = ["train", config_file, "--storage", str(tmp_path / "results"), f"run.checkpoint_storage={storage}"]
    assert main([*train, "--iterations", "1"]) == 0
    (run,) = (tmp_path / "results").iterdir()
    assert committed(f"{storage}/{run.name}") == ["iteration_000001"]

    assert main([*train, "--iterations", "2", "--resume", f"{storage}/{run.name}/iteration_000001"]) == 0
    assert "continuing in a new folder from iteration 1, " in capsys.readouterr().out
    (again,) = [folder for folder in (tmp_path / "results").iterdir() if folder.name not in (run.name, ".fetched")]
    assert committed(f"{storage}/{again.name}") == ["iteration_000002"]
    assert json.loads((again / "run.json").read_text())["resumed_from"]["iteration"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run.checkpoint_storage=nope://x", "--iterations", "1"], "storage 'nope://x' cannot be used"),
        (["--resume", "memory://none/best", "--iterations", "1"], "it was never committed there"),
    ],
)
def test_storage_that_cannot_be_used_ends_the_command_before_it_starts(
    arguments: list[str], said: str, config_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", config_file, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line

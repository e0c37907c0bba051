"""`gspo-rllib train`: what it leaves behind, how it resumes, and how it stops."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from gspo_rllib import checkpoints
from gspo_rllib.cli.main import main


def test_a_run_leaves_results_a_curve_and_whole_checkpoints(trained: SimpleNamespace) -> None:
    folder: Path = trained.folder
    results = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    assert [result["training_iteration"] for result in results] == [1, 2]
    with (folder / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["env_runners/episode_return_mean"]) for row in rows] == [
        result["env_runners"]["episode_return_mean"] for result in results
    ]
    assert list(folder.glob("events.out.tfevents.*"))
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((folder / "config.yaml").read_text())["run"]["iterations"] == 2
    saved = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in saved] == ["iteration_000001", "iteration_000002"]
    for checkpoint in saved:
        checkpoints.verify(checkpoint)


def test_the_saved_config_starts_the_same_run_again(trained: SimpleNamespace, config_file: str) -> None:
    from gspo_rllib.configs import load_config

    again, first = load_config(trained.folder / "config.yaml"), load_config(config_file)
    assert vars(again) == vars(first)


def test_training_resumes_from_a_checkpoint(
    trained: SimpleNamespace,
    config_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = ["train", config_file, "training.num_minibatches=1"]
    arguments += ["--resume", str(trained.checkpoint), "--iterations", "3"]
    assert main([*arguments, "--storage", str(tmp_path)]) == 0
    (folder,) = tmp_path.iterdir()
    results = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    assert [result["training_iteration"] for result in results] == [3]
    said = capsys.readouterr().out
    assert "engines: transformers, because generation.engine names it" in said.splitlines()[0]
    assert "continuing in a new folder from iteration 2, " in said and trained.checkpoint.name in said
    assert json.loads((folder / "run.json").read_text())["resumed_from"]["iteration"] == 2
    assert caplog.text.count("takes one step per iteration") == 1, "a caution is given once, however often it is found"


def test_a_run_says_what_it_was_started_with(trained: SimpleNamespace) -> None:
    record = json.loads((trained.folder / "run.json").read_text())
    assert record["config"]["training"]["group_size"] == 2
    assert record["config"]["run"]["iterations"] == 2
    assert "training.group_size" in record["given"] and "training.num_epochs" not in record["given"]
    assert record["resumed_from"] is None and record["earlier"] == []


def test_quiet_leaves_the_end(
    config_file: str, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", config_file, "--quiet", "--iterations", "1", "--storage", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["stopped", "checkpoint", "curve", "more of it"]


def test_an_override_wins_over_the_checkpoint_that_is_resumed(
    trained: SimpleNamespace, config_file: str, tmp_path: Path
) -> None:
    """Saved at 1e-4; a run resumed at 1e-9 moves no weight by more than a few times that."""
    arguments = ["train", config_file, "--resume", str(trained.checkpoint), "training.lr=1e-9", "--iterations", "3"]
    assert main([*arguments, "--storage", str(tmp_path)]) == 0
    (checkpoint,) = tmp_path.glob("*/checkpoints/*")
    before, after = (
        load_file(checkpoints.policy_folder(path) / "model.safetensors") for path in (trained.checkpoint, checkpoint)
    )
    assert max(np.abs(after[name] - before[name]).max() for name in before) < 1e-6


def test_ctrl_c_saves_a_whole_checkpoint_and_exits_130(
    config_file: str, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if any(path.stat().st_size for path in tmp_path.glob("*/result.json")):
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.02)

    handler_before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        code = main(["train", config_file, "--iterations", "500", "--storage", str(tmp_path)])
    finally:
        thread.join()
    assert code == 130
    (checkpoint,) = tmp_path.glob("*/checkpoints/*")
    checkpoints.verify(checkpoint)
    assert "stopped: interrupted" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler_before

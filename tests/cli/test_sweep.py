"""`gspo-rllib sweep`: one trial per combination, told in one line each, under one folder."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gspo_rllib import checkpoints, load_groups
from gspo_rllib.cli.main import main
from gspo_rllib.cli.sweep import _fitted
from gspo_rllib.errors import CheckpointError
from gspo_rllib.view.sources import read_source


@pytest.mark.slow
def test_a_sweep_trains_one_trial_per_value(
    config_file: str, ray_local: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two settings reach into one mapping: each trial must have both of its own."""
    settings = ["training.lr=1e-5,3e-5", "environment.env_config.operations=1", "run.checkpoint_every=1"]
    settings += ["run.record_groups=true"]
    options = ["--iterations", "2", "--storage", str(tmp_path), "--name", "lr"]
    assert main(["sweep", config_file, *settings, *options]) == 0
    said = capfd.readouterr().out
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("lr-2")
    trials = sorted(path for path in folder.iterdir() if path.is_dir())
    assert [trial.name for trial in trials] == ["lr=1e-05", "lr=3e-05"]
    for trial, rate in zip(trials, (1e-5, 3e-5), strict=True):
        assert json.loads((trial / "params.json").read_text())["lr"] == rate
        saved = sorted(trial.glob("checkpoint_*"))
        assert len(saved) == 2, "one after each iteration"
        checkpoints.verify(saved[-1])
        groups = list(load_groups(trial / "groups.jsonl"))
        assert len({group.group_id for group in groups}) == len(groups) == 2 * 4, "its own, and all of them"
        kept = read_source(trial)
        assert [row["iteration"] for row in kept.rows] == [1] * 8 + [2] * 8 and len(kept.results) == 2
    again = f"{kept.rows[-1]['group_id']}/{kept.rows[-1]['index']}"
    assert main(["replay", str(trials[-1]), again]) == 0, "with the checkpoint of the trial's first iteration"
    assert "every id agrees" in capfd.readouterr().out

    lines = said.splitlines()
    assert lines[0].startswith("2 trials, results: ")
    told = [line for line in lines if "lr=" in line and not line.startswith(("best: ", "checkpoint: "))]
    assert len(told) == 4, "each when it ends, and all of them at the end"
    assert all(line.split()[0] == "2/2" and line.split()[4] == "done" for line in told)
    assert max(map(len, lines[1:-1])) <= 80 and len(lines) <= 10
    assert lines[-2] in ("best: lr=1e-05", "best: lr=3e-05")
    best = lines[-2].removeprefix("best: ")
    checkpoints.verify(lines[-1].removeprefix("checkpoint: "))
    assert lines[-1].endswith(f"{best}/checkpoint_000001")
    assert main(["evaluate", lines[-1].removeprefix("checkpoint: "), "--episodes", "2"]) == 0, (
        "the sweep's own callbacks"
    )

    record = json.loads((folder / "run.json").read_text())
    assert record["trials"] == ["lr=1e-05", "lr=3e-05"]


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["asha", "pbt"])
def test_a_scheduler_is_given_what_it_compares(
    scheduler: str, config_file: str, ray_local: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = ["training.lr=1e-5,3e-5", "--scheduler", scheduler, "--evaluate-every", "2", "--evaluate-tasks", "4"]
    options = ["--iterations", "4", "--storage", str(tmp_path), "--metric", "return", "--quiet"]
    assert main(["sweep", config_file, *settings, *options]) == 0
    lines = capfd.readouterr().out.splitlines()
    ended = [line.split()[4] for line in lines if "lr=" in line and "/4 " in line]
    assert len(ended) == 2 and "done" in ended
    checkpoints.verify(lines[-1].removeprefix("checkpoint: "))


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_in_its_folder_and_repeats_no_finished_trial(
    config_file: str, tmp_path: Path
) -> None:
    """Killed in the second of three trials, with everything that it had started: one folder, and all three whole."""
    command = [sys.executable, "-m", "gspo_rllib", "sweep"]
    options = ["--iterations", "40", "--trials-at-once", "1", "--storage", str(tmp_path), "run.checkpoint_every=1"]
    options += ["--scheduler", "asha", "--metric", "return"]
    trials = ["lr=0.0001", "lr=2e-05", "lr=1e-05"]
    killed = subprocess.Popen(
        [*command, config_file, "training.lr=1e-4,2e-5,1e-5", *options],
        env={**os.environ, "TUNE_GLOBAL_CHECKPOINT_S": "0.2"},  # of trials that take seconds
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not any(
        "TERMINATED" in file.read_text() and len(list((file.parent / trials[1]).glob("checkpoint_*"))) > 2
        for file in tmp_path.glob("*/experiment_state-*.json")
    ):
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()[0]
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    (folder,) = tmp_path.iterdir()
    first = (folder / trials[0] / "result.json").read_bytes()
    done = subprocess.run([*command, "--resume", str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [folder]
    assert done.stdout.startswith("3 trials, continued in ")
    told = [line.split() for line in done.stdout.splitlines() if line.rpartition("lr=")[1] and ":" in line]
    ended = {words[-1]: words[0] for words in told if words[0] not in ("best:", "checkpoint:")}
    assert set(ended) == set(trials) and ended[trials[0]] == "40/40"
    assert (folder / trials[0] / "result.json").read_bytes() == first, "a finished trial is left as it is"
    for trial in trials[1:]:
        counts = [json.loads(line)["training_iteration"] for line in (folder / trial / "result.json").open()]
        assert counts[0] == 1 and sorted(set(counts)) == list(range(1, counts[-1] + 1)), "each goes on where it was"
    assert json.loads((folder / "run.json").read_text())["earlier"][0]["trials"] == trials


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["calculator"],
            "a sweep goes on as it was started, so that its trials can be compared; leave out calculator.",
        ),
        (["--iterations", "3"], "leave out --iterations 3."),
        (["--metric", "return"], "leave out --metric return."),
        ([], "there is no sweep.json in it, so it is not the folder of a sweep; `gspo-rllib train --resume` continues"),
    ],
)
def test_what_is_no_sweep_or_another_one_is_not_continued(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *options, "--resume", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_sweep_whose_trials_a_search_chooses_is_not_continued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"search": "optuna"}))
    assert main(["sweep", "--resume", str(tmp_path)]) == 2
    assert "the trials of this sweep are chosen by optuna, which keeps nothing of what it has seen" in (
        capsys.readouterr().err
    )
    assert main(["sweep", "--search", "optuna", "--resume", str(tmp_path)]) == 2
    assert "leave out --search optuna." in capsys.readouterr().err


@pytest.mark.parametrize("error", [EOFError("Ran out of input"), OSError(28, "No space left on device")])
def test_a_disk_without_room_for_what_tune_writes_is_said_in_a_sentence(error: Exception, tmp_path: Path) -> None:
    """Tune writes down in a file why a trial failed, and reads it at the end: an empty one, where there was no room."""

    def fit() -> None:
        raise error

    with pytest.raises(CheckpointError, match=r"Make room; then go on: gspo-rllib sweep --resume .*/full$"):
        _fitted(SimpleNamespace(fit=fit), tmp_path / "full")  # type: ignore[arg-type]


def test_a_sweep_needs_a_config_or_a_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sweep"])
    assert ended.value.code == 2
    assert "the following arguments are required: CONFIG" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samples", "0"], "--samples: expected a whole number >= 1, got 0."),
        (["--trials-at-once", "0"], "--trials-at-once: expected a whole number >= 1, got 0."),
        (["--scheduler", "pbt", "--samples", "2"], "there is nothing to move; give a setting several values."),
        (["run.algorithm=GSPO,GRPO"], "run.algorithm cannot be varied: each value is an algorithm of its own."),
        (["debugging.seed=1,2", "--samples", "3"], "cannot be repeated with other seeds. Give it more seeds."),
        (["training.num_minibatches=1,8"], "there are only 4 groups_per_iteration"),
    ],
)
def test_what_could_not_be_swept_is_refused(
    options: list[str], message: str, config_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", config_file, "--iterations", "1", "--storage", str(tmp_path / "none"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_what_a_sweep_would_leave_out_is_refused(config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["run.record_groups=true", "run.iterations=1", "training.lr=1e-5,3e-5"]
    assert main(["sweep", config_file, *settings, "--scheduler", "pbt"]) == 2
    assert "run.record_groups=true: --scheduler pbt has trials go on" in capsys.readouterr().err
    assert main(["sweep", config_file, "run.checkpoint_storage=s3://b/r", "run.iterations=1"]) == 2
    assert "run.checkpoint_storage: a sweep copies no checkpoints." in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_sweep_leaves_a_table_and_says_what_is_left(
    config_file: str, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            if any(file.read_text().count("\n") >= 3 for file in tmp_path.glob("*/*/result.json")):
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.05)

    threading.Thread(target=interrupt, daemon=True).start()
    options = ["--iterations", "40", "--trials-at-once", "1", "--storage", str(tmp_path), "run.checkpoint_every=1"]
    assert main(["sweep", config_file, "training.lr=1e-4,1e-5", *options]) == 130
    (folder,) = tmp_path.iterdir()
    out = capsys.readouterr().out
    assert "stopped  lr=0.0001" in out and "interrupted: 2 of 2 trials are not at their end" in out
    assert "gspo-rllib train CONFIG --resume CHECKPOINT" in out.splitlines()[-2]
    assert shlex.split(out.splitlines()[-1])[:3] == ["gspo-rllib", "sweep", "--resume"]
    first = folder / "lr=0.0001" / "result.json"
    trained = first.read_text().count("\n")
    assert 3 <= trained < 40
    # Each line is a command as it stands: one goes on where its trial was, the other was never begun.
    begun, new = (shlex.split(line) for line in out.splitlines() if line.startswith("gspo-rllib train"))
    assert "training.lr=1e-4" in begun and f"{folder.name}/lr=0.0001/checkpoint_" in begun[-1]
    assert "training.lr=1e-5" in new and "--resume" not in new
    assert main([*begun[1:], f"run.iterations={trained + 1}"]) == 0
    _, _, rest = capsys.readouterr().out.partition("continuing in a new folder from iteration ")
    assert int(rest.partition(",")[0]) in (trained, trained - 1)


NOT_IN_THIS_GRID = {
    "env_runners/success_mean", "env_runners/env_metrics/*", "evaluation/env_runners/*", "group_stream/*",
    "recovery/*", "sweep/score", "perf/*",
}  # fmt: skip
"""Rows of the page about what this run may not have: evaluations, overlap, learners apart, a judge, long iterations."""


@pytest.mark.slow
def test_the_columns_of_a_grid_are_those_of_the_page(config_file: str, ray_local: None, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.M | re.S)
    block = block.replace("mine.yaml", config_file).replace('"training_iteration": 20', '"training_iteration": 2')
    found: dict[str, Any] = {}
    exec(block.replace("RunConfig(", f"RunConfig(storage_path={str(tmp_path)!r}, verbose=0, "), found)
    assert not found["results"].errors and found["best"].config["lr"] in (1e-5, 3e-5)
    columns = list(found["frame"].columns)
    rows = re.findall(r"^\| (`.*?) \|", page.partition("| column | what it is |")[2], flags=re.M)
    patterns = [pattern for row in rows for pattern in re.findall(r"`([^`]+)`", row)]
    untold = [name for name in columns if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    assert not untold and len(columns) > 150
    unused = {p for p in patterns if not any(fnmatch.fnmatchcase(name, p) for name in columns)}
    assert unused <= NOT_IN_THIS_GRID
    nested = [name for name in columns if not name.startswith("config/") and isinstance(found["frame"][name][0], dict)]
    assert not nested, "flat"

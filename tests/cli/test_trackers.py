"""W&B and MLflow follow runs and sweeps by Tune's callbacks, with the numbers of result.json, and never end one."""

from __future__ import annotations

import csv
import importlib
import json
import math
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ray.tune.logger import LoggerCallback

from gspo_rllib.cli.main import main
from gspo_rllib.cli.recorder import flatten
from gspo_rllib.cli.trackers import Followers, Tracker

ROOT = Path(__file__).parents[2]
OFFLINE = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("{neptune: {}}", "a mapping of wandb or mlflow"),
        ("{wandb: mine}", "a mapping of wandb or mlflow"),
        ("wandb", "expected a mapping"),
        ("{wandb: {api_key: abc}}", "WANDB_API_KEY"),
        ("{mlflow: {tracking_token: abc}}", "MLFLOW_TRACKING_TOKEN"),
        ("{wandb: {upload_checkpoints: true}}", "run.checkpoint_storage copies checkpoints"),
    ],
)
def test_what_is_no_tracker_is_refused(
    written: str, said: str, config_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", config_file, f"run.trackers={written}", "--iterations", "1"]) != 0
    told = capsys.readouterr()
    assert said in told.out + told.err and "run.trackers" in told.out + told.err


def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(
    config_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = importlib.import_module

    def absent(name: str, *rest: Any) -> Any:
        if name.split(".")[0] in ("wandb", "mlflow"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return there(name, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    for command in ("train", "sweep"):
        axis = ["training.lr=1e-5,3e-5"] if command == "sweep" else []
        options = ["--iterations", "1", "--storage", str(tmp_path), "run.trackers={mlflow: {}}"]
        assert main([command, config_file, *axis, *options]) == 2
        assert "pip install 'gspo-rllib[trackers]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class _Failing(LoggerCallback):
    """Fails at every second result."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        assert "timesteps_total" not in result, "steps are iterations"
        if iteration % 2:
            raise ConnectionError("nobody answers")
        self.seen.append(iteration)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.seen.append(-int(failed))


def test_a_tracker_that_fails_is_said_and_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner = _Failing()
    followers = Followers([Tracker("mlflow", inner)], tmp_path, {"training": {"lr": 1e-5}}, start=2)
    for iteration in (1, 2, 3, 5):
        followers({"training_iteration": iteration, "timesteps_total": 7})
    followers.close(failed=True)
    assert inner.seen == [2, -1]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2, "once for each time that it begins to fail"
    assert all("mlflow cannot follow the run: ConnectionError('nobody answers')" in line for line in said)


class _Noting(LoggerCallback):
    """Writes down what it is told, as W&B and MLflow know runs: by their ids."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def log_trial_start(self, trial: Any) -> None:
        self.told.append(("start", trial.trial_id, str(trial), trial.experiment_dir_name))

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self.told.append((iteration, trial.trial_id))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        self.told.append(("failed" if failed else "end", trial.trial_id))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self.told.append(("waits",))


def test_a_run_that_goes_back_is_another_run_from_there_on(tmp_path: Path) -> None:
    """W&B leaves out what has a step that it has already."""
    inner, folder = _Noting(), tmp_path / "r"
    followers = Followers([Tracker("wandb", inner)], folder, {}, start=1)
    for iteration in (1, 2, 3, 2, 3, 1):
        followers({"training_iteration": iteration})
    followers.close(failed=True)
    assert inner.told == [
        ("start", "r", "r", "r"), (1, "r"), (2, "r"), (3, "r"), ("end", "r"),
        ("start", "r-back-1", "r-back-1", "r"), (2, "r-back-1"), (3, "r-back-1"), ("end", "r-back-1"),
        ("start", "r-back-2", "r-back-2", "r"), (1, "r-back-2"), ("failed", "r-back-2"), ("waits",),
    ]  # fmt: skip


def test_trials_that_tune_interrupts_are_ended_before_they_are_waited_for(tmp_path: Path) -> None:
    inner = _Noting()
    tracker = Tracker("wandb", inner)
    trials = [type("Trial", (), {"trial_id": name, "experiment_dir_name": "s"})() for name in "ab"]
    for trial in trials:
        tracker.log_trial_start(trial)
    tracker.log_trial_start(trials[0])  # as Tune does where it restarts one
    tracker.log_trial_end(trials[0])
    tracker.on_experiment_end(trials)
    assert [told[:2] for told in inner.told] == [("start", "a"), ("start", "b"), ("end", "a"), ("end", "b"), ("waits",)]


def _numbers(folder: Path) -> dict[str, list[list[float]]]:
    """Name to [iteration, value]s of a result.json."""
    found: dict[str, list[list[float]]] = {}
    for line in (folder / "result.json").read_text().splitlines():
        row = flatten({key: value for key, value in json.loads(line).items() if key != "config"})
        for key, value in row.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                found.setdefault(key, []).append([row["training_iteration"], value])
    return found


def _events(folder: Path) -> dict[str, list[list[float]]]:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c  # the writer's own form: length, crc, record, crc

    found: dict[str, list[list[float]]] = {}
    for file in folder.glob("events.out.tfevents.*"):
        data, place = file.read_bytes(), 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            record = data[place + 12 : place + 12 + length]
            assert masked_crc32c(record) == int.from_bytes(data[place + 12 + length : place + 16 + length], "little")
            event = Event.FromString(record)
            for value in event.summary.value:
                found.setdefault(value.tag.removeprefix("ray/tune/"), []).append([event.step, value.simple_value])
            place += 16 + length
    return found


def _read(python: str, environment: dict[str, str], folder: Path) -> dict[str, Any]:
    read = [python, "-m", "tests.cli.read_trackers", str(folder)]
    shown = subprocess.run(read, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    logged: dict[str, Any] = json.loads(shown.stdout.splitlines()[-1])
    return logged


def _finite(points: list[list[float]]) -> list[list[float]]:
    return [[step, value] for step, value in points if isinstance(value, (int, float)) and math.isfinite(value)]


@pytest.mark.slow  # other processes, with packages of their own
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_every_number_is_that_of_the_result_in_all_places(
    command: str, trackers_python: str, config_file: str, tmp_path: Path
) -> None:
    store = (tmp_path / "ml").as_uri()
    trackers = f"run.trackers={{wandb: {{project: mine}}, mlflow: {{tracking_uri: {store!r}}}}}"
    options = ["--iterations", "2", "--storage", str(tmp_path / "r"), "run.evaluate_every=2", "run.evaluate_tasks=4"]
    axis = ["training.lr=1e-4,3e-4"] if command == "sweep" else []
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT)}
    run = [trackers_python, "-m", "gspo_rllib", command, config_file, *axis, trackers, *options]
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "cannot follow" not in done.stderr, done.stdout + done.stderr
    logged = _read(trackers_python, environment, tmp_path)

    folders = [file.parent for file in (tmp_path / "r").rglob("result.json")]
    assert len(folders) == (2 if command == "sweep" else 1)
    for folder in folders:
        numbers = _numbers(folder)
        assert len(numbers) > 80 and "evaluation/env_runners/success_mean" in numbers
        for kind in ("wandb", "mlflow"):
            assert set(logged[kind]) == {each.name for each in folders}
            points = logged[kind][folder.name]
            # Tune's callback keeps what says where a trial ran in W&B's config; MLflow's has no step of turns.
            left_out = {"pid"} if kind == "wandb" else set()
            assert set(numbers) - set(points) <= left_out | {"timesteps_total"}
            assert not [k for k in numbers if k in points and _finite(points[k]) != numbers[k]], kind
        events = _events(folder)
        for name, points in numbers.items():
            # TensorBoard's numbers have 32 bits; Tune's writer leaves those out that say where a trial ran.
            if name in events:
                assert [v for _, v in events[name]] == pytest.approx([v for _, v in points], rel=1e-6), name
        assert "env_runners/success_mean" in events and len(set(numbers) - set(events)) < 12
        rows = list(csv.DictReader((folder / "progress.csv").open()))
        for name in set(numbers) & set(rows[0]):
            found = [float(row[name]) for row in rows if row[name] not in ("", "nan")]
            assert found == pytest.approx([value for _, value in numbers[name]]), name


FAILS_LATER = """
import gymnasium
from gspo_rllib.envs.calculator import CalculatorEnv


class FailsLater(CalculatorEnv):
    resets = 0

    def reset(self, **how):
        FailsLater.resets += 1
        if FailsLater.resets > 40:
            raise RuntimeError("the database is gone")
        return super().reset(**how)


gymnasium.register("mine/FailsLater-v0", entry_point=FailsLater)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["interrupted", "failed"])
def test_no_iteration_is_lost_however_a_run_ends(
    ending: str, trackers_python: str, config_file: str, tmp_path: Path
) -> None:
    """Each iteration is about 10 KiB in W&B's file, whose last block of up to 32 KiB is written at its end."""
    (tmp_path / "failing.py").write_text(FAILS_LATER)
    store = (tmp_path / "ml").as_uri()
    trackers = f"run.trackers={{wandb: {{mode: offline}}, mlflow: {{tracking_uri: {store!r}}}}}"
    env = ["environment.env=failing:mine/FailsLater-v0"] if ending == "failed" else []
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT)}
    del environment["WANDB_MODE"]
    command = [
        trackers_python,
        "-m",
        "gspo_rllib",
        "train",
        config_file,
        trackers,
        *env,
        "--storage",
        str(tmp_path / "r"),
    ]
    log = (tmp_path / "log").open("w")
    run = subprocess.Popen(
        [*command, "--iterations", "500"], env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
    )
    if ending == "interrupted":
        deadline = time.monotonic() + 240
        while not any(f.read_text().count("\n") >= 5 for f in tmp_path.glob("r/*/result.json")):
            assert run.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to whatever the run has started as well
    code = run.wait(timeout=240)
    said = (tmp_path / "log").read_text()
    assert code == (130 if ending == "interrupted" else 2) and "cannot follow" not in said, said
    (folder,) = (file.parent for file in tmp_path.glob("r/*/result.json"))
    numbers = _numbers(folder)
    iterations = [step for step, _ in numbers["training_iteration"]]
    assert iterations == list(range(1, len(iterations) + 1)) and len(iterations) >= 3
    logged = _read(trackers_python, environment, tmp_path)
    for kind in ("wandb", "mlflow"):
        points = logged[kind][folder.name]
        name = "env_runners/episode_return_mean"
        assert _finite(points[name]) == numbers[name] and len(numbers[name]) == len(iterations), kind


@pytest.mark.slow
def test_tune_from_python_as_the_page_shows_it(trackers_python: str, config_file: str, tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "runs.md").read_text(), flags=re.M | re.S)
    here = f'RunConfig(storage_path={str(tmp_path)!r}, name="r", '
    block = block.replace("RunConfig(", here).replace(": 20", ": 2")
    head = f"from gspo_rllib import load_config\nconfig = load_config({config_file!r})\n"
    (tmp_path / "page.py").write_text(f"{head}{block}\nassert not results.errors\n")
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local"}
    done = subprocess.run(
        [trackers_python, "page.py"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "ml").mkdir()
    (points,) = _read(trackers_python, environment, tmp_path)["wandb"].values()
    (folder,) = (file.parent for file in (tmp_path / "r").rglob("result.json"))
    numbers = _numbers(folder)
    assert len(numbers) > 80 and set(numbers) - set(points) == {"pid"}
    assert not [name for name in numbers if name != "pid" and _finite(points[name]) != numbers[name]]

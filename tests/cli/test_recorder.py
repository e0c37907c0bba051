"""What a run writes while it goes on."""

from __future__ import annotations

import csv
import json
import math
import resource
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tensorboardX.proto.event_pb2 import Event

from gspo_rllib.cli.recorder import RunRecorder, flatten, new_run_folder, read_results, write_run_record

SUCCESS, EVALUATED = "env_runners/success_mean", "evaluation/env_runners/success_mean"


def test_a_metric_that_appears_later_gets_its_own_column(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, {})
    recorder.record({"training_iteration": 1, "env_runners": {"success_mean": 0.5}})
    evaluation = {"env_runners": {"success_mean": float("nan")}}
    recorder.record({"training_iteration": 2, "env_runners": {"success_mean": 0.75}, "evaluation": evaluation})
    recorder.record({"training_iteration": 3, "env_runners": {"success_mean": 0.875}})
    recorder.close()
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row[SUCCESS] for row in rows] == ["0.5", "0.75", "0.875"]
    assert [row[EVALUATED] for row in rows] == ["", "nan", ""]


def test_the_table_has_what_people_read_and_the_rest_is_in_result_json(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, {})
    kept = {
        "env_runners": {"success_mean": 0.5, "env_metrics": {"keys_found": 2.0}, "weights_seq_no": 7},
        "learners": {"default_policy": {"clip_fraction": 0.1}, "__all_modules__": {"num_module_steps_trained": 3}},
        "training_iteration": 1,
        "pid": 4711,
    }
    recorder.record(kept)
    recorder.close()
    header, row = (tmp_path / "progress.csv").read_text().splitlines()
    assert header.split(",") == [
        "training_iteration",
        SUCCESS,
        "env_runners/env_metrics/keys_found",
        "learners/default_policy/clip_fraction",
    ]
    assert row == "1,0.5,2.0,0.1"
    assert read_results(tmp_path) == [kept]


def test_a_run_that_goes_on_has_one_history(tmp_path: Path) -> None:
    """Results after the checkpoint were not saved with it: they are trained again, and must not be there twice."""
    first = RunRecorder(tmp_path, {"run": {"iterations": 4}})
    for iteration in (1, 2, 3, 4):
        first.record({"training_iteration": iteration, "time_total_s": 10.0 * iteration})
    first.close()
    with (tmp_path / "result.json").open("a") as file:
        file.write('{"training_iteration": 5, "time')  # killed while it was being written
    again = RunRecorder(tmp_path, {"run": {"iterations": 9}}, resume_at=2)
    assert [row["training_iteration"] for row in again.rows()] == [1, 2]
    again.record({"training_iteration": 3, "time_total_s": 31.0})
    again.close()
    assert [(row["training_iteration"], row["time_total_s"]) for row in read_results(tmp_path)] == [
        (1, 10.0),
        (2, 20.0),
        (3, 31.0),
    ]
    assert (tmp_path / "progress.csv").read_text().splitlines()[1:] == ["1,10.0", "2,20.0", "3,31.0"]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"run": {"iterations": 9}}


def test_what_was_said_of_earlier_starts_is_kept(tmp_path: Path) -> None:
    for start in ("first", "second", "third"):
        write_run_record(tmp_path, {"started": start})
    record = json.loads((tmp_path / "run.json").read_text())
    assert record == {"started": "third", "earlier": [{"started": "first"}, {"started": "second"}]}


def test_run_folders_of_the_same_second_do_not_collide(tmp_path: Path) -> None:
    folders = {new_run_folder(str(tmp_path), "a b/c") for _ in range(5)}
    assert len(folders) == 5
    assert all(folder.parent == tmp_path and folder.name.startswith("a-b-c-") for folder in folders)


def test_a_full_disk_ends_no_run_and_what_had_no_room_is_written_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = RunRecorder(tmp_path, {})
    results = [{"training_iteration": i, "time_total_s": 1.5 * i, "env_runners": {"x" * 40: i}} for i in range(1, 61)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        for result in results[:40]:
            if result["training_iteration"] == 5:
                resource.setrlimit(resource.RLIMIT_FSIZE, (800, hard))
            recorder.record(result)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(read_results(tmp_path)) < 40
    for result in results[40:]:
        recorder.record(result)
    recorder.close()
    assert read_results(tmp_path) == results
    with (tmp_path / "progress.csv").open() as file:
        assert [row["training_iteration"] for row in csv.DictReader(file)] == [str(i) for i in range(1, 61)]
    said = capsys.readouterr().err
    assert said.count("cannot be written now") == len(said.splitlines()) == 1
    # What was written to the file that had no room is lost to TensorBoard; what comes after is in another one.
    assert set(range(41, 61)) <= {event.step for file in tmp_path.glob("events.out.*") for event in _events(file)}


def test_a_run_that_goes_on_without_room_to_begin_is_left_as_it_was(tmp_path: Path) -> None:
    write_run_record(tmp_path, {"name": "mine"})
    recorder = RunRecorder(tmp_path, {"training": {"lr": 1e-4}})
    recorder.record({"training_iteration": 1, "note": "x" * 50})
    recorder.close()
    files = [tmp_path / name for name in ("run.json", "config.yaml", "result.json")]
    before = [file.read_bytes() for file in files]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for act in (
        lambda: write_run_record(tmp_path, {"name": "mine again"}),
        lambda: RunRecorder(tmp_path, {"training": {"lr": 1e-5}}, resume_at=1),
    ):
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        try:
            with pytest.raises(OSError, match="too large"):
                act()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.read_bytes() for file in files] == before
    assert not list(tmp_path.glob(".writing_*"))


def test_a_folder_that_is_removed_while_its_run_goes_on_is_said_once_and_written_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write_run_record(folder, {"name": "mine"})
    recorder = RunRecorder(folder, {"training": {"lr": 1e-4}})
    results = [{"training_iteration": i, "env_runners": {"success_mean": i / 10}} for i in range(1, 7)]
    for result in results:
        if result["training_iteration"] == 4:
            shutil.rmtree(folder)
        recorder.record(result)
    recorder.close()
    assert [flatten(row) for row in read_results(folder)] == [flatten(row) for row in results]
    with (folder / "progress.csv").open() as file:
        assert [row["training_iteration"] for row in csv.DictReader(file)] == list("123456")
    assert json.loads((folder / "run.json").read_text())["name"] == "mine"
    assert "lr: 0.0001" in (folder / "config.yaml").read_text()
    said = capsys.readouterr().err
    assert said.startswith(f"{folder / 'result.json'} was removed while its run goes on, ")
    assert len(said.splitlines()) == 1


def test_a_long_run_does_not_keep_its_results_in_memory(tmp_path: Path) -> None:
    def result(iteration: int) -> dict[str, Any]:
        return {"training_iteration": iteration, "learners": {f"metric {n}": n / (iteration + 1) for n in range(200)}}

    recorder = RunRecorder(tmp_path, {})
    recorder.record(result(0))
    tracemalloc.start()
    try:
        recorder.record(result(1))
        before = tracemalloc.get_traced_memory()[0]
        for iteration in range(2, 202):
            recorder.record(result(iteration))
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 200 * 100, "bytes; a flat result has 20,000"
    assert list(recorder.rows()) == [flatten(result(iteration)) for iteration in range(202)]
    recorder.close()


def test_what_is_no_number_is_the_same_in_every_file(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, {})
    recorder.record({"training_iteration": 1, "env_runners": {"success_mean": np.float32("nan")}})
    recorder.record({"training_iteration": 2, "env_runners": {"success_mean": np.float32(0.5)}, "time_total_s": 1.0})
    recorder.close()
    first, second = (row[SUCCESS] for row in recorder.rows())
    assert math.isnan(first) and second == 0.5
    with (tmp_path / "progress.csv").open() as file:
        assert [row[SUCCESS] for row in csv.DictReader(file)] == ["nan", "0.5"]


def test_a_file_that_is_emptied_while_its_run_goes_on_has_whole_lines_again(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, {})
    for iteration in (1, 2):
        recorder.record({"training_iteration": iteration})
    (tmp_path / "result.json").write_text("")
    recorder.record({"training_iteration": 3})
    recorder.close()
    assert read_results(tmp_path) == [{"training_iteration": 3}]


def _events(file: Path) -> list[Event]:
    """The whole records of a file of TensorBoard's: length, checksum, event, checksum."""
    found, content = [], file.read_bytes()
    while len(content) >= 12 and len(content) >= (size := int.from_bytes(content[:8], "little")) + 16:
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return found


def test_a_run_that_goes_on_tells_tensorboard_from_where(tmp_path: Path) -> None:
    RunRecorder(tmp_path, {}).close()
    again = RunRecorder(tmp_path, {}, resume_at=2)
    again.record({"training_iteration": 3, "time_total_s": 31.0})
    again.close()
    (events,) = [found for file in tmp_path.glob("events.out.*") if len(found := _events(file)) > 1]
    assert [(event.step, event.session_log.status) for event in events[1:2]] == [(3, 1)]
    assert [value.tag for event in events[2:] for value in event.summary.value] == [
        "ray/tune/training_iteration",
        "ray/tune/time_total_s",
    ]

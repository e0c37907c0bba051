"""What a run writes while it goes on."""

from __future__ import annotations

import csv
from pathlib import Path

from gspo_rllib.cli.recorder import RunRecorder, new_run_folder


def test_a_metric_that_appears_later_gets_its_own_column(tmp_path: Path) -> None:
    recorder = RunRecorder(tmp_path, {})
    recorder.record({"training_iteration": 1, "a": {"b": 1.5}})
    recorder.record({"training_iteration": 2, "a": {"b": 2.5}, "evaluation": {"success": float("nan")}})
    recorder.close()
    with (tmp_path / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["a/b"] for row in rows] == ["1.5", "2.5"]
    assert [row["evaluation/success"] for row in rows] == ["", "nan"]


def test_run_folders_of_the_same_second_do_not_collide(tmp_path: Path) -> None:
    folders = {new_run_folder(str(tmp_path), "a b/c") for _ in range(5)}
    assert len(folders) == 5
    assert all(folder.parent == tmp_path and folder.name.startswith("a-b-c-") for folder in folders)

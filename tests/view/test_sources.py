"""A run, a file of kept trajectories and recorded groups are read; anything else is refused in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gspo_rllib.errors import RecordError
from gspo_rllib.trajectory_table import FOLDER, file_of, write_table
from gspo_rllib.view.sources import read_source
from tests.view.rows import make_row

CALL = {"prompt_ids": [1, 4], "sampled_ids": [6, 3], "logprobs": [-1.5, -0.25], "version": 0}
GROUP = {"group_id": "a", "trajectories": [{"calls": [CALL], "reward": 1}, {"calls": [CALL], "reward": 0}]}


def _run(folder: Path) -> Path:
    folder.mkdir()
    result = {"training_iteration": 1, "env_runners": {"episode_return_mean": 0.5}, "config": {"lr": 1}}
    (folder / "result.json").write_text(json.dumps(result) + "\n" + '{"training_iteration": 2, "env')
    return folder


def test_a_run_has_its_results_and_what_it_kept(tmp_path: Path, tiny_dense: str) -> None:
    run = _run(tmp_path / "run")
    (run / "config.yaml").write_text(f"rl_module: {{model_config: {{path: {tiny_dense}}}}}\n")
    for iteration in (2, 1):
        write_table(file_of(run / FOLDER, iteration), [make_row(iteration=iteration)])
    source = read_source(run)
    assert [row["iteration"] for row in source.rows] == [1, 2]
    assert source.results == [{"training_iteration": 1, "env_runners/episode_return_mean": 0.5, "config/lr": 1}]
    assert source.name == "run" and source.tokenizer == Path(tiny_dense) / "tokenizer.json"
    assert read_source(file_of(run / FOLDER, 2)).rows == source.rows[1:]


def test_a_run_that_kept_none_shows_the_groups_it_recorded(tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    (run / "groups.jsonl").write_text(json.dumps(GROUP))
    source = read_source(run)
    assert [(row["group_id"], row["index"], row["return"]) for row in source.rows] == [("a", 0, 1.0), ("a", 1, 0.0)]
    shutil.rmtree(tmp_path / "run")
    assert read_source(_run(tmp_path / "run")).rows == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "no such file or folder; it must be a run, a checkpoint, .jsonl or .parquet"),
        ("empty", "is neither a run's folder, with a result.json, nor a checkpoint, nor a file"),
        ("a.csv", r"must end in .jsonl \(recorded groups\) or .parquet"),
        ("bad.parquet", "is no file of kept trajectories"),
        ("bad.jsonl", "bad.jsonl, line 1: not JSON"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    for file in ("a.csv", "bad.parquet", "bad.jsonl"):
        (tmp_path / file).write_text("{no")
    with pytest.raises(RecordError, match=message):
        read_source(tmp_path / name)

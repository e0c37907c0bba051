"""Rows of trajectories: written and read as they were, whatever text is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from gspo_rllib.errors import RecordError
from gspo_rllib.trajectory_table import FOLDER, file_of, files_of, read_table, row_of, schema, write_table
from gspo_rllib.types import turns
from tests.episodes import make_episode


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    episode = make_episode("7", 2, [(2, 3), (1, 1)], 1.0, version=4)
    row = row_of(episode, iteration=3, trained=True, updated_logp=np.float32([-1.5, -0.1, -3e-20, -0.25]))
    file = file_of(tmp_path / FOLDER, 3)
    write_table(file, [row])
    assert read_table(file) == [row]
    assert files_of(tmp_path) == [file]
    assert [turn["updated_logp"] for turn in row["turns"]] == [np.float32([-1.5, -0.1, -3e-20]).tolist(), [-0.25]]
    for turn, kept in zip(turns(episode), row["turns"], strict=True):
        assert np.array_equal(np.float32(kept["logp"]), turn.action_logp)
        assert (kept["prompt_ids"], kept["sampled_ids"]) == (
            turn.prompt_token_ids.tolist(),
            turn.action_token_ids.tolist(),
        )
        assert (kept["version"], kept["advantage"]) == (4, None)
    assert (row["group_id"], row["index"], row["return"], row["success"]) == ("7", 2, 1.0, None)
    write_table(file, [row, row])
    assert len(read_table(file)) == 2
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["iteration_000003.parquet"]


def test_what_utf8_has_not_is_written_as_its_escape(tmp_path: Path) -> None:
    episode = make_episode("a", 0, [(1, 1)], 0.0)
    episode.observations[0] = "half \ud800 a pair, \x00 and \u2028"
    write_table(tmp_path / "a.parquet", [row_of(episode)])
    (row,) = read_table(tmp_path / "a.parquet")
    assert row["turns"][0]["observation"] == "half \\ud800 a pair, \x00 and \u2028"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no parquet", "is no file of kept trajectories"),
        (pyarrow.table({"a": [1]}), "has no column 'iteration'"),
        (pyarrow.table({name: ["x"] for name in schema().names}), "is no file of kept trajectories"),
    ],
)
def test_another_file_is_refused_in_a_sentence(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "bad.parquet"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        parquet.write_table(content, file)
    with pytest.raises(RecordError, match=message):
        read_table(file)

"""Recorded groups as rows: the turns are those that training would have, without loading what trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gspo_rllib.driver.group_file import load_groups
from gspo_rllib.errors import RecordError
from gspo_rllib.trajectory_table import row_of
from gspo_rllib.view.recorded import read_recorded

CALL = {"prompt_ids": [1, 4], "sampled_ids": [6, 3], "logprobs": [-1.5, -0.25], "version": 0}
TREE = [
    {**CALL, "observation": "start", "text": "one", "reward": 0.25},
    {"after": 0, "appended_ids": [7], "sampled_ids": [8], "logprobs": [-1], "version": [2], "finish_reason": "length"},
    {"after": 0, "appended_ids": [9], "sampled_ids": [5], "logprobs": [-2], "version": 1, "is_summary": True},
    {"prompt_ids": [2], "sampled_ids": [3], "logprobs": [-0.5], "version": 3},
]
GROUP: dict[str, Any] = {
    "group_id": "a",
    "task_seed": 5,
    "trajectories": [
        {"calls": TREE, "reward": 1, "success": True, "last_observation": "over"},
        {"calls": [CALL], "reward": 0, "index": 4, "truncated_by": "time"},
    ],
}


def _file(folder: Path, *groups: Any) -> Path:
    path = folder / "groups.jsonl"
    path.write_text("\n\n".join(map(json.dumps, groups)))
    return path


def test_turns_are_those_of_training(tmp_path: Path) -> None:
    file = _file(tmp_path, GROUP)
    (group,) = load_groups(file)
    expected = [row_of(episode) for episode in group.episodes]
    for row in expected:
        row["trained"] = None
    assert read_recorded(file) == expected


def test_messages_are_shown_as_text(tmp_path: Path) -> None:
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "17 + 25?"},
        {"role": "assistant", "content": "42", "trainable": True, "reward": 1},
    ]
    row = {"conversations": [{"messages": said}, {"messages": said[1:]}], "reward": 0.5}
    (shown,) = read_recorded(_file(tmp_path, {"group_id": "a", "trajectories": [row]}))
    assert [(turn["observation"], turn["reply"]) for turn in shown["turns"]] == [
        ("[system] Be brief.\n[user] 17 + 25?", "42"),
        ("[user] 17 + 25?", "42"),
    ]
    assert [turn["starts_segment"] for turn in shown["turns"]] == [False, True]
    assert shown["return"] == 2.5 and shown["turns"][0]["logp"] is None


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ([], "line 1: .* is no group"),
        ({"group_id": "a", "trajectories": 3}, "line 1: .* is no group"),
        ({"group_id": "a", "trajectories": [3]}, "line 1, trajectory 0 is no recorded trajectory"),
        ({"group_id": "a", "trajectories": [{"reward": 1}]}, "line 1, trajectory 0 is no recorded trajectory"),
        ({"group_id": "a", "trajectories": [{"calls": []}]}, "line 1, trajectory 0 has no calls"),
        ({"group_id": "a", "trajectories": [{"calls": [{"prompt_ids": [1]}]}]}, "trajectory 0, call 0: sampled_ids"),
        ({"group_id": "a", "trajectories": [{"calls": [CALL], "reward": "x"}]}, "trajectory 0 is no recorded"),
        ({"group_id": "a", "trajectories": [{"conversations": [{"messages": ["x"]}]}]}, "trajectory 0 is no recorded"),
    ],
)
def test_what_is_no_group_is_refused_where_it_stands(tmp_path: Path, group: Any, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        read_recorded(_file(tmp_path, group))

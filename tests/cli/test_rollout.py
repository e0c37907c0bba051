"""`gspo-rllib rollout`: every turn is printed, the same ones for the same seed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from gspo_rllib import load_groups
from gspo_rllib.cli.main import main
from gspo_rllib.cli.rollout import printable
from gspo_rllib.types import turns


def test_rollout_prints_every_turn(trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", str(trained.checkpoint), "--episodes", "2"]) == 0
    text = capsys.readouterr().out
    assert text.count("trajectory ") == 2
    for word in ("task seed", "turn 1", "observation", "action", "reward", "tokens, ", "return"):
        assert text.count(word) >= 2, word
    assert text.isprintable() or not set(text) & {chr(c) for c in range(32) if chr(c) != "\n"}


def test_rollout_is_repeatable_and_the_seed_changes_the_tasks(
    trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for seed in ("1", "1", "2"):
        assert main(["rollout", str(trained.checkpoint), "--episodes", "2", "--seed", seed]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_rollout_keeps_groups_to_train_on(
    trained: SimpleNamespace, tiny_dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "groups.jsonl"
    command = ["rollout", str(trained.checkpoint), "--episodes", "3", "--samples", "2", "--groups", str(path)]
    assert main(command) == 0
    assert capsys.readouterr().out == f"3 groups of 2 trajectories: {path}\n"
    groups = list(load_groups(path))
    assert [len(group.episodes) for group in groups] == [2, 2, 2]
    # What the learners of a run that goes on from there would call these weights.
    assert {turn.policy_version for group in groups for e in group.episodes for turn in turns(e)} == {2}

    env = "gspo_rllib.envs:gspo_rllib/Calculator-v0"
    model = ["rollout", tiny_dense, "--env", env, "--engine", "transformers", "--max-tokens-per-turn", "4"]
    assert main([*model, "--episodes", "1", "--samples", "2", "--groups", str(path)]) == 0
    (row,) = map(json.loads, path.read_text().splitlines())
    assert {call["version"] for one in row["trajectories"] for call in one["calls"]} == {0}


def test_a_trajectory_is_a_row_with_what_is_printed(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["rollout", str(trained.checkpoint), "--episodes", "2"]
    assert main(options) == 0
    text = capsys.readouterr().out
    assert main([*options, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main([*options, "--json", str(tmp_path / "rows.jsonl")]) == 0
    assert (tmp_path / "rows.jsonl").read_text().splitlines() == lines
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 2
    for row in rows:
        assert f"task seed    {row['task_seed']}" in text
        assert row["return"] == sum(turn["reward"] for turn in row["turns"])
        assert f"{len(row['turns'])} turns, {row['num_tokens']} tokens, " in text
        for turn in row["turns"]:
            assert printable(turn["action"]) in text
            assert f"{turn['reward']:+g} · {turn['num_tokens']} tokens, {turn['finish_reason']}" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--groups", "a.json"], "--groups: 'a.json' must end in .jsonl: it holds a group on each line."),
        (["--groups", "nowhere/a.jsonl"], "--groups: there is no folder 'nowhere' to write 'a.jsonl' into."),
        (["--groups", "a.jsonl", "--temperature", "0"], "--groups: at temperature 0 all trajectories of a task are th"),
        (["--samples", "0"], "--samples: expected a whole number >= 1, got 0."),
    ],
)
def test_groups_that_could_not_be_kept_are_refused_first(
    options: list[str], message: str, trained: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rollout", str(trained.checkpoint), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--episodes", "0"], "--episodes: expected a whole number >= 1, got 0."),
        (["--json", "rows.csv"], "--json: 'rows.csv' must end in .jsonl or .parquet"),
    ],
)
def test_what_cannot_be_played_is_said_before_anything_is_loaded(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rollout", "no-such-checkpoint", *options]) == 2
    assert message in capsys.readouterr().err

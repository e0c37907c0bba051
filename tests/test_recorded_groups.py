"""The page on recorded groups: its examples run, its tables hold every field, and ART's groups convert exactly."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openai
import pytest
from openai.types.chat.chat_completion import Choice

from gspo_rllib import load_groups
from gspo_rllib.agents.recorded_calls import CALL_FIELDS
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.agents.stitching import episode_of
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.cli.main import main
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.driver.group_file import GROUP_FIELDS, TRAJECTORY_FIELDS
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.types import GroupMember, turns
from tests.agents.serving import served

PAGE = Path(__file__).resolve().parent.parent / "docs" / "recorded_groups.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


def test_the_quickstart_trains_on_what_the_command_wrote(
    tiny_dense: str, ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "seed").symlink_to(tiny_dense)
    monkeypatch.chdir(tmp_path)
    rollout = shlex.split(_blocks("bash")[0].splitlines()[0])
    small = ["--engine", "transformers", "--max-tokens-per-turn", "2", "--env-config", "operations=1"]
    assert main([*["4" if word == "64" else word for word in rollout[1:]], *small]) == 0
    assert [len(group.episodes) for group in load_groups("groups.jsonl")] == [8] * 4

    quickstart = _blocks("python")[0]
    assert len(quickstart.splitlines()) <= 11
    build, made, train = quickstart.partition("algo = ")
    names: dict[str, Any] = {}
    exec(compile(build, PAGE.name, "exec"), names)
    names["config"].env_runners(num_env_runners=0).generation(engine="transformers", max_tokens_per_turn=2)
    try:
        exec(compile(made + train, PAGE.name, "exec"), names)
        assert names["algo"].iteration == 3
    finally:
        names["algo"].stop()

    (written,) = _blocks("yaml")
    Path("recorded.yaml").write_text(written)
    less = ["generation.engine=transformers", "generation.max_tokens_per_turn=2", "training.groups_per_iteration=2"]
    less.append("training.num_minibatches=2")
    assert main(["train", "recorded.yaml", "env_runners.num_env_runners=0", *less, "--storage", "runs"]) == 0
    assert len(list(Path("runs").glob("*/checkpoints/*"))) == 1


def test_the_tables_hold_every_field_and_the_examples_are_read(tiny_dense: str) -> None:
    tables = re.findall(
        r"^\| (group|trajectory|call) \| default .*\n\|[-|]+\n((?:\|.*\n)+)", PAGE.read_text(), flags=re.M
    )
    listed = {
        of: {name for row in rows.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
        for of, rows in tables
    }
    assert listed == {"group": {*GROUP_FIELDS}, "trajectory": {*TRAJECTORY_FIELDS}, "call": {*CALL_FIELDS}}

    group, told = map(json.loads, _blocks("json"))
    (read,) = load_groups([group])
    assert [token_trajectory(episode).segments[0].tolist() for episode in read.episodes] == [
        [1, 14, 2, 6, 3],
        [1, 14, 2, 7, 3],
    ]
    config = GSPOConfig().rl_module(model_config={"path": tiny_dense})
    (read,) = load_groups([{"group_id": "told", "trajectories": [told]}], config)
    assert [read.episodes[0].get_actions()] == [["No, 42."]]


def test_a_servers_answers_are_the_trajectory_that_the_server_saw(tiny_dense: str) -> None:
    names: dict[str, Any] = {}
    exec(compile(_blocks("python")[1], PAGE.name, "exec"), names)
    ask = {"model": "m", "logprobs": True, "extra_body": {"return_token_ids": True}}
    messages: list[Any] = [{"role": "user", "content": "a"}]
    rows: list[Any] = []
    with served(MessageRenderer(load_tokenizer(tiny_dense))) as one:
        client = openai.OpenAI(base_url=one.endpoint.url(), api_key=one.key)
        for text, choices in (("first", 1), ("one of two", 2), ("last", 1)):
            one.text = text
            answer = client.chat.completions.create(messages=messages, n=choices, **ask)
            rows += names["calls_of"](answer, version=3)
            messages += [answer.choices[0].message.to_dict(), {"role": "user", "content": "and?"}]
        live = episode_of(one.session.trained_calls(), AgentResult(1.0), GroupMember("g", 0, 0))
    (group,) = load_groups([{"group_id": "g", "trajectories": [{"calls": rows, "reward": 1.0}] * 2}])
    ours, theirs = token_trajectory(group.episodes[0]), token_trajectory(live)
    assert len(ours.segments) == 2 and len(rows) == 4
    assert [ids.tolist() for ids in ours.segments] == [ids.tolist() for ids in theirs.segments]
    assert [mask.tolist() for mask in ours.loss_masks] == [mask.tolist() for mask in theirs.loss_masks]
    assert ours.behavior_logp.tobytes() == theirs.behavior_logp.tobytes()
    assert ours.behavior_version == theirs.behavior_version == 3
    assert group.episodes[0].get_actions() == live.get_actions()


def _choice(prompt: list[int], ids: list[int], finish_reason: str = "stop") -> Choice:
    logprobs = [{"token": "x", "logprob": -1 / (1 + token), "top_logprobs": []} for token in ids]
    return Choice.model_validate(
        {
            "index": 0,
            "finish_reason": finish_reason,
            "message": {"role": "assistant", "content": "x"},
            "logprobs": {"content": logprobs},
            "prompt_token_ids": prompt,
            "token_ids": ids,
        }
    )


def test_arts_groups_convert_exactly() -> None:
    """Messages and choices, a sub-agent as an additional history, and a choice that is in both."""
    first, cut = _choice([1, 2], [3, 4]), _choice([1, 2, 3, 4, 5], [6], "length")
    called = _choice([7], [8, 9], "tool_calls")
    other = _choice([1, 2], [5])
    user = {"role": "user", "content": "x"}
    played = [
        SimpleNamespace(
            messages_and_choices=[user, first, user, {"role": "assistant", "content": "context"}, cut],
            additional_histories=[SimpleNamespace(messages_and_choices=[user, called]),
                                  SimpleNamespace(messages_and_choices=[user, first])],
            reward=1.0,
        ),
        SimpleNamespace(messages_and_choices=[user, other], additional_histories=[], reward=0.0),
    ]  # fmt: skip
    names: dict[str, Any] = {}
    exec(compile(_blocks("python")[2], PAGE.name, "exec"), names)
    (group,) = load_groups(names["from_art"]([SimpleNamespace(trajectories=played)], version=4))
    trajectory = token_trajectory(group.episodes[0])
    assert [ids.tolist() for ids in trajectory.segments] == [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    assert [mask.tolist() for mask in trajectory.loss_masks] == [
        [False] * 2 + [True] * 2 + [False, True],
        [False, True, True],
    ]
    assert trajectory.behavior_logp.tolist() == np.float32([-1 / (1 + token) for token in (3, 4, 6, 8, 9)]).tolist()
    assert trajectory.behavior_version == 4
    assert [turn.finish_reason for turn in turns(group.episodes[0])] == ["stop", "length", "stop"]
    assert [episode.get_return() for episode in group.episodes] == [1.0, 0.0]

"""TextWorldExpress, played for real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import gspo_rllib
from gspo_rllib.envs import check_language_env
from gspo_rllib.errors import EnvError, SettingError
from tests.envs.adapters.suites import make, needs, play, recorded

ROOT = Path(gspo_rllib.__file__).parents[1]
needs_textworld_express = needs("textworld_express", java=True)


@needs_textworld_express
@pytest.mark.parametrize("settings", [{}, {"game": "simonsays"}, {"game": "mapreader", "show_actions": True}])
def test_textworld_express_keeps_the_contract(settings) -> None:
    report = check_language_env("gspo_rllib.envs:gspo_rllib/TextWorldExpress-v0", **settings)
    assert "its expert solves its tasks" in report.passed


@needs_textworld_express
@pytest.mark.parametrize(
    "game", ["arithmetic", "coin", "cookingworld", "mapreader", "peckingorder", "simonsays", "twc"]
)
def test_a_group_on_one_task_in_one_java_machine_plays_as_one_alone(game) -> None:
    alone, *group = [make("TextWorldExpress", game=game, max_turns=150) for _ in range(4)]
    for task_id in ("133", "10474", "20007"):
        policy, actions = recorded(alone.expert())
        total, episode = play(alone, policy, options={"task_id": task_id})
        assert total == pytest.approx(1.0)
        firsts = [env.reset(options={"task_id": task_id}) for env in group]
        assert firsts == [episode[0]] * 3
        for action, expected in zip(actions, episode[1:], strict=True):
            assert [env.step(action) for env in group] == [expected] * 3


@needs_textworld_express
@pytest.mark.slow
@pytest.mark.parametrize("game", ["coin", "cookingworld", "twc"])
def test_a_textworld_express_game_reads_the_same_in_another_process(game) -> None:
    env = make("TextWorldExpress", game=game, max_turns=150)
    policy, actions = recorded(env.expert())
    episode = play(env, policy, seed=11)[1]
    code = (
        "import gymnasium, json, sys\n"
        f"env = gymnasium.make('gspo_rllib.envs:gspo_rllib/TextWorldExpress-v0', game={game!r}, max_turns=150)\n"
        "told = [env.reset(seed=11)]\n"
        "told += [env.step(action) for action in json.load(sys.stdin)]\n"
        "print(json.dumps(told))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(actions), capture_output=True, text=True, timeout=300)
    assert json.loads(done.stdout) == json.loads(json.dumps(episode)), done.stderr


@needs_textworld_express
def test_textworld_express_draws_tasks_of_its_split_and_takes_any() -> None:
    for split, least in (("train", 0), ("dev", 10_000), ("test", 20_000)):
        env = make("TextWorldExpress", split=split)
        drawn = {int(env.reset(seed=seed)[1]["task_id"]) for seed in range(5)}
        assert len(drawn) > 1
        assert all(least <= number < least + 1000 for number in drawn)
    assert env.reset(options={"task_id": "3"})[1]["task_id"] == "3"
    with pytest.raises(EnvError, match="no such task"):
        env.reset(options={"task_id": "1000"})


@needs_textworld_express
def test_textworld_express_fails_with_minus_one_and_ignores_what_is_no_action() -> None:
    env = make("TextWorldExpress", game="simonsays")
    env.reset(seed=0)
    assert env.step("xyzzy")[1:4] == (0.0, False, False)
    wrong = next(action for action in env._valid if action != env.expert()(""))
    _, reward, terminated, _, info = env.step(wrong)
    assert (reward, terminated, info["success"]) == (-1.0, True, False)


@needs_textworld_express
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"game": "cooking"}, "Did you mean 'cookingworld'"),
        ({"game": "sorting"}, "share their objects"),
        ({"params": "numLocations=99"}, "less than or equal to 11"),
        ({"params": "rooms=2"}, "Unrecognized property"),
        ({"split": "validation"}, "Allowed: dev, test, train"),
        ({"heap_mb": 1}, "heap_mb=1"),
    ],
)
def test_textworld_express_refuses_wrong_settings(settings, message) -> None:
    with pytest.raises(SettingError, match=message):
        make("TextWorldExpress", **settings)

"""BabyAI, played for real."""

from __future__ import annotations

import numpy as np
import pytest

from gspo_rllib.envs import check_language_env
from gspo_rllib.errors import EnvError, SettingError
from tests.envs.adapters.suites import make, needs, play

needs_minigrid = needs("minigrid")


@needs_minigrid
@pytest.mark.parametrize("settings", [{}, {"level": "UnlockPickup"}, {"level": "BossLevel"}])
def test_babyai_keeps_the_contract(settings) -> None:
    report = check_language_env("gspo_rllib.envs:gspo_rllib/BabyAI-v0", **settings)
    assert "its expert solves its tasks" in report.passed


@needs_minigrid
@pytest.mark.parametrize(("level", "tasks"), [("GoToLocal", 40), ("PutNextLocal", 10), ("GoToObjS6", 10)])
def test_the_bot_of_babyai_does_every_mission_in_text(level, tasks) -> None:
    env = make("BabyAI", level=level)
    for seed in range(tasks):
        total, episode = play(env, env.expert(), seed=seed)
        assert total == 1.0
        assert episode[-1][4]["success"] is True


@needs_minigrid
def test_random_actions_in_babyai_seldom_succeed() -> None:
    env = make("BabyAI", level="PutNextLocal")
    rng = np.random.default_rng(0)
    assert np.mean([play(env, lambda _: env.random_action(rng), seed=seed)[0] for seed in range(10)]) <= 0.3


@needs_minigrid
def test_a_babyai_turn_changes_what_is_told_as_a_turn_of_the_head_does() -> None:
    env = make("BabyAI", level="GoToLocal")
    first, info = env.reset(seed=0)
    told = first.removeprefix(f"mission: {info['mission']}; ")
    seen = [env.step("turn left")[0] for _ in range(4)]
    directions = [text.split(";")[0] for text in [told, *seen]]
    assert seen[3] == told
    compass = ["facing north", "facing west", "facing south", "facing east"]
    start = compass.index(directions[0])
    assert directions == [compass[(start + turn) % 4] for turn in range(5)]


@needs_minigrid
def test_babyai_s_own_limit_truncates_and_an_own_one_replaces_it() -> None:
    for settings, turns in (({"level": "GoToLocal"}, 64), ({"max_turns": 5}, 5), ({"max_turns": 200}, 200)):
        env = make("BabyAI", **settings)
        # Turning on the spot, looking for nothing, cannot do a mission that asks for something elsewhere.
        _, episode = play(env, lambda _: "drop", seed=1)
        assert len(episode) - 1 == turns == env.max_turns
        assert episode[-1][4]["truncated_by"] == "turns"


@needs_minigrid
def test_an_unknown_level_is_refused_and_a_minigrid_one_has_no_bot() -> None:
    with pytest.raises(SettingError, match="Did you mean 'GoToLocal'"):
        make("BabyAI", level="GotoLocal")
    env = make("BabyAI", level="MiniGrid-DoorKey-5x5-v0")
    assert "door" in env.reset(seed=0)[0]
    with pytest.raises(EnvError, match="BabyAI's levels only"):
        env.expert()

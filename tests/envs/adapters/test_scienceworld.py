"""ScienceWorld, played for real."""

from __future__ import annotations

import pickle

import pytest

from gspo_rllib.errors import EnvError, SettingError
from tests.envs.adapters.suites import HOSTILE, make, needs, play

needs_scienceworld = needs("scienceworld", java=True)


@needs_scienceworld
@pytest.mark.slow
def test_scienceworld_keeps_the_contract_and_says_what_it_cannot_do() -> None:
    env = make("ScienceWorld", task="find-living-thing", simplifications="easy")
    assert env.metadata["deterministic"] is False
    assert env.metadata["picklable"] is False
    first = env.reset(seed=3)
    assert env.reset(options={"task_id": first[1]["task_id"]})[1] == first[1]
    total, episode = play(env, env.expert(), seed=3)
    assert episode[0][0].splitlines()[0] == first[0].splitlines()[0]
    assert total == pytest.approx(1.0)
    assert episode[-1][4]["success"] is True
    assert sum(step[1] for step in episode[1:-1]) < 1.0, "the reward is a change of the score, turn by turn"
    with pytest.raises(EnvError, match="pickle"):
        pickle.dumps(env)
    with pytest.raises(EnvError, match="Start the task anew"):
        env.get_state()


@needs_scienceworld
def test_hostile_text_in_scienceworld_costs_a_turn_and_a_wrong_focus_fails() -> None:
    env = make("ScienceWorld", task="find-living-thing", simplifications="easy")
    env.reset(seed=3)
    for action in [*HOSTILE[:4], "x" * 10_000, "reset task", "\U0001f600"]:
        observation, reward, terminated, truncated, info = env.step(action)
        assert (reward, terminated, truncated, info["valid_action"]) == (0.0, False, False, False)
        assert len(observation) < 500
    _, reward, terminated, _, info = env.step("focus on air")
    assert (terminated, info["success"], info["valid_action"]) == (True, False, True)
    assert reward == pytest.approx(-1.0)


@needs_scienceworld
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "boyl"}, "Did you mean 'boil'"),
        ({"simplifications": "eazy"}, "Did you mean 'easy'"),
        ({"split": "x"}, "no such split"),
    ],
)
def test_scienceworld_refuses_wrong_settings(settings, message) -> None:
    with pytest.raises(SettingError, match=message):
        make("ScienceWorld", **settings)


@needs_scienceworld
def test_scienceworld_refuses_a_variation_it_does_not_have() -> None:
    env = make("ScienceWorld")
    for task_id in ("300", "-1", "01", "x"):
        with pytest.raises(EnvError, match="'0' to '299'"):
            env.reset(options={"task_id": task_id})

"""Recall: facts, their latest values, and exact shares of the reward."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gspo_rllib.envs.recall import RecallEnv, draw_prompts
from tests.envs.play import play


def test_a_fact_that_is_told_again_has_a_new_value_and_only_that_one_counts() -> None:
    prompts = ["k1=v2", "k1?", "k2=v5", "k1=v5", "k2=v2", "k2?"]
    env = RecallEnv(turns=6, keys=2, values=9)
    for last, total in (("v2", 1.0), ("v5", 0.5)):
        told = [env.reset(options={"task_id": "2"})[0]]
        rewards = []
        for reply in ("ok", "v2", "ok", "ok", "ok", last):
            observation, reward, terminated, truncated, info = env.step(reply)
            told.append(observation)
            rewards.append(reward)
        assert told == [*prompts, "done"]
        assert rewards == [0.0, 0.5, 0.0, 0.0, 0.0, total - 0.5]
        assert (terminated, truncated, info["success"]) == (True, False, total == 1.0)


@pytest.mark.parametrize(
    ("turns", "keys", "values"), [(2, 1, 2), (50, 8, 10), (200, 20, 100), (200, 1, 2), (9, 100, 2)]
)
def test_what_is_asked_was_told_and_what_is_told_is_new(turns, keys, values) -> None:
    asked = 0
    for task in range(100):
        prompts = draw_prompts(task, turns, keys, values)
        facts: dict[str, str] = {}
        assert len(prompts) == turns and "=" in prompts[0] and prompts[-1].endswith("?")
        for prompt in prompts:
            key, told, value = prompt.rstrip("?").partition("=")
            assert 1 <= int(key[1:]) <= keys
            if told:
                assert facts.get(key) != value and 1 <= int(value[1:]) <= values
                facts[key] = value
            else:
                assert key in facts
                asked += 1
    assert 0.3 < asked / (100 * turns) < 0.7


def test_shares_sum_to_one_exactly_when_all_are_right_and_to_less_when_one_is_wrong() -> None:
    env = RecallEnv(turns=200, keys=20, values=100)
    for seed in range(50):
        answers = env.reset(seed=seed)[1]["answers"]
        total, steps = play(env, env.expert(), seed=seed)
        assert total == 1.0 and len(steps) == 200
        assert sum(step[1] > 0 for step in steps) == len(answers)
        assert float(np.cumsum([step[1] for step in steps])[-1]) == math.fsum(step[1] for step in steps) == 1.0
        assert all(abs(step[1] - 1 / len(answers)) < 1e-9 for step in steps if step[1])
        expert, wrong = env.expert(), iter(["v1" if answers[0] != "v1" else "v2"])
        total, steps = play(env, lambda told, e=expert, w=wrong: r if (r := e(told)) == "ok" else next(w, r), seed=seed)
        assert total == pytest.approx(1 - 1 / len(answers)) and total < 1.0
        assert steps[-1][2] and steps[-1][4]["success"] is False


def test_an_invalid_reply_costs_a_turn_and_the_same_is_said_again() -> None:
    env = RecallEnv(turns=6, keys=2, values=9)
    env.reset(options={"task_id": "2"})
    assert env.step("v2")[0] == "reply ok to a fact; k1=v2"
    assert env.step(" ok\n")[0] == "k1?"
    for reply in ("ok", "v10", "v0", "v02", "2"):
        observation, reward, terminated, truncated, info = env.step(reply)
        assert observation == "not a value such as v1; k1?"
        assert (reward, terminated, info["valid_action"]) == (0.0, False, False)
        if truncated:
            break
    assert (reply, info["truncated_by"], info["success"]) == ("v02", "turns", False)

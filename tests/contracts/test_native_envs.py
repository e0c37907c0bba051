"""What native environments promise beyond the common contract: short tasks, honest experts, tasks that never change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_rllib.envs.arithmetic import ArithmeticEnv
from gspo_rllib.envs.bisection import BisectionEnv
from gspo_rllib.envs.calculator import CalculatorEnv
from gspo_rllib.envs.mastermind import MastermindEnv
from gspo_rllib.envs.quest import QuestEnv
from gspo_rllib.envs.recall import RecallEnv
from tests.envs.play import play

TINY = [
    ArithmeticEnv(digits=1),
    BisectionEnv(),
    CalculatorEnv(operations=3),
    MastermindEnv(),
    QuestEnv(rooms=4, locks=0),
    QuestEnv(),
    RecallEnv(turns=8, keys=2, values=4),
]


def named(env: Any) -> str:
    return type(env).__name__


@pytest.mark.parametrize("env", TINY, ids=named)
def test_a_tiny_preset_fits_a_short_context(env) -> None:
    rng = np.random.default_rng(0)
    for seed in range(50):
        for policy in (env.expert(), lambda _: env.random_action(rng)):
            told, _ = env.reset(seed=seed)
            over = False
            while not over:
                assert len(told.encode()) <= 60
                action = policy(told)
                assert len(action.encode()) <= 20
                told, _, terminated, truncated, _ = env.step(action)
                over = terminated or truncated


@pytest.mark.parametrize("env", TINY, ids=named)
def test_an_expert_knows_nothing_but_what_it_is_shown(env) -> None:
    stranger = type(env)()
    for seed in range(20):
        assert play(env, stranger.expert(), seed=seed)[0] == 1.0


@pytest.mark.parametrize("env", [MastermindEnv(tries=30), QuestEnv(rooms=12, locks=3)], ids=named)
def test_an_expert_goes_on_from_actions_that_were_not_its_own(env) -> None:
    draw = np.random.default_rng(0)
    for seed in range(30):
        expert, other = env.expert(), seed % 2

        def careless(observation: str, expert: Any = expert, other: int = other) -> str:
            action = expert(observation)
            if draw.random() > 0.1:
                return action
            return env.random_action(draw) if other else "?"

        assert play(env, careless, seed=seed)[0] == 1.0, "there are turns to spare"


def test_the_tasks_of_a_seed_never_change() -> None:
    expressions = [CalculatorEnv().reset(seed=seed)[0] for seed in range(4)]
    assert expressions == ["8-5+3+1+2*7-5", "5-4*2+8*3+8-3", "8+1+4*4+4-8*2", "8+2+2*8-1+2+2"]
    hidden = [BisectionEnv().reset(seed=seed)[1]["answer"] for seed in range(8)]
    assert hidden == [14, 8, 14, 13, 12, 11, 8, 16]
    assert [MastermindEnv().reset(seed=seed)[1]["task_id"] for seed in range(3)] == ["433", "234", "421"]
    for env, first, second in (
        (ArithmeticEnv(), ("86 + 67 = ?", "86+67"), ("52 - 56 = ?", "52-56")),
        (RecallEnv(), ("k3=v10", "1826701615"), ("k2=v8", "1016164991")),
        (QuestEnv(), ("c6: south, west, black key", "1826701615"), ("b8: east, west", "1016164991")),
    ):
        starts = [env.reset(seed=seed) for seed in range(2)]
        assert [(told, info["task_id"]) for told, info in starts] == [first, second]

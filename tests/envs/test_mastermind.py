"""Mastermind: feedback, and an expert that finds every code."""

from __future__ import annotations

import itertools

import pytest

from gspo_rllib.envs.mastermind import MastermindEnv, feedback
from gspo_rllib.errors import EnvError, SettingError
from tests.envs.play import play


@pytest.mark.parametrize(
    ("code", "guess", "black", "white"),
    [
        ("1234", "1234", 4, 0),
        ("1234", "4321", 0, 4),
        ("1122", "1221", 2, 2),
        ("1112", "2111", 2, 2),
        ("1123", "1111", 2, 0),
        ("1111", "1123", 2, 0),
        ("1233", "3312", 0, 4),
        ("1233", "3331", 1, 2),
        ("1223", "2242", 1, 1),
        ("1234", "5656", 0, 0),
        ("11", "12", 1, 0),
    ],
)
def test_each_symbol_of_the_code_is_counted_once(code, guess, black, white) -> None:
    assert feedback(code, guess) == (black, white)


def test_feedback_is_the_same_with_code_and_guess_exchanged() -> None:
    codes = ["".join(code) for code in itertools.product("123", repeat=4)]
    for code, guess in itertools.product(codes, codes):
        black, white = feedback(code, guess)
        assert (black, white) == feedback(guess, code)
        assert 0 <= black + white <= 4 and (black, white) != (3, 1)
        assert (black == 4) == (code == guess)


@pytest.mark.parametrize(("settings", "most"), [({}, 5), ({"positions": 4, "colours": 6, "tries": 8}, 7)])
def test_mastermind_s_expert_finds_every_code(settings, most) -> None:
    env = MastermindEnv(**settings)
    codes = ["".join(code) for code in itertools.product("123456"[: env.colours], repeat=env.positions)]
    turns = []
    for code in codes:
        total, steps = play(env, env.expert(), options={"task_id": code})
        assert total == 1.0
        turns.append(len(steps))
    assert max(turns) == most


def test_a_guess_is_read_without_its_spaces_and_scored_with_it() -> None:
    env = MastermindEnv(positions=4, colours=6)
    env.reset(options={"task_id": "1123"})
    assert env.step(" 1 2 1 3 ")[0] == "1213: 2 black, 2 white"
    for wrong in ("123", "11234", "1127", "112\u0663", "code 1123"):
        observation, reward, *_, info = env.step(wrong)
        assert (observation, reward, info["valid_action"]) == ("not a code of 4 symbols from 123456", 0.0, False)
    assert env.max_turns == 6, "and all of those were tries"


def test_more_codes_than_the_expert_can_think_about_are_refused() -> None:
    with pytest.raises(SettingError, match="at most 20736"):
        MastermindEnv(positions=6, colours=6)
    with pytest.raises(EnvError, match="a code of 3 symbols from 1234"):
        MastermindEnv().reset(options={"task_id": "115"})

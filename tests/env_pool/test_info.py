from __future__ import annotations

import enum
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from gspo_rllib.env_pool.calls import EnvCall
from gspo_rllib.env_pool.info import ContractError, plain_info
from gspo_rllib.env_pool.session import EnvSession
from gspo_rllib.envs import UnicodeText


class CountingUp(gym.Env):
    """Hands out the same ``info`` every time, and goes on changing it, as many third-party environments do."""

    observation_space = action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.info = {"reward_parts": {"steps": 0.0}, "metrics": {"steps": 0}, "seen": [[]]}
        return "begin", self.info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        for word in ("reward_parts", "metrics"):
            self.info[word]["steps"] += 1
        self.info["seen"][0].append(action)
        return "on", 1.0, False, False, self.info


def test_a_turn_keeps_saying_what_it_said_whatever_the_environment_does_to_its_info_later() -> None:
    session = EnvSession(0, CountingUp)
    answers = [session.answer(EnvCall(0, seed=0)), *(session.answer(EnvCall(n, action="a")) for n in (1, 2, 3))]
    assert [answer.info["reward_parts"]["steps"] for answer in answers] == [0, 1, 2, 3]
    assert [answer.info["metrics"]["steps"] for answer in answers] == [0, 1, 2, 3]
    assert [len(answer.info["seen"][0]) for answer in answers] == [0, 1, 2, 3]


class Colour(str, enum.Enum):  # noqa: UP042, what is tested is a str that prints as something else
    RED = "red"


def test_numbers_of_numpy_become_pythons_and_what_is_foreign_is_left_out_alone() -> None:
    given = {
        "valid_action": np.False_,
        "success": np.float64(1.0),
        "metrics": {"loss": np.float32(0.5), "count": np.int64(3), "mean": np.array(2.0), "grid": np.zeros(3)},
        "reward_parts": {"form": np.float32(0.25), "right": np.array(1)},
        "colour": Colour.RED,
        "both": (1, [np.True_]),
        "mixed": [1, object()],
        7: "a key that is no name",
    }
    plain = plain_info(given, "step")
    assert plain == {
        "valid_action": False,
        "success": True,
        "metrics": {"loss": 0.5, "count": 3, "mean": 2.0},
        "reward_parts": {"form": 0.25, "right": 1.0},
        "colour": "red",
        "both": (1, [True]),
    }
    assert plain["valid_action"] is False
    assert plain["success"] is True
    assert {type(number) for number in plain["metrics"].values()} == {float, int}
    assert type(plain["colour"]) is str


@pytest.mark.parametrize(
    ("word", "value", "complaint"),
    [
        ("success", "False", "'False' (str); it must be True or False"),
        ("success", 0.3, "0.3 (float); it must be True or False"),
        ("success", float("nan"), "nan (float); it must be True or False"),
        ("success", np.array([True]), "(ndarray); it must be True or False"),
        ("valid_action", "yes", "'yes' (str); it must be True or False"),
        ("reward_parts", {"form": float("nan")}, "(dict); it must be a dict of names and finite numbers"),
        ("reward_parts", {"form": np.zeros(2)}, "(dict); it must be a dict of names and finite numbers"),
        ("reward_parts", {"form": "1"}, "(dict); it must be a dict of names and finite numbers"),
        ("reward_parts", [1.0], "[1.0] (list); it must be a dict of names and finite numbers"),
        ("obs_role", np.array(["user", "tool"]), "(ndarray); allowed: user, tool."),
    ],
)
def test_a_word_that_a_run_reads_is_refused_where_it_is_something_else(word: str, value: Any, complaint: str) -> None:
    with pytest.raises(ContractError) as refused:
        plain_info({word: value}, "step")
    assert str(refused.value).startswith(f"info[{word!r}] is ")
    assert complaint in str(refused.value)


def test_a_reward_beyond_what_can_be_learned_from_is_refused() -> None:
    class Rich(CountingUp):
        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            return "on", float(action), False, False, {}

    session = EnvSession(0, Rich)
    session.answer(EnvCall(0, seed=0))
    assert session.answer(EnvCall(1, action="-1e30")).reward == -1e30
    failure = session.answer(EnvCall(2, action="1e31")).failure
    assert failure is not None
    assert failure.message == "step() returned the reward 1e+31; it must be between -1e30 and 1e30."


def test_an_info_that_holds_itself_is_refused_in_words() -> None:
    info: dict[str, Any] = {}
    info["info"] = info
    with pytest.raises(ContractError, match="nested without end"):
        plain_info(info, "reset")

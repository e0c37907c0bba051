"""Arithmetic: the last integer of a reply, and its value."""

from __future__ import annotations

import pytest

from gspo_rllib.envs.arithmetic import ArithmeticEnv, last_integer
from gspo_rllib.errors import EnvError


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("42", 42),
        ("17 + 25 = 42", 42),
        ("First 17, then 25: 42.", 42),
        ("42, not 41", 41),
        ("the answer is **-8**", -8),
        ("\u22128", -8),
        ("50-8", 8),
        ("1,234,567 in all", 1_234_567),
        ("3,42", 42),
        ("007", 7),
        ("42.0", None),
        ("about 41.5", None),
        ("41.5, so 42", 42),
        ("1e3", 3),
        ("forty-two", None),
        ("", None),
        ("\u0664\u0662", None),
        ("9" * 5000, None),
        ("42 " + "9" * 5000, 42),
    ],
)
def test_the_last_integer_of_a_reply_counts(reply, answer) -> None:
    assert last_integer(reply) == answer


def test_a_sum_is_graded_by_its_value() -> None:
    env = ArithmeticEnv(operands=3)
    assert env.reset(options={"task_id": "17+25-58"})[0] == "17 + 25 - 58 = ?"
    observation, reward, terminated, truncated, info = env.step("17 + 25 is 42, so -16")
    assert (observation, reward, terminated, truncated) == ("right", 1.0, True, False)
    assert info["parsed"] == -16 and info["success"] is True
    env.reset(options={"task_id": "17+25-58"})
    assert env.step("16")[:4] == ("wrong", 0.0, True, False)
    for task_id in ("17+25", "17+25-5", "17+25-058", "17 + 25 - 58", "17+25*58"):
        with pytest.raises(EnvError, match="3 numbers of exactly 2 digits"):
            env.reset(options={"task_id": task_id})

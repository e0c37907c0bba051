"""What counts as the right answer."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gspo_rllib.envs.verifiers import exact, final_answer, math_verify, numeric

GSM8K = str(Path(__file__).parents[1] / "data" / "gsm8k_format.jsonl")


@pytest.mark.parametrize(
    ("reply", "task", "earned"),
    [
        ("3 * 4 = 12, and 12 + 5 = 17", 0, 1.0),
        ("#### 17", 0, 1.0),
        ("The answer is: $17.00.", 0, 1.0),
        ("12", 0, 0.0),
        ("17 or 18", 0, 0.0),
        ("", 0, 0.0),
        ("6000 eggs", 3, 1.0),
        ("\\boxed{-5}", 6, 1.0),
        ("5", 6, 0.0),
        ("3/4 of a pizza", 7, 1.0),
        ("1/0", 7, 0.0),
        ("9" * 10_000, 0, 0.0),
    ],
)
def test_a_number_is_right_however_it_is_written(reply, task, earned) -> None:
    env = gymnasium.make("gspo_rllib.envs:gspo_rllib/Dataset-v0", path=GSM8K, verifier="numeric")
    env.reset(options={"task_id": str(task)})
    observation, reward, terminated, truncated, info = env.step(reply)
    assert (reward, terminated, truncated, info["success"]) == (earned, True, False, earned == 1.0)
    assert observation == ("right" if earned else "wrong")


def test_exact_answers_ignore_case_and_white_space_only() -> None:
    assert exact("Answer: New\nYork", "new york", {})
    assert not exact("York", "New York", {})
    assert not exact("New York City", "New York", {})


def test_formulas_are_equal_by_value() -> None:
    pytest.importorskip("math_verify")
    assert math_verify(r"so it is \boxed{\frac{2}{4}}", r"$\frac{1}{2}$", {})
    assert math_verify("x = 3", "3", {})
    assert not math_verify(r"\boxed{\frac{2}{3}}", r"\frac{1}{2}", {})


@given(st.text(max_size=200), st.sampled_from([exact, numeric]))
def test_no_reply_upsets_a_verifier(reply, verifier) -> None:
    assert verifier(reply, "#### 42", {}) in (True, False)
    final_answer(reply)

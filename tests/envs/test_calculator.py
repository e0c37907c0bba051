"""Calculator: calls, the display, and what is no task."""

from __future__ import annotations

import pytest

from gspo_rllib.envs.calculator import CalculatorEnv
from gspo_rllib.errors import EnvError


def test_a_wrong_calculator_call_is_worked_out_and_spoils_the_answer() -> None:
    env = CalculatorEnv(operations=2)
    observation, info = env.reset(seed=0)
    head = env.expert()(observation)
    rest = observation.removeprefix(head)
    left = int(head[0])
    assert env.step("50 + 7")[0] == f"57{rest}" != f"{left}{rest}"
    total = float(env.step(f"answer {info['answer']}")[1])
    assert total == 1.0, "the answer itself is what counts, however it was found"


def test_a_calculator_call_that_leaves_the_display_is_explained_and_changes_nothing() -> None:
    env = CalculatorEnv(operations=2)
    expression, _ = env.reset(seed=0)
    observation, reward, terminated, _, info = env.step("99*99")
    assert observation.endswith(f": {expression}")
    assert (reward, terminated, info["valid_action"]) == (0.0, False, False)
    assert env.expert()(observation) == env.expert()(expression)


@pytest.mark.parametrize(
    "task_id", ["3+4", "3+4*2-5+1", "3+4*2/5", "9*9*9+1", "1-2+5+1", " 3+4*2-5", "3+4*2-5\n", "0+4*2-5", "33+4*2-5"]
)
def test_an_expression_that_is_no_task_is_refused(task_id) -> None:
    env = CalculatorEnv(operations=3)
    assert env.reset(options={"task_id": "3+4*2-5"}) == ("3+4*2-5", {"task_id": "3+4*2-5", "answer": 9})
    with pytest.raises(EnvError, match="an expression of one-digit numbers and 3 of"):
        env.reset(options={"task_id": task_id})

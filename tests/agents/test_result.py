"""What an agent may return, and what is said about the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_rllib.agents.result import AgentResult, checked_result
from gspo_rllib.errors import EnvError


@pytest.mark.parametrize("returned", [1, 0.5, np.float32(0.5), np.int64(2)])
def test_a_finite_number_is_a_reward(returned: Any) -> None:
    assert checked_result(returned, num_calls=1) == AgentResult(float(returned))


def test_a_result_comes_out_as_plain_data() -> None:
    given = AgentResult(np.float32(1), [0, np.float64(2)], np.bool_(True), {"a": 1}, "time")
    checked = checked_result(given, num_calls=2)
    assert checked == AgentResult(1.0, (0.0, 2.0), True, {"a": 1.0}, "time")
    assert type(checked.reward) is float and type(checked.success) is bool


NUMBER = "it must return a finite number or an AgentResult."


@pytest.mark.parametrize(
    ("returned", "num_calls", "words"),
    [
        (1.0, 0, "the agent returned without having received a single reply of the policy: nothing to train on."),
        (None, 1, f"the agent returned None; {NUMBER}"),
        (float("nan"), 1, f"the agent returned nan; {NUMBER}"),
        (float("inf"), 1, f"the agent returned inf; {NUMBER}"),
        (True, 1, f"the agent returned True; {NUMBER}"),
        (10**400, 1, f"the agent returned {'1' + '0' * 99}… (int); {NUMBER}"),
        ("1", 1, f"the agent returned '1'; {NUMBER}"),
        ((1.0, {}), 1, f"the agent returned (1.0, {{}}); {NUMBER}"),
        (AgentResult(None), 1, "AgentResult.reward is None; it must be a finite number."),
        (AgentResult(True), 1, "AgentResult.reward is True; it must be a finite number."),
        (AgentResult(0.0, [1.0]), 2, "AgentResult.call_rewards has 1 rewards for 2 calls; give one for each."),
        (AgentResult(0.0, "ab"), 2, "AgentResult.call_rewards is 'ab'; it must be a list of finite numbers."),
        (AgentResult(0.0, [None]), 1, "AgentResult.call_rewards is [None]; it must be a list of finite numbers."),
        (AgentResult(1e308, [1e308]), 1, "AgentResult.reward and call_rewards add up to more than a number can hold."),
        (AgentResult(0.0, success=1), 1, "AgentResult.success is 1; it must be True, False or None."),
        (
            AgentResult(0.0, reward_parts={"a": "b"}),
            1,
            "AgentResult.reward_parts is {'a': 'b'}; it must be a mapping of names to finite numbers.",
        ),
        (
            AgentResult(0.0, truncated_by="boredom"),
            1,
            "AgentResult.truncated_by is 'boredom'; allowed: 'turns', 'context', 'tokens', 'time', 'env', or None.",
        ),
    ],
)
def test_anything_else_fails_the_trajectory_in_these_words(returned: Any, num_calls: int, words: str) -> None:
    with pytest.raises(EnvError) as error:
        checked_result(returned, num_calls=num_calls)
    assert str(error.value) == words

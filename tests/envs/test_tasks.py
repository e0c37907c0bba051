"""Task ids: which numbers name a task."""

from __future__ import annotations

import pytest

from gspo_rllib.envs.quest import QuestEnv
from gspo_rllib.envs.recall import RecallEnv
from gspo_rllib.errors import EnvError


@pytest.mark.parametrize("task_id", ["2147483648", "99999999999", "-1", "+1", "01", "1.0", " 1", "\u0661"])
def test_a_number_that_no_task_has_is_refused(task_id) -> None:
    for env in (RecallEnv(), QuestEnv()):
        assert env.reset(options={"task_id": "2147483647"})[1]["task_id"] == "2147483647"
        with pytest.raises(EnvError, match="a number from '0' to '2147483647'"):
            env.reset(options={"task_id": task_id})

"""Bisection: which numbers are tasks."""

from __future__ import annotations

import pytest

from gspo_rllib.envs.bisection import BisectionEnv
from gspo_rllib.errors import EnvError


@pytest.mark.parametrize("task_id", ["0", "17", "05", "5 ", "10000", "\u0665"])
def test_a_number_out_of_the_range_is_no_task(task_id) -> None:
    with pytest.raises(EnvError, match="a number from '1' to '16'"):
        BisectionEnv().reset(options={"task_id": task_id})

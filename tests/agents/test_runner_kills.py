"""A runner that dies with live sessions takes no group along, whoever plays them: each is played again as it was."""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import GSPOConfig
from gspo_rllib.algorithms.policy_gradient.algorithm import UNFINISHED_GROUPS
from gspo_rllib.types import group_episodes
from tests.agents import runner_kills

GROUPS = 4


def _algorithm(path: str, folder: Path, workers: str, max_staleness: int) -> Any:
    agent: dict[str, Any] = {"workers": workers, "tasks": [{"folder": str(folder), "number": n} for n in range(5)]}
    if workers == "external":
        agent["addresses"] = str(folder / "agents")
    else:
        agent["play"] = "tests.agents.runner_kills:play"
    return (
        GSPOConfig()
        .agent(**agent)
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", max_tokens_per_turn=4)
        .env_runners(num_env_runners=2, num_envs_per_env_runner=4)
        .training(group_size=2, groups_per_iteration=GROUPS, lr=1e-4, max_staleness=max_staleness)
        .debugging(seed=1)
        .build_algo()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "max_staleness"), [("thread", 0), ("thread", 1), ("process", 0), ("external", 0), ("external", 1)]
)
def test_twenty_runners_die_with_live_sessions_and_no_group_is_lost_or_trained_twice(
    tiny_dense: str, tmp_path: Path, workers: str, max_staleness: int, ray_local: None
) -> None:
    trained: list[list[str]] = []
    playing = runner_kills.harness(tmp_path) if workers == "external" else contextlib.nullcontext([])
    algo = _algorithm(tiny_dense, tmp_path, workers, max_staleness)
    update = algo.learner_group.update

    def watched(**kwargs: Any) -> Any:
        trained.append([group.group_id for group in group_episodes(kwargs["training_data"].episodes)])
        return update(**kwargs)

    algo.learner_group.update = watched
    try:
        with playing as fates:
            while runner_kills.num_killed(tmp_path) < runner_kills.KILLS or len(trained) < 3:
                learner = algo.train()["learners"][DEFAULT_MODULE_ID]
                assert learner["num_trajectories"] == 2 * GROUPS
                assert learner["staleness"] <= max_staleness
                assert len(trained) < 40
        state = algo.get_state(components=[])
    finally:
        algo.stop()
    assert runner_kills.num_killed(tmp_path) == runner_kills.KILLS
    known = [*itertools.chain(*trained), *state[UNFINISHED_GROUPS]]
    assert sorted(known, key=int) == [str(number) for number in range(state["next_group"])]
    # No death was put down to an agent: every trajectory was always the first attempt at its group's first task.
    sessions = runner_kills.played(tmp_path)
    seeds = defaultdict(set)
    for name, seed in sessions:
        group_id, replacement, _, attempt = name.split("/")
        assert (replacement, attempt) == ("0", "0")
        seeds[group_id].add(seed)
    assert all(len(own) == 1 for own in seeds.values())
    assert len(sessions) > len(set(sessions))  # some were begun more than once
    assert set(fates) == ({"no connection"} if workers == "external" else set())

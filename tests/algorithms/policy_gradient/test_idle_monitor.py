"""A run that cannot learn says so once, with the reason and what to do."""

from __future__ import annotations

import logging

import pytest

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.algorithms.policy_gradient.idle_monitor import IdleMonitor
from gspo_rllib.types import TrajectoryGroup
from tests.episodes import make_episode
from tests.toy_envs.coin_env import CoinEnv


def _groups(*outcomes: bool | None) -> list[TrajectoryGroup]:
    groups = []
    for number, success in enumerate(outcomes):
        episodes = [make_episode(str(number), index, [(3, 2)], 0.0) for index in range(2)]
        for episode in episodes if success is not None else []:
            episode.infos[-1]["success"] = success
        groups.append(TrajectoryGroup(str(number), episodes))
    return groups


def _third(groups: list[TrajectoryGroup], num_stale: int = 0) -> str:
    monitor = IdleMonitor()
    warnings = []
    for _ in range(5):
        monitor.draw(groups)
        warnings.append(monitor.check(0, num_stale=num_stale))
    assert [warning is not None for warning in warnings] == [False, False, True, False, False]
    assert monitor.num_idle == 5
    (said,) = filter(None, warnings)
    return said


@pytest.mark.parametrize(
    ("groups", "num_stale", "part"),
    [
        (_groups(False, False), 0, "all 4 trajectories failed. The last reply of one: 'say'. If that is not what"),
        (_groups(True, True), 0, "all 4 trajectories succeeded. The task is mastered: make it harder, or stop."),
        (_groups(True, False), 0, "within each of 2 groups all trajectories did equally well."),
        (_groups(None, None), 0, "within each of 2 groups all trajectories did equally well."),
        ([], 7, "all 7 finished groups were older than training.max_staleness."),
        ([], 0, "no group was completed."),
    ],
)
def test_the_reason_is_what_the_groups_have_in_common(groups, num_stale, part) -> None:
    assert _third(groups, num_stale).startswith(f"3 iterations without a trajectory to learn from: {part}")


def test_one_that_teaches_begins_a_new_count() -> None:
    monitor = IdleMonitor()
    assert [monitor.check(count) is not None for count in (0, 0, 4, 0, 0, 0)] == [False] * 5 + [True]


class HopelessEnv(CoinEnv):
    """Nothing that is said earns anything."""

    def step(self, action):
        observation, _, terminated, truncated, info = super().step(action)
        return observation, 0.0, terminated, truncated, info | {"success": False}


@pytest.mark.parametrize("zero_variance_groups", ["keep", "drop"])
def test_a_run_without_a_gradient_says_why(zero_variance_groups, tiny_dense, ray_local, caplog) -> None:
    config = (
        GSPOConfig()
        .environment(HopelessEnv)
        .rl_module(model_config={"path": tiny_dense})
        .generation(engine="transformers", max_tokens_per_turn=3)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
        .training(group_size=2, groups_per_iteration=2, num_minibatches=2, zero_variance_groups=zero_variance_groups)
        .debugging(seed=0)
    )
    algo = config.build_algo()
    try:
        with caplog.at_level(logging.WARNING, logger="gspo_rllib"):
            results = [algo.train() for _ in range(3)]
    finally:
        algo.stop()
    assert [result["group_selection"]["num_iterations_idle"] for result in results] == [1, 2, 3]
    assert "3 iterations without a trajectory to learn from: all 4 trajectories failed. The last reply" in caplog.text

"""A node that is lost or joins is one line and a metric."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.algorithms.policy_gradient.cluster_monitor import ClusterMonitor
from gspo_rllib.metrics import CLUSTER, NUM_HEALTHY_ENV_RUNNERS, NUM_NODES


def _runners(healthy: int, wanted: int) -> Any:
    return SimpleNamespace(num_healthy_remote_workers=lambda: healthy, num_remote_env_runners=lambda: wanted)


def test_what_stays_is_not_news() -> None:
    monitor = ClusterMonitor({"a": "A", "b": "B"})
    said, counts = monitor.check({"a": "A", "b": "B"}, _runners(4, 4))
    assert not said and counts == {NUM_NODES: 2, NUM_HEALTHY_ENV_RUNNERS: 4}


def test_a_lost_node_is_said_once_with_what_is_left() -> None:
    monitor = ClusterMonitor({"a": "A", "b": "B"})
    (line,), counts = monitor.check({"a": "A"}, _runners(2, 4))
    assert line.startswith("Node B is lost: 1 of 2 nodes are left, and 2 of 4 env runners are at work.")
    assert counts == {NUM_NODES: 1, NUM_HEALTHY_ENV_RUNNERS: 2}
    assert monitor.check({"a": "A"}, _runners(2, 4))[0] == []


def test_a_node_that_joins_in_place_of_a_lost_one_is_said_too() -> None:
    monitor = ClusterMonitor({"a": "A", "b": "B"})
    lost, joined = monitor.check({"a": "A", "c": "C"}, _runners(4, 4))[0]
    assert "Node B is lost" in lost and joined.startswith("Node C has joined: there are 2 nodes")


def test_an_iteration_reports_its_nodes(tiny_dense: str, ray_local: None) -> None:
    config = (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 1})
        .rl_module(model_config={"path": tiny_dense})
        .generation(engine="transformers", max_tokens_per_turn=2)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
        .learners(num_learners=0)
        .training(group_size=2, groups_per_iteration=4)
    )
    algo = config.build_algo()
    try:
        assert algo.train()[CLUSTER] == {NUM_NODES: 1, NUM_HEALTHY_ENV_RUNNERS: 0}
    finally:
        algo.stop()

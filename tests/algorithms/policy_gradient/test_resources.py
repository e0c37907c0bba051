"""What can never be scheduled is said before the first actor, and a cluster that may grow is not refused."""

from __future__ import annotations

import json

import pytest
import ray

from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.algorithms.policy_gradient import resources
from gspo_rllib.algorithms.policy_gradient.algorithm import PolicyGradient
from gspo_rllib.algorithms.policy_gradient.resources import Request, shortage
from gspo_rllib.errors import SettingError
from tests.toy_envs.coin_env import CoinEnv


def _config(path):
    config = GSPOConfig().environment(CoinEnv).rl_module(model_config={"path": str(path)})
    return config.generation(engine="transformers", max_tokens_per_turn=6)


def _runners(count, **each):
    return Request(
        "env runner", "env_runners(num_env_runners)", count, {name: float(n) for name, n in each.items() if n}
    )


@pytest.mark.parametrize(
    ("asked", "nodes", "strategy", "problem"),
    [
        ([_runners(4, CPU=1)], [{"CPU": 4.0}], "PACK", None),
        ([_runners(9, CPU=0)], [{"CPU": 1.0}], "PACK", None),
        ([_runners(4, GPU=0.25)], [{"CPU": 1.0, "GPU": 1.0}], "PACK", None),
        ([_runners(10, CPU=0.1)], [{"CPU": 1.0}], "PACK", None),
        ([_runners(5, CPU=1)], [{"CPU": 4.0}], "PACK", "there is room for 4 of 5 env runners"),
        ([_runners(1, GPU=1)], [{"CPU": 4.0}], "PACK", "needs 1 GPU, and no node has more than 0"),
        ([_runners(1, tpu=2)], [{"CPU": 4.0, "tpu": 1.0}], "PACK", "needs 2 tpu, and no node has more than 1"),
        # Eight CPUs, but of every node only one runner of three.
        ([_runners(3, CPU=3)], [{"CPU": 4.0}] * 2, "PACK", "there is room for 2 of 3 env runners"),
        ([_runners(2, CPU=1), _runners(3, CPU=1)], [{"CPU": 4.0}], "PACK", "need 5 CPU, and there are 4"),
        ([_runners(2, CPU=1)], [{"CPU": 4.0}], "STRICT_SPREAD", "2 actors need as many nodes, not 1"),
        ([_runners(2, CPU=3)], [{"CPU": 4.0}] * 2, "STRICT_PACK", "no node has all of 6 CPU"),
        ([_runners(2, CPU=3)], [{"CPU": 4.0}] * 2, "SPREAD", None),
    ],
)  # fmt: skip
def test_a_shortage_is_found_where_there_is_one(asked, nodes, strategy, problem):
    found = shortage(asked, nodes, strategy=strategy)
    assert (found is None) if problem is None else (problem in found)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda c: c.env_runners(num_env_runners=40), ["40 x env runner (1 CPU)", "4 CPU (nodes: 1)", "Lower env_run"]),
        (lambda c: c.env_runners(num_env_runners=1, num_gpus_per_env_runner=1), ["needs 1 GPU"]),
        (lambda c: c.env_runners(num_env_runners=1, custom_resources_per_env_runner={"tpu": 1}), ["needs 1 tpu"]),
        (lambda c: c.learners(num_learners=2, num_cpus_per_learner=3), ["2 x learner (3 CPU)"]),
        (lambda c: c.evaluation(evaluation_num_env_runners=9, evaluation_interval=1), ["9 x evaluation runner"]),
        (lambda c: c.learners(num_gpus_per_learner=1), ["num_gpus_per_learner is 1", "sees 0 GPUs", "num_learners=1"]),
    ],
)  # fmt: skip
def test_what_the_cluster_can_never_give_is_refused_before_the_first_actor(
    change, parts, tiny_dense, ray_local, monkeypatch
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    config = _config(tiny_dense)
    change(config)
    with pytest.raises(SettingError) as caught:
        config.build_algo()
    for part in parts:
        assert part in str(caught.value)
    assert not ray.util.list_named_actors()


def test_a_trial_that_would_never_start_is_refused_by_ray_tune(tiny_dense, ray_local):
    config = _config(tiny_dense).resources(num_cpus_for_main_process=3).env_runners(num_env_runners=2)
    with pytest.raises(SettingError, match=r"1 x main process \(3 CPU\).* all together need 5 CPU, and there are 4"):
        GSPO.default_resource_request(config.to_dict())
    fits = _config(tiny_dense).env_runners(num_env_runners=3)
    assert GSPO.default_resource_request(fits.to_dict()).required_resources["CPU"] == 4


def test_requests_are_what_rllib_asks_ray_tune_for(tiny_dense):
    config = _config(tiny_dense).env_runners(num_env_runners=2, num_cpus_per_env_runner=2)
    config.evaluation(evaluation_num_env_runners=1, evaluation_config={"num_cpus_per_env_runner": 3})
    for learners in (
        {"num_learners": 0, "num_cpus_per_learner": 2},
        {"num_learners": 2, "num_gpus_per_learner": 0.5, "custom_resources_per_learner": {"tpu": 1}},
    ):
        bundles = super(PolicyGradient, GSPO).default_resource_request(config.learners(**learners)).bundles
        asked = resources.requests(config, main_process=True)
        mine = [sorted(request.each.items()) for request in asked for _ in range(request.count)]
        assert sorted(mine) == sorted(sorted((k, v) for k, v in bundle.items() if v) for bundle in bundles)


# -- an autoscaler


def test_a_ray_of_ones_own_does_not_grow(ray_local):
    assert not resources.is_autoscaling()


@pytest.mark.parametrize("sign", ["a node's label", "the largest cluster", "the monitor", "no answer"])
def test_a_cluster_that_may_grow_is_waited_for(sign, tiny_dense, ray_local, monkeypatch, caplog):
    def answer(name, value):
        monkeypatch.setattr(f"gspo_rllib.algorithms.policy_gradient.resources.{name}", value)

    report = {"active_nodes": {"head-group": 1}, "pending_launches": {}}
    if sign == "a node's label":
        nodes = [{**node, "Labels": {"ray.io/node-group": "small"}} for node in ray.nodes()]
        monkeypatch.setattr(ray, "nodes", lambda: nodes)
    elif sign == "the largest cluster":
        monkeypatch.setattr(resources.state, "get_max_resources_from_cluster_config", lambda: {"CPU": 64})
    elif sign == "the monitor":
        answer("_internal_kv_get", lambda key: json.dumps({"autoscaler_report": report}).encode())
    else:
        answer("_internal_kv_get", lambda key: b"not json")
    config = _config(tiny_dense).env_runners(num_env_runners=40)
    resources.check_schedulable(config, main_process=False)
    assert "there is room for 4 of 40 env runners" in caplog.text
    assert "Waiting for the cluster's autoscaler" in caplog.text


def test_ray_is_started_where_nobody_has_started_it_yet(tiny_dense, monkeypatch):
    started = []
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(started))
    monkeypatch.setattr(ray, "init", lambda: started.append(True))
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}] if started else 1 / 0)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: None)
    resources.check_schedulable(_config(tiny_dense).env_runners(num_env_runners=0), main_process=False)
    assert not started, "a run that is one process needs none"
    resources.check_schedulable(_config(tiny_dense).env_runners(num_env_runners=1), main_process=False)
    assert started == [True]

"""A vLLM engine over two processes, in an env runner's actor: what it samples, and what is left when the actor dies."""

from __future__ import annotations

import time

import psutil
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.driver.processes import actor_entry
from gspo_rllib.engines import registry
from gspo_rllib.learners.statistics import LOGP_GAP_MAX
from tests.toy_envs.coin_env import CoinEnv

if "vllm" not in registry.available_engines():
    pytest.skip("vllm is not installed", allow_module_level=True)

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PATIENCE_S = 15.0
SYNCS = 3


def test_two_processes_sample_as_the_learner_scores_and_end_with_their_actor(tiny_dense: str, ray_local: None) -> None:
    algorithm = (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": tiny_dense})
        .env_runners(num_env_runners=1)
        .fault_tolerance(restart_failed_env_runners=False)
        .generation(engine="vllm", max_tokens_per_turn=6, engine_options={"tensor_parallel_size": 2})
        .training(group_size=4, groups_per_iteration=4, num_minibatches=2, lr=1e-3)
        .debugging(seed=0)
        .build_algo()
    )
    try:
        gaps = []
        for _ in range(SYNCS + 1):
            gaps.append(algorithm.train()["learners"][DEFAULT_MODULE_ID][LOGP_GAP_MAX])
        print("nats between engine and learner after each sync:", gaps)
        assert max(gaps) <= 1e-4
        (runner,) = algorithm.env_runner_group._worker_manager.actors().values()
        process = psutil.Process(int(actor_entry(runner)["Pid"]))
        children = process.children(recursive=True)
        assert len([child for child in children if "Worker" in child.name() or "VLLM" in child.name()]) >= 2, children
        process.kill()
        started = time.monotonic()
        _, alive = psutil.wait_procs(children, timeout=PATIENCE_S)
        print(f"{len(children)} processes ended within {time.monotonic() - started:.1f} s")
        assert not alive
    finally:
        algorithm.stop()

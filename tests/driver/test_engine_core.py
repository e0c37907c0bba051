"""vLLM's core, a process below an env runner's, is killed or stopped: the runner is replaced, and nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.engines import registry
from gspo_rllib.types import turns
from tests.toy_envs.coin_env import CoinEnv

if "vllm" not in registry.available_engines():
    pytest.skip("vllm is not installed", allow_module_level=True)

pytestmark = pytest.mark.slow

PATIENCE_S = 5.0
BUSY_S, BACK_S = 10.0, 300.0
"""What is printed is a second, and half a minute, where nothing else runs; these are for a machine that is busy."""


class Run:
    """A run with one env runner whose engine has a process of its own, and what it trained."""

    def __init__(self, path: str, max_staleness: int) -> None:
        config = (
            GSPOConfig()
            .environment(CoinEnv)
            .rl_module(model_config={"path": path})
            .generation(
                engine="vllm",
                max_tokens_per_turn=48,
                max_model_len=256,
                engine_options={"enable_multiprocessing": True, "kv_cache_memory_bytes": 1 << 27},
            )
            .env_runners(num_env_runners=1, num_envs_per_env_runner=8)
            .training(group_size=4, groups_per_iteration=8)
            .fault_tolerance(env_runner_health_probe_timeout_s=PATIENCE_S)
            .debugging(seed=1)
        )
        if max_staleness:
            config.training(max_staleness=1, rollout_correction="truncate", rollout_correction_level="sequence_mean")
        begun = time.monotonic()
        self.algorithm = config.build_algo()  # an engine that has started, and was compared with the learner
        print(f"a process and vLLM in it start in {time.monotonic() - begun:.1f} s")
        self.trained: list[str] = []
        self.versions: list[int] = []
        update = self.algorithm.learner_group.update

        def noting(**kwargs: Any) -> Any:
            for group in kwargs["training_data"].groups:
                self.trained.append(group.group_id)
                versions = [turn.policy_version for episode in group.episodes for turn in turns(episode)]
                self.versions.append(self.algorithm._weights.version - min(versions))
            return update(**kwargs)

        self.algorithm.learner_group.update = noting
        self.seen_at: list[float] = []
        manager = self.algorithm.env_runner_group._worker_manager
        set_state = manager.set_actor_state

        def noting_losses(worker: int, *, healthy: bool) -> None:
            self.seen_at += [] if healthy else [time.monotonic()]
            set_state(worker, healthy=healthy)

        manager.set_actor_state = noting_losses

    def core(self) -> psutil.Process | None:
        """The engine core's process; None while there is none."""
        for process in psutil.Process().children(recursive=True):
            try:
                if "EngineCor" in process.name():
                    return process
            except psutil.Error:
                continue
        return None

    def assert_nothing_lost(self, bound: int) -> None:
        state = self.algorithm.get_state(components=[])
        assert len(self.trained) == len(set(self.trained))
        assert state["next_group"] == len({*self.trained, *state["unfinished_groups"]})
        assert max(self.versions) <= bound


@pytest.fixture(scope="module", params=[0, 1], ids=["sync", "overlapped"])
def run(request: pytest.FixtureRequest, tiny_dense: str, ray_local: None) -> Iterator[tuple[Run, int]]:
    made = Run(tiny_dense, request.param)
    made.algorithm.train()
    yield made, request.param
    made.algorithm.stop()


@pytest.mark.parametrize("moment", ["sampling", "idle", "weights"])
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_core_that_is_lost_costs_time_and_nothing_else(
    run: tuple[Run, int], moment: str, fault: signal.Signals
) -> None:
    made, bound = run
    algorithm, core = made.algorithm, made.core()
    assert core is not None, [p.name() for p in psutil.Process().children(recursive=True)]
    hit_at: list[float] = []
    made.seen_at.clear()

    def hit(*args: Any, **kwargs: Any) -> None:
        if not hit_at:
            hit_at.append(time.monotonic())
            os.kill(core.pid, fault)

    if moment == "sampling":
        threading.Timer(0.3, hit).start()
    elif moment == "idle":
        hit()
    else:
        advance = algorithm._source.advance

        def advancing(weights: Any) -> Any:
            threading.Timer(0.01, hit).start()
            return advance(weights)

        algorithm._source.advance = advancing
    iterations = 0
    while not made.seen_at:
        algorithm.train()
        iterations += 1
        assert iterations < 20
    lost_at = hit_at[0]
    seen_s, back_s = made.seen_at[0] - lost_at, time.monotonic() - lost_at
    algorithm.train()
    print(
        f"{moment} {fault.name} {'overlapped' if bound else 'taking turns'}: seen after {seen_s:.1f} s, its groups "
        f"trained after {back_s:.1f} s"
    )
    assert seen_s <= (PATIENCE_S if fault is signal.SIGSTOP else 0.0) + BUSY_S
    assert back_s <= BACK_S
    made.assert_nothing_lost(bound)
    replaced = made.core()
    assert replaced is not None
    assert replaced.pid != core.pid
    assert not psutil.pid_exists(core.pid)

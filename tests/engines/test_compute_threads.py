"""A small model computes with as many threads as CPUs its process was given, whatever the machine has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.engines import compute_threads as rule
from gspo_rllib.engines.compute_threads import ComputeThreads, compute_threads
from gspo_rllib.errors import SettingError
from tests.env_runners.small_runner import logp

ENV = "gspo_rllib.envs:gspo_rllib/Calculator-v0"


@pytest.fixture
def many_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process as a user starts it on a machine with seven processors."""
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(7)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("cpus", "threads"), [(1, 1), (3, 3), (0, 1), (0.5, 1), (2.5, 2)])
def test_a_small_model_has_the_threads_of_its_cpus(
    tiny_dense: str, many_threads: None, cpus: float, threads: int
) -> None:
    assert compute_threads(tiny_dense, cpus) == threads


def test_a_larger_model_a_user_s_own_number_and_a_model_that_cannot_be_read_change_nothing(
    tiny_dense: str, many_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compute_threads("there/is/none", 1) is None
    with monkeypatch.context() as patch:
        patch.setattr(rule, "SMALL", 1000)
        assert compute_threads(tiny_dense, 1) is None
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert compute_threads(tiny_dense, 1) is None


def test_torch_has_its_own_number_back_after_the_last(many_threads: None) -> None:
    first = ComputeThreads(1)
    with ComputeThreads(2), ComputeThreads(None):
        assert torch.get_num_threads() == 2
        first.release()
        first.release()
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 7


def _config(model: str) -> GSPOConfig:
    return (
        GSPOConfig()
        .environment(ENV, env_config={"operations": 2})
        .rl_module(model_config={"path": model})
        .generation(engine="transformers", max_model_len=256, max_tokens_per_turn=8)
        .env_runners(num_envs_per_env_runner=7)
        .training(group_size=7, groups_per_iteration=1, num_minibatches=1, clip_low=0.1, clip_high=0.1)
        .debugging(seed=0)
    )


def test_an_algorithm_computes_with_the_cpus_it_was_given_and_gives_the_threads_back(
    tiny_dense: str, many_threads: None, ray_local: None
) -> None:
    algorithm = _config(tiny_dense).resources(num_cpus_for_main_process=2).build_algo()
    assert torch.get_num_threads() == 2
    algorithm.stop()
    assert torch.get_num_threads() == 7
    broken = _config(tiny_dense).rl_module(model_config={"path": tiny_dense, "lora": {"target_modules": ["none"]}})
    with pytest.raises(SettingError, match="matches none"):
        broken.build_algo()
    assert torch.get_num_threads() == 7


@pytest.mark.slow
def test_it_samples_as_an_actor_of_ray_does_to_the_bit(tiny_dense: str, many_threads: None, ray_local: None) -> None:
    sampled = []
    for runners in (0, 1):
        algorithm = _config(tiny_dense).env_runners(num_env_runners=runners).build_algo()
        runner = algorithm.env_runner_group
        episodes = runner.foreach_env_runner(lambda one: one.sample(group_ids=["a"]), local_env_runner=not runners)[0]
        sampled.append(episodes)
        algorithm.stop()
    assert np.array_equal(*map(logp, sampled))

"""GSPO learns a multi-turn task from its rewards, and a wrong loss does not: the same run, three losses."""

from __future__ import annotations

import pytest

from benchmarks.learning import BROKEN, train
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.warmstart import warmstart

ENV = "gspo_rllib.envs:gspo_rllib/Calculator-v0"
TARGET = 0.85
ITERATIONS = 30
BROKEN_ITERATIONS = 8


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A policy that knows the tool but is careless: about half of its trajectories succeed."""
    folder = tmp_path_factory.mktemp("student") / "model"
    result = warmstart(
        ENV, {"operations": 2}, folder, target_success=0.4, careless=True,
        sizes={"hidden_size": 64, "num_layers": 2, "head_dim": 32, "num_heads": 2, "num_kv_heads": 1},
        progress=None,
    )  # fmt: skip
    assert result.reached
    assert 0.2 <= result.success <= 0.7
    return folder


def _config(student, learner_class=None, engine="vllm"):
    config = (
        GSPOConfig()
        .environment(ENV, env_config={"operations": 2})
        .rl_module(model_config={"path": str(student)})
        .generation(engine=engine, max_tokens_per_turn=12)
        .env_runners(num_envs_per_env_runner=64)
        .training(group_size=8, groups_per_iteration=16, lr=1e-4, clip_low=0.03, clip_high=0.04)
        .debugging(seed=0)
    )
    return config.learners(learner_class=learner_class) if learner_class else config


def test_gspo_learns_to_solve_the_task(student, ray_local):
    report = train(_config(student), target=TARGET, minutes=5, iterations=ITERATIONS)
    assert report["reached_s"] is not None, report["curve"]
    assert report["start"] < 0.75


@pytest.mark.parametrize("fault", sorted(BROKEN))
def test_the_same_run_with_a_broken_loss_does_not(student, fault, ray_local):
    report = train(
        _config(student, BROKEN[fault], engine="transformers"), target=TARGET, minutes=5, iterations=BROKEN_ITERATIONS
    )
    assert report["reached_s"] is None, report["curve"]
    assert report["end"] < 0.75, report["curve"]

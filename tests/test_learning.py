"""A multi-turn task is learned from its rewards with every objective, and not with a wrong loss."""

from __future__ import annotations

import pytest

from benchmarks.learning import BROKEN, OBJECTIVES, train
from gspo_rllib.configs import load_config
from gspo_rllib.warmstart import warmstart

ENV = "gspo_rllib.envs:gspo_rllib/Calculator-v0"
LONG_ENV = "gspo_rllib.envs:gspo_rllib/Recall-v0"
FIFTY_TURNS = {"turns": 50, "keys": 1, "values": 2}
SIZES = {"hidden_size": 64, "num_layers": 2, "head_dim": 32, "num_heads": 2, "num_kv_heads": 1}
TARGET = 0.85
LONG_TARGET = 0.75
"""Of whole trajectories: twenty-five answers in a row are right."""
ITERATIONS = 30
BROKEN_ITERATIONS = 8
IN_EVERY_RUN = ("GSPO",)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A policy that knows the tool but is careless: about half of its trajectories succeed."""
    folder = tmp_path_factory.mktemp("student") / "model"
    result = warmstart(
        ENV, {"operations": 2}, folder, target_success=0.4, careless=True, lr=3e-3, sizes=SIZES, progress=None
    )
    assert result.reached
    assert 0.2 <= result.success <= 0.7
    return folder


def _config(student, objective="GSPO", learner_class=None, engine="transformers"):
    config = load_config(
        "calculator",
        [
            *OBJECTIVES[objective],
            "environment.env_config.operations=2",
            f"rl_module.model_config={{path: {student}}}",
            f"generation.engine={engine}",
            "generation.max_tokens_per_turn=12",
        ],
    )
    return config.learners(learner_class=learner_class) if learner_class else config


@pytest.mark.parametrize(
    "objective",
    [pytest.param(name, marks=[] if name in IN_EVERY_RUN else [pytest.mark.slow]) for name in OBJECTIVES],
)
def test_it_learns_to_solve_the_task(student, objective, ray_local):
    report = train(_config(student, objective), target=TARGET, minutes=60, iterations=ITERATIONS)
    assert report["reached_s"] is not None, report["curve"]
    assert report["start"] < 0.75


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["GSPO", "GRPO"])
def test_an_adapter_learns_it_too_in_three_times_the_iterations(student, objective, ray_local):
    whole = train(_config(student, objective), target=TARGET, minutes=60, iterations=ITERATIONS)
    config = _config(student, objective)
    adapted = {"path": str(student), "lora": {"rank": 16, "alpha": 32}}
    config = config.rl_module(model_config=adapted).training(lr=10 * config.lr)
    report = train(config, target=TARGET, minutes=60, iterations=3 * whole["iterations"])
    assert whole["reached_s"] is not None and report["reached_s"] is not None, (whole["curve"], report["curve"])
    assert report["start"] < 0.75


@pytest.mark.slow
def test_it_learns_as_much_from_trajectories_that_are_an_update_old(student, ray_local):
    # With the recipe's learning rate, which moves the policy far in every update, an update's delay makes it swing.
    config = _config(student, engine="transformers").training(
        lr=3e-5, max_staleness=1, rollout_correction="truncate", rollout_correction_level="sequence_mean"
    )
    report = train(config, target=TARGET, minutes=60, iterations=ITERATIONS)
    assert report["reached_s"] is not None, report["curve"]
    assert report["start"] < 0.75


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(BROKEN))
def test_the_same_run_with_a_broken_loss_does_not(student, fault, ray_local):
    config = _config(student, learner_class=BROKEN[fault], engine="transformers")
    report = train(config, target=TARGET, minutes=60, iterations=BROKEN_ITERATIONS)
    assert report["reached_s"] is None, report["curve"]
    assert report["end"] < 0.75, report["curve"]


@pytest.mark.slow
def test_the_recipe_of_long_tasks_learns_fifty_turns(tmp_path, ray_local):
    # All of twenty-five answers must be right, and every one is paid by itself.
    start = warmstart(
        LONG_ENV,
        FIFTY_TURNS,
        tmp_path / "model",
        target_success=0.35,
        careless=True,
        lr=3e-3,
        sizes=SIZES,
        progress=None,
    )
    assert start.reached
    overrides = [f"environment.env_config={FIFTY_TURNS}", f"rl_module.model_config={{path: {tmp_path / 'model'}}}"]
    report = train(load_config("recall_long", overrides), target=LONG_TARGET, minutes=60, iterations=12)
    assert report["start"] < 0.6
    assert report["reached_s"] is not None, report["curve"]

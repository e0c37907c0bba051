"""The example of a loss of one's own: the config takes it, its statistic is reported, its gradient is the one used."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.algorithms import GSPOConfig, LanguagePPOConfig
from gspo_rllib.envs import UnicodeText
from gspo_rllib.learners.statistics import UpdateStatistics
from gspo_rllib.learners.training_data import GroupTrainingData, MinibatchPlan
from gspo_rllib.types import group_episodes
from tests.episodes import make_episode

ROOT = Path(__file__).resolve().parents[2]
SPACES = {DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("custom_loss")


def _config(path: str, config: GSPOConfig | None = None, **training: Any) -> GSPOConfig:
    settings = {"group_size": 4, "groups_per_iteration": 1, "num_minibatches": 1, "grad_clip": None, **training}
    return (
        (config or GSPOConfig())
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 1})
        .rl_module(model_config={"path": path})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .learners(num_learners=0)
        .training(**settings)
        .debugging(seed=0)
    )


def test_an_iteration_is_trained_with_the_loss_of_ones_own(example, tiny_dense, ray_local):
    small = ["--iterations", "1", "--operations", "1", "--groups", "4", "--max-tokens", "4"]
    statistics = example.main([tiny_dense, "--engine", "transformers", *small])
    assert statistics[example.RESIDUAL] >= 0.0
    # The statistics of the loss that it replaces are of a ratio that this one never makes.
    assert "clip_fraction" not in statistics and "ratio_mean" not in statistics


def test_its_gradient_is_the_one_the_optimiser_gets(example, tiny_dense):
    """Returns 1, 0, 0, 0: advantages 0.75 and three times -0.25, mean size 0.375; before the first step log ratio is 0.

    The loss is the mean of the squares, whose gradient is -2 tau A grad(sum of log p) / 4: so, for a policy gradient
    with the weight 1 per token of a trajectory, -A grad(sum of log p) / 4, times 2 tau = 0.2.
    """
    groups = group_episodes([make_episode("g", i, [(3, 4), (2, 3)], float(i == 0)) for i in range(4)])

    def update(config: GSPOConfig) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        learner = config.build_learner(spaces=SPACES)
        data = GroupTrainingData.from_groups(groups, num_minibatches=1, seed=0)
        results = learner.update(training_data=data, num_epochs=1)[DEFAULT_MODULE_ID]
        parameters = learner.module[DEFAULT_MODULE_ID].unwrapped().named_parameters()
        measured = {name: value.peek() for name, value in results.items() if hasattr(value, "peek")}
        return {name: p.grad.clone() for name, p in parameters}, measured

    shared = {"advantage_estimator": "group_mean", "old_log_probs": "learner"}
    own, measured = update(_config(tiny_dense, **shared).learners(learner_class=example.MirrorDescentLearner))
    plain, _ = update(_config(tiny_dense, **shared, surrogate="policy_gradient", importance_sampling_level="token",
                              reduction="token_sum", token_sum_length=1))  # fmt: skip
    assert measured[example.RESIDUAL] == pytest.approx(0.375, abs=1e-6)
    scale = max(float(gradient.abs().max()) for gradient in plain.values())
    assert scale > 1e-4
    for name, gradient in plain.items():
        torch.testing.assert_close(own[name], 2 * example.TAU * gradient, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("own", [False, True], ids=["penalties and a critic", "a loss of one's own"])
def test_a_learner_without_a_trajectory_adds_nothing_whatever_the_loss_is(example, tiny_dense, own):
    """The token with which it takes part in the exchange of gradients is made up: no penalty may train on it."""
    config = _config(tiny_dense, LanguagePPOConfig(), kl_coeff=0.5, entropy_coeff=0.1)
    if own:
        config = _config(tiny_dense).learners(learner_class=example.MirrorDescentLearner)
    learner = config.build_learner(spaces=SPACES)
    learner.statistics = UpdateStatistics(learner.own_statistics)
    with torch.no_grad():
        # An untrained model has no opinion about the token 0, its padding, and an untrained critic none about any.
        for parameter in learner.module[DEFAULT_MODULE_ID].unwrapped().parameters():
            parameter.add_(0.1)
    plan = MinibatchPlan(frozenset({"elsewhere"}), num_trajectories=4, num_turns=4, num_sampled_tokens=9)
    learner._uncompiled_update({DEFAULT_MODULE_ID: {"micro_batches": [], "plan": plan}})
    gradients = [p.grad for p in learner.module[DEFAULT_MODULE_ID].unwrapped().parameters() if p.requires_grad]
    assert gradients and all(g is not None and not bool(g.any()) for g in gradients)


def test_a_statistic_that_would_be_lost_is_an_error_that_says_where_to_name_it():
    with pytest.raises(ValueError, match=r"'mine' is unknown.*own_statistics = \('mine',\)"):
        UpdateStatistics().add_mean("mine", 1.0, 1)
    update = UpdateStatistics(("mine",))
    update.add_mean("mine", 3.0, 2)
    assert update.compute(distributed=False, device="cpu")["mine"] == 1.5

"""Objectives put together: what the learner makes of every choice of parts, from episodes to gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import checkpoints
from gspo_rllib.algorithms import ALGORITHMS, GSPO, GSPOConfig, LanguagePPOConfig
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.types import TURN, TrajectoryGroup, group_episodes
from tests.episodes import make_episode
from tests.learners.objectives import SPACES, even_groups, objective_config, update
from tests.toy_envs.coin_env import CoinEnv


def _gradient(config, groups=None):
    learner, _ = update(config, groups)
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def _assert_same(got, expected, tolerance=1e-5):
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 1e-4
    for name, gradient in expected.items():
        torch.testing.assert_close(
            got[name], gradient, rtol=1e-4, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("reduction", ["turn_mean", "token_mean", "token_sum"])
def test_micro_batches_share_one_denominator_under_every_reduction(tiny_dense, reduction):
    objective = {"old_log_probs": "learner", "reduction": reduction, "importance_sampling_level": "turn"}
    expected = _gradient(objective_config(tiny_dense, **objective))
    _assert_same(_gradient(objective_config(tiny_dense, **objective, max_tokens_per_micro_batch=80)), expected)


def test_micro_batches_agree_with_every_regulariser_and_a_critic_too(tiny_dense):
    parts = {
        "old_log_probs": "learner", "kl_coeff": 0.5, "entropy_coeff": 0.1, "rollout_correction": "truncate",
        "group_size": 4, "groups_per_iteration": 4,
    }  # fmt: skip
    expected = _gradient(objective_config(tiny_dense, LanguagePPOConfig(), **parts))
    assert any(name.startswith("critic") for name in expected)
    got = _gradient(objective_config(tiny_dense, LanguagePPOConfig(), **parts, max_tokens_per_micro_batch=80))
    _assert_same(got, expected)


@pytest.mark.slow
def test_two_ranks_standardise_advantages_and_train_a_critic_like_one(tiny_dense, ray_local):
    parts = {"old_log_probs": "learner", "kl_coeff": 0.5, "group_size": 4, "groups_per_iteration": 4}
    config = objective_config(tiny_dense, LanguagePPOConfig(), **parts)
    expected = _gradient(config)
    ranks = config.copy().learners(num_learners=2)
    group = ranks.build_learner_group(rl_module_spec=ranks.get_multi_rl_module_spec(spaces=SPACES))
    try:
        # Then one group: a rank without a trajectory takes part in every exchange all the same.
        for groups in (even_groups(4), even_groups(1)):
            data = GroupTrainingData.from_groups(groups, num_minibatches=1, seed=0)
            group.update(training_data=data, num_epochs=1)
            results = group.foreach_learner(
                lambda learner: {
                    name: p.grad.clone() for name, p in learner.module[DEFAULT_MODULE_ID].unwrapped().named_parameters()
                }
            )
            first, second = (result.get() for result in results)
            _assert_same(first, second, tolerance=1e-7)
            if len(groups) == 4:
                _assert_same(first, expected)
    finally:
        group.shutdown()


def test_an_entropy_bonus_raises_the_entropy(tiny_dense):
    flat = group_episodes([make_episode("flat", i, [(4, 8)], 1.0) for i in range(4)])
    config = objective_config(tiny_dense, entropy_coeff=1.0, lr=1e-3, old_log_probs="learner")
    learner = config.build_learner(spaces=SPACES)
    entropy = []
    for _ in range(3):
        # The trajectories agree, so the bonus is the only gradient there is.
        data = GroupTrainingData.from_groups(flat, num_minibatches=1, seed=0)
        entropy.append(learner.update(training_data=data, num_epochs=1)[DEFAULT_MODULE_ID]["entropy"].peek())
    assert entropy[0] < entropy[1] < entropy[2]


def test_a_critic_learns_what_trajectories_return(tiny_dense):
    config = objective_config(tiny_dense, LanguagePPOConfig(), vf_lr=1e-2, lr=0.0)
    learner = config.build_learner(spaces=SPACES)
    explained = []
    for _ in range(25):
        data = GroupTrainingData.from_groups(even_groups(), num_minibatches=1, seed=0)
        results = learner.update(training_data=data, num_epochs=1)[DEFAULT_MODULE_ID]
        explained.append(results["vf_explained_var"].peek())
    assert explained[0] == pytest.approx(0.0, abs=1e-6)
    assert explained[-1] > 0.9


def test_ragged_groups_are_averaged_over_the_trajectories_there_are(tiny_dense):
    whole = even_groups(2)
    ragged = [TrajectoryGroup(whole[0].group_id, whole[0].episodes[:3]), whole[1]]
    data = GroupTrainingData.from_groups(ragged, num_minibatches=1, seed=0)
    (plan,) = data.minibatches
    turns = [len(turn.action_token_ids) for g in ragged for e in g.episodes for turn in e.get_extra_model_outputs(TURN)]
    assert (plan.num_trajectories, plan.num_turns, plan.num_sampled_tokens) == (7, len(turns), sum(turns))


def test_the_target_clip_fraction_moves_the_range_and_is_resumed(tiny_dense):
    config = objective_config(tiny_dense, clip_scaling="target", num_minibatches=2, lr=1e-2, old_log_probs="learner")
    learner, measured = update(config, num_minibatches=2)
    assert measured["clip_scale"] == 1.0
    # Half of the steps start at ratio 1; after one step at this learning rate everything is outside 3e-4.
    assert measured["clip_fraction"] > 0.15
    assert learner.clip_scale > 1.0
    other = config.build_learner(spaces=SPACES)
    other.set_state(learner.get_state())
    assert other.clip_scale == learner.clip_scale
    unscaled = objective_config(tiny_dense, num_minibatches=2, old_log_probs="learner").build_learner(spaces=SPACES)
    unscaled.set_state(learner.get_state())
    assert unscaled.clip_scale == 1.0


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_algorithm_trains_from_an_on_policy_start(name, tiny_dense, ray_local):
    config = (
        ALGORITHMS[name]
        .get_default_config()
        .environment(CoinEnv)
        .rl_module(model_config={"path": str(tiny_dense)})
        .generation(engine="transformers", temperature=0.7, max_tokens_per_turn=6)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .training(group_size=4, groups_per_iteration=4, lr=1e-3, num_minibatches=1)
        .debugging(seed=1)
    )
    algo = config.build_algo()
    try:
        assert type(algo) is ALGORITHMS[name]
        for _ in range(2):
            learner = algo.train()["learners"][DEFAULT_MODULE_ID]
            assert learner["staleness"] == 0.0
            assert learner["logp_gap_max"] < 1e-4
            assert learner["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
            assert learner["effective_sample_size"] == pytest.approx(1.0, abs=1e-4)
            assert np.isfinite(learner["loss"])
            assert learner["grad_norm"] > 0.0
    finally:
        algo.stop()


def test_a_resumed_run_keeps_the_reference_it_started_from(tiny_dense, tmp_path, ray_local):
    config = (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": str(tiny_dense)})
        .generation(engine="transformers", temperature=0.7, max_tokens_per_turn=6)
        .training(group_size=4, groups_per_iteration=4, lr=1e-3, kl_coeff=0.1)
        .debugging(seed=1)
    )
    algo = config.build_algo()
    try:
        algo.train()
        saved = algo.save_to_path(str(tmp_path / "checkpoint"))
        expected = algo.train()["learners"][DEFAULT_MODULE_ID]["kl_to_reference"]
    finally:
        algo.stop()
    assert (tmp_path / "checkpoint" / checkpoints.REFERENCE / "model.safetensors").is_file()
    resumed = GSPO.from_checkpoint(saved)
    try:
        assert resumed.train()["learners"][DEFAULT_MODULE_ID]["kl_to_reference"] == pytest.approx(expected, rel=1e-3)
    finally:
        resumed.stop()
    assert expected > 1e-4

"""GSPO as an RLlib algorithm: training, weight sync, checkpoints, evaluation, faults and Tune."""

from __future__ import annotations

import itertools
import json
import pathlib
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import checkpoints
from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.engines import registry
from gspo_rllib.errors import CheckpointError, NoProgressError
from gspo_rllib.types import TrajectoryGroup
from tests.episodes import make_episode
from tests.modules.noisy_models import build_noisy
from tests.toy_envs.coin_env import CoinEnv
from tests.toy_envs.faulty_envs import FailingEnv


def _config(path, *, num_env_runners=0, num_learners=0, engine="transformers", **training):
    return (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": str(path)})
        .generation(engine=engine, temperature=0.7, max_tokens_per_turn=6)
        .env_runners(num_env_runners=num_env_runners, num_envs_per_env_runner=8)
        .learners(num_learners=num_learners)
        .training(**{"group_size": 4, "groups_per_iteration": 4, "num_minibatches": 2, "lr": 1e-3, **training})
        .debugging(seed=1)
    )


def _parameters(algo):
    state = algo.learner_group.get_state(components="learner/rl_module")["learner"]["rl_module"][DEFAULT_MODULE_ID]
    return {name: np.array(array) for name, array in state.items()}


def _learner_results(result):
    return result["learners"][DEFAULT_MODULE_ID]


def _assert_on_policy(result):
    learner = _learner_results(result)
    assert learner["staleness"] == 0.0
    assert 0.0 <= learner["logp_gap_max"] < 1e-4


def _equal(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_every_iteration_starts_on_policy_and_changes_the_weights(tiny_dense, ray_local):
    algo = _config(tiny_dense).build_algo()
    try:
        weights = [_parameters(algo)]
        for _ in range(3):
            result = algo.train()
            _assert_on_policy(result)
            assert _learner_results(result)["num_optimizer_steps"] == 2
            assert _learner_results(result)["num_trajectories"] == 16
            assert result["env_runners"]["num_episodes"] == 16
            weights.append(_parameters(algo))
        assert not any(_equal(a, b) for a, b in itertools.pairwise(weights))
    finally:
        algo.stop()


@pytest.mark.parametrize("family", ["gpt2", "opt, which skips layers", "phimoe, which samples its routing", "seed_oss"])
def test_a_policy_that_does_not_move_is_scored_as_it_was_sampled(family, tiny_dense, tmp_path, ray_local):
    """Models whose config has dropout, layer drop or router noise: none of it reaches learner, critic or reference."""
    path = build_noisy(family, tmp_path, tokenizer=tiny_dense)
    algo = _config(path, lr=0.0, kl_coeff=0.1, groups_per_iteration=2, old_log_probs="engine").build_algo()
    try:
        result = algo.train()
        _assert_on_policy(result)
        learner = _learner_results(result)
        assert learner["clip_fraction"] == 0.0
        assert learner["kl_to_reference"] == pytest.approx(0.0, abs=1e-6)
        assert learner["ratio_mean"] == pytest.approx(1.0, abs=1e-4)
    finally:
        algo.stop()


def test_a_run_resumed_from_a_checkpoint_is_the_run_that_went_on(tiny_dense, tmp_path, ray_local):
    algo = _config(tiny_dense).build_algo()
    try:
        algo.train()
        saved = algo.save_to_path(str(tmp_path / "checkpoint"))
        at_save = _parameters(algo)
        algo.train()
        expected = _parameters(algo)
    finally:
        algo.stop()
    # The checkpoint needs neither the model it started from nor the place it was written to.
    moved = shutil.move(saved, tmp_path / "elsewhere")
    resumed = GSPO.from_checkpoint(str(moved))
    try:
        assert _equal(_parameters(resumed), at_save)
        assert resumed.iteration == 1
        _assert_on_policy(resumed.train())
        assert _equal(_parameters(resumed), expected)
    finally:
        resumed.stop()


@pytest.fixture(scope="module")
def stored(tiny_dense, tmp_path_factory, ray_local):
    """A run's checkpoint and state after one iteration at a learning rate of 1e-3, and where the next one got it to."""
    folder = tmp_path_factory.mktemp("stored")
    algo = _config(tiny_dense).build_algo()
    try:
        algo.train()
        found = SimpleNamespace(path=algo.save_to_path(str(folder / "own")), state=algo.get_state())
        found.by_tune = algo.save(str(folder / "tune")).checkpoint.path
        found.parameters = _parameters(algo)
        algo.train()
        found.next_parameters = _parameters(algo)
    finally:
        algo.stop()
    return found


def _restored(way, config, stored):
    if way == "from_checkpoint":
        return GSPO.from_checkpoint(stored.path, config=config)
    algo = config.build_algo()
    if way == "restore_from_path":  # gspo-rllib train --resume
        algo.restore_from_path(stored.path)
    elif way == "restore":  # Tune, where a trial takes over another one's checkpoint
        algo.restore(stored.by_tune)
    else:
        algo.set_state(stored.state)
    return algo


@pytest.mark.parametrize(
    "way",
    [
        "from_checkpoint",
        "restore",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("restore_from_path", "set_state")),
    ],
)
@pytest.mark.parametrize("lr", [pytest.param(1e-3, marks=pytest.mark.slow), 1e-9], ids=["the same", "another"])
def test_a_restored_run_has_the_learning_rate_of_its_own_config(lr, way, stored, tiny_dense, ray_local):
    algo = _restored(way, _config(tiny_dense, lr=lr), stored)
    try:
        assert _equal(_parameters(algo), stored.parameters)
        algo.train()
        got = _parameters(algo)
        if lr == 1e-3:
            assert _equal(got, stored.next_parameters)
        else:
            # Two steps of at most about ten learning rates each (Adam's, plus decay), on weights of at most 4.
            moved = max(np.abs(got[name] - before).max() for name, before in stored.parameters.items())
            assert moved <= 1e-6
    finally:
        algo.stop()


def test_rolling_back_a_live_algorithm_rolls_back_its_engine_too(tiny_dense, tmp_path, ray_local):
    algo = _config(tiny_dense).build_algo()
    try:
        algo.train()
        saved, state, before = algo.save_to_path(str(tmp_path / "checkpoint")), algo.get_state(), _parameters(algo)
        algo.train()
        algo.restore_from_path(saved)
        assert _equal(_parameters(algo), before)
        _assert_on_policy(algo.train())
        first = _parameters(algo)
        algo.set_state(state)
        assert _equal(_parameters(algo), before)
        _assert_on_policy(algo.train())
        assert _equal(_parameters(algo), first)
    finally:
        algo.stop()


def test_a_damaged_checkpoint_is_refused_before_anything_changes(tiny_dense, tmp_path, ray_local):
    algo = _config(tiny_dense).build_algo()
    try:
        saved = pathlib.Path(algo.save_to_path(str(tmp_path / "checkpoint")))
        weights = next((saved / checkpoints.POLICY).glob("*.safetensors"))
        before = _parameters(algo)
        damaged = bytearray(weights.read_bytes())
        damaged[-1] ^= 1
        weights.write_bytes(damaged)
        for restore in (algo.restore_from_path, GSPO.from_checkpoint):
            with pytest.raises(CheckpointError, match=r"model.safetensors is corrupt"):
                restore(str(saved))
        weights.unlink()
        with pytest.raises(CheckpointError, match="is missing"):
            algo.restore_from_path(str(saved))
        (saved / checkpoints.MANIFEST).unlink()
        with pytest.raises(CheckpointError, match="saving was interrupted"):
            algo.restore_from_path(str(saved))
        assert _equal(_parameters(algo), before)
    finally:
        algo.stop()


def test_a_checkpoint_holds_the_policy_as_a_hugging_face_folder(tiny_moe, tmp_path, ray_local):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    algo = _config(tiny_moe).build_algo()
    try:
        algo.train()
        folder = checkpoints.policy_folder(algo.save_to_path(str(tmp_path / "checkpoint")))
        expected = _parameters(algo)
    finally:
        algo.stop()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert all(np.array_equal(t.numpy(), expected[f"model.{name}"]) for name, t in model.state_dict().items())
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert not list(folder.glob("*.bin"))
    assert sum(f.stat().st_size for f in folder.glob("*.pkl")) < 100_000


def test_evaluation_shares_the_engine_and_repeats_its_tasks(tiny_dense, ray_local):
    config = _config(tiny_dense).evaluation(
        evaluation_interval=1,
        evaluation_duration=6,
        evaluation_config=GSPOConfig.overrides(explore=False),
    )
    algo = config.build_algo()
    try:
        first, again = algo.evaluate(), algo.evaluate()
        assert first["env_runners"]["num_episodes"] == 6
        assert first["env_runners"]["episode_return_mean"] == again["env_runners"]["episode_return_mean"]
        result = algo.train()
        assert result["evaluation"]["env_runners"]["num_episodes"] == 6
        _assert_on_policy(result)
        assert algo.env_runner._engine is algo.env_runner._evaluator._engine
        _assert_on_policy(algo.train())
    finally:
        algo.stop()
    assert not registry._held


@pytest.mark.slow
def test_two_vllm_runners_and_two_learners_train_like_one_process(tiny_tied, ray_local):
    results = {}
    for num_env_runners, num_learners in ((0, 0), (2, 2)):
        config = _config(tiny_tied, engine="vllm", num_env_runners=num_env_runners, num_learners=num_learners)
        algo = config.build_algo()
        try:
            results[num_env_runners] = [algo.train() for _ in range(2)]
            for result in results[num_env_runners]:
                _assert_on_policy(result)
        finally:
            algo.stop()
    for one, many in zip(results[0], results[2], strict=True):
        # Groups and sampling seeds do not depend on who plays them, nor the gradient on who computes it.
        assert many["env_runners"]["episode_return_mean"] == pytest.approx(
            one["env_runners"]["episode_return_mean"], rel=1e-6
        )
        assert _learner_results(many)["grad_norm"] == pytest.approx(_learner_results(one)["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_a_runner_that_died_unnoticed_never_samples_with_other_weights(tiny_dense, ray_local):
    algo = _config(tiny_dense, num_env_runners=2).build_algo()
    try:
        algo.train()
        victim = algo.env_runner_group._worker_manager.actors()[1]
        ray.kill(victim, no_restart=False)
        for _ in range(2):
            result = algo.train()
            assert result["env_runners"]["num_episodes"] == 16
            _assert_on_policy(result)
    finally:
        algo.stop()


def test_an_environment_that_always_fails_ends_the_run_with_its_own_words(tiny_dense, ray_local):
    config = _config(tiny_dense).environment(FailingEnv, env_config={"fault": "raise"})
    algo = config.build_algo()
    try:
        with pytest.raises(NoProgressError, match="fault raise on task"):
            algo.train()
    finally:
        algo.stop()


def test_old_log_probs_are_recomputed_where_the_engine_is_not_exact(tiny_dense):
    assert not _config(tiny_dense).recompute_old_log_probs
    assert _config(tiny_dense).generation(engine_dtype="bfloat16").recompute_old_log_probs
    mixed = _config(tiny_dense).rl_module(model_config={"path": str(tiny_dense), "autocast_dtype": "bfloat16"})
    assert mixed.recompute_old_log_probs
    assert not mixed.training(old_log_probs="engine").recompute_old_log_probs


def test_with_an_engine_in_bf16_the_first_ratio_is_still_one(tiny_dense, ray_local):
    config = _config(tiny_dense, num_minibatches=1).generation(engine_dtype="bfloat16")
    algo = config.build_algo()
    try:
        learner = _learner_results(algo.train())
        assert learner["logp_gap_max"] > 1e-4
        assert learner["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
        assert learner["clip_fraction"] == 0.0
    finally:
        algo.stop()


def test_tune_runs_a_sweep_by_name_and_its_best_checkpoint_restores(tiny_dense, tmp_path, ray_local):
    from ray import tune

    levels = ["sequence", "token"]
    config = _config(tiny_dense).training(importance_sampling_level=tune.grid_search(levels))
    tuner = tune.Tuner(
        "GSPO",
        param_space=config,
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            stop={"training_iteration": 2},
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
        ),
    )
    results = tuner.fit()
    assert not results.errors
    assert sorted(r.config["importance_sampling_level"] for r in results) == sorted(levels)
    best = results.get_best_result("env_runners/episode_return_mean", mode="max")
    assert json.loads((pathlib.Path(best.path) / "result.json").read_text().splitlines()[-1])["training_iteration"] == 2
    # A trial trains in a process of its own: here, its environment has to be vouched for.
    algo = GSPO.from_checkpoint(best.checkpoint, trust=[CoinEnv])
    try:
        assert algo.iteration == 2
        _assert_on_policy(algo.train())
    finally:
        algo.stop()


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, [3, 0]),
        ({"advantage_estimator": "leave_one_out"}, [3, 0]),
        # Equal returns may have unequal advantages: by when they came, or by what is taken off them afterwards.
        ({"advantage_estimator": "turn_returns"}, [3, 3]),
        ({"overlong_tokens": 8}, [3, 3]),
        ({"kl_coeff": 0.1, "kl_placement": "reward"}, [3, 3]),
        ({"kl_coeff": 0.1, "kl_placement": "loss"}, [3, 0]),
    ],
)
def test_trajectories_with_an_advantage_are_told_by_the_returns_where_these_decide(settings, counts):
    algorithm = SimpleNamespace(_settings=GSPOConfig.training_settings(**settings))
    groups = [
        TrajectoryGroup("g", [make_episode("g", i, [(2, 3)], reward) for i, reward in enumerate(rewards)])
        for rewards in ([0.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    ]
    assert [GSPO._num_informative(algorithm, group) for group in groups] == counts

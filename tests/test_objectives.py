"""Objectives put together: what the learner makes of every choice of parts, from episodes to gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import checkpoints, columns
from gspo_rllib.algorithms import ALGORITHMS, GSPO, GSPOConfig, LanguagePPOConfig
from gspo_rllib.envs import UnicodeText
from gspo_rllib.errors import EnvError
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.types import TURN, TURN_REWARDS, TrajectoryGroup, group_episodes
from tests.coin_env import CoinEnv
from tests.episodes import make_episode, make_group

SPACES = {DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))}


def _config(path, config=None, *, model=None, **training):
    return (
        (config or GSPOConfig())
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 1})
        .rl_module(model_config={"path": str(path), **(model or {})})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .learners(num_learners=0)
        .training(**{"group_size": 4, "groups_per_iteration": 4, "num_minibatches": 1, "grad_clip": None, **training})
        .debugging(seed=0)
    )


def _groups(count=4):
    return group_episodes([episode for i in range(count) for episode in make_group(f"g{i}", 4)])


def _update(config, groups=None, *, num_minibatches=1):
    """A learner after one update, and what it measured."""
    learner = config.build_learner(spaces=SPACES)
    data = GroupTrainingData.from_groups(groups or _groups(), num_minibatches=num_minibatches, seed=0)
    results = learner.update(training_data=data, num_epochs=1)
    return learner, {name: s.peek() for name, s in results[DEFAULT_MODULE_ID].items() if hasattr(s, "peek")}


def _gradient(config, groups=None):
    learner, _ = _update(config, groups)
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def _assert_same(got, expected, tolerance=1e-5):
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 1e-4
    for name, gradient in expected.items():
        torch.testing.assert_close(
            got[name], gradient, rtol=1e-4, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def _trajectories(config, episodes):
    """What the learner connectors hand to the learner."""
    learner = config.build_learner(spaces=SPACES)
    batch = learner._learner_connector(
        rl_module=learner.module, batch={}, episodes=episodes, shared_data={}, metrics=learner.metrics
    )
    return batch[DEFAULT_MODULE_ID][columns.TRAJECTORIES]


def _per_turn(trajectory):
    """The advantage of each turn; all of a turn's tokens must have the same one."""
    turns = [trajectory.advantages[trajectory.turn_index == n] for n in range(trajectory.num_turns)]
    assert all((turn == turn[0]).all() for turn in turns)
    return [float(turn[0]) for turn in turns]


@pytest.mark.parametrize("reduction", ["turn_mean", "token_mean", "token_sum"])
def test_micro_batches_share_one_denominator_under_every_reduction(tiny_dense, reduction):
    objective = {"old_log_probs": "learner", "reduction": reduction, "importance_sampling_level": "turn"}
    expected = _gradient(_config(tiny_dense, **objective))
    _assert_same(_gradient(_config(tiny_dense, **objective, max_tokens_per_micro_batch=80)), expected)


def test_micro_batches_agree_with_every_regulariser_and_a_critic_too(tiny_dense):
    parts = {
        "old_log_probs": "learner", "kl_coeff": 0.5, "entropy_coeff": 0.1, "rollout_correction": "truncate",
        "group_size": 4, "groups_per_iteration": 4,
    }  # fmt: skip
    expected = _gradient(_config(tiny_dense, LanguagePPOConfig(), **parts))
    assert any(name.startswith("critic") for name in expected)
    got = _gradient(_config(tiny_dense, LanguagePPOConfig(), **parts, max_tokens_per_micro_batch=80))
    _assert_same(got, expected)


def test_two_ranks_standardise_advantages_and_train_a_critic_like_one(tiny_dense, ray_local):
    parts = {"old_log_probs": "learner", "kl_coeff": 0.5, "group_size": 4, "groups_per_iteration": 4}
    config = _config(tiny_dense, LanguagePPOConfig(), **parts)
    expected = _gradient(config)
    ranks = config.copy().learners(num_learners=2)
    group = ranks.build_learner_group(rl_module_spec=ranks.get_multi_rl_module_spec(spaces=SPACES))
    try:
        # Then one group: a rank without a trajectory takes part in every exchange all the same.
        for groups in (_groups(4), _groups(1)):
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
    config = _config(tiny_dense, entropy_coeff=1.0, lr=1e-3, old_log_probs="learner")
    learner = config.build_learner(spaces=SPACES)
    entropy = []
    for _ in range(3):
        # The trajectories agree, so the bonus is the only gradient there is.
        data = GroupTrainingData.from_groups(flat, num_minibatches=1, seed=0)
        entropy.append(learner.update(training_data=data, num_epochs=1)[DEFAULT_MODULE_ID]["entropy"].peek())
    assert entropy[0] < entropy[1] < entropy[2]


def test_the_divergence_from_the_reference_starts_at_zero_and_is_pulled_back(tiny_dense):
    def divergence(kl_coeff):
        config = _config(tiny_dense, kl_coeff=kl_coeff, lr=1e-3, old_log_probs="learner")
        learner = config.build_learner(spaces=SPACES)
        values = []
        for _ in range(6):
            data = GroupTrainingData.from_groups(_groups(1), num_minibatches=1, seed=0)
            results = learner.update(training_data=data, num_epochs=1)
            values.append(results[DEFAULT_MODULE_ID]["kl_to_reference"].peek())
        return values

    free, held = divergence(1e-9), divergence(10.0)
    assert free[0] == pytest.approx(0.0, abs=1e-6) == held[0]
    assert free[-1] > 1e-3
    assert held[-1] < free[-1] / 2


def test_a_penalty_in_the_reward_costs_each_turn_the_log_ratio_of_its_own_tokens(tiny_dense):
    """k1 of a token is log pi - log ref; with coefficient 2 a turn loses twice the sum over its tokens."""
    config = _config(tiny_dense, kl_coeff=2.0, kl_estimator="k1", kl_placement="reward")
    episode = make_episode("g", 0, [(4, 3), (2, 2)], 1.0)
    (trajectory,) = _trajectories(config, [episode])
    turns = episode.get_extra_model_outputs(TURN)
    first = sum(turns[0].action_logp) - trajectory.reference_logp[:3].sum()
    second = sum(turns[1].action_logp) - trajectory.reference_logp[3:].sum()
    np.testing.assert_allclose(trajectory.turn_rewards, [-2 * first, 1.0 - 2 * second], rtol=1e-5)


def test_the_overlong_penalty_falls_on_the_last_turn(tiny_dense):
    """9 of 10 allowed tokens with a buffer of 4: (6 - 9) / 4 = -0.75; 5 tokens lose nothing; 12 lose 1."""
    config = _config(tiny_dense, overlong_tokens=10, overlong_buffer=4)
    episodes = [make_episode("g", i, [(2, 4), (2, n)], 1.0) for i, n in enumerate([5, 1, 8])]
    rewards = [t.turn_rewards.tolist() for t in _trajectories(config, episodes)]
    assert rewards == [[0.0, 0.25], [0.0, 1.0], [0.0, 0.0]]


def _scored(group_id, index, rewards, *, parts=None):
    episode = make_episode(group_id, index, [(3, 2)] * len(rewards), 0.0)
    episode.custom_data[TURN_REWARDS] = np.array(rewards)
    for info, part in zip(episode.infos.data[1:], parts or [], strict=False):
        info["reward_parts"] = part
    return episode


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # Returns 1, 0, 0, 0: mean 0.25.
        ("group_mean", [[0.75], [-0.25], [-0.25], [-0.25]]),
        # Each against the mean of the others: 1 - 0 and 0 - 1/3.
        ("leave_one_out", [[1.0], [-1 / 3], [-1 / 3], [-1 / 3]]),
        # Standard deviation of 1, 0, 0, 0 with K - 1: 0.5.
        ("group_z_score", [[1.5], [-0.5], [-0.5], [-0.5]]),
    ],
)
def test_a_return_is_compared_within_its_own_group(tiny_dense, estimator, expected):
    episodes = [_scored("a", i, [float(i == 0)]) for i in range(4)] + [_scored("b", i, [5.0]) for i in range(4)]
    # Members arrive in any order.
    trajectories = _trajectories(_config(tiny_dense, advantage_estimator=estimator), episodes[::-1])
    a = sorted((t for t in trajectories if t.group_id == "a"), key=lambda t: t.index)
    np.testing.assert_allclose([_per_turn(t) for t in a], expected, atol=1e-5)
    assert all(_per_turn(t) == [0.0] for t in trajectories if t.group_id == "b")


def test_every_turn_is_credited_with_what_followed_it(tiny_dense):
    """Rewards (1, 0) and (0, 1): returns-to-go 1, 1 at turn 0 agree; 0, 1 at turn 1 score -0.707 and 0.707."""
    config = _config(tiny_dense, advantage_estimator="turn_returns", importance_sampling_level="sequence_token")
    first, second = _trajectories(config, [_scored("a", 0, [1.0, 0.0]), _scored("a", 1, [0.0, 1.0])])
    np.testing.assert_allclose(_per_turn(first), [0.0, -0.7071], atol=1e-4)
    np.testing.assert_allclose(_per_turn(second), [0.0, 0.7071], atol=1e-4)


def test_step_groups_compare_turns_that_answered_the_same_observation(tiny_dense):
    """All observations are "start" or "next": turn 0 is compared with turn 0, the later ones with each other."""
    config = _config(
        tiny_dense, advantage_estimator="step_groups", importance_sampling_level="sequence_token",
        step_advantage_weight=1.0,
    )  # fmt: skip
    first, second = _trajectories(config, [_scored("a", 0, [0.0, 1.0]), _scored("a", 1, [0.0, 0.0])])
    # Episode part: returns 1 and 0 -> +-0.7071; step part the same at both turns.
    np.testing.assert_allclose(_per_turn(first), [1.4142, 1.4142], atol=1e-4)
    np.testing.assert_allclose(_per_turn(second), [-1.4142, -1.4142], atol=1e-4)


def test_reward_parts_are_normalised_one_by_one(tiny_dense):
    """A part a hundred times as large counts the same: z-scores +-0.7071 of each, weighted 1 and 0.5."""
    config = _config(
        tiny_dense, advantage_estimator="reward_parts", reward_part_weights={"correct": 1.0, "format": 0.5}
    )
    parts = [[{"correct": 100.0, "format": 0.0}], [{"correct": 0.0, "format": 1.0}]]
    episodes = [_scored("a", i, [0.0], parts=part) for i, part in enumerate(parts)]
    advantages = [_per_turn(t)[0] for t in _trajectories(config, episodes)]
    np.testing.assert_allclose(advantages, [0.3536, -0.3536], atol=1e-4)
    with pytest.raises(EnvError, match="never held 'format'"):
        _trajectories(config, [_scored("a", i, [0.0], parts=[{"correct": 1.0}]) for i in range(2)])


def test_a_lonely_member_of_a_ragged_group_has_no_advantage(tiny_dense):
    trajectories = _trajectories(_config(tiny_dense), [_scored("a", 2, [1.0]), *(make_group("b", 3))])
    assert _per_turn(trajectories[0]) == [0.0]
    assert any(t.advantages.any() for t in trajectories[1:])


def test_generalised_advantages_of_an_untrained_critic_are_the_standardised_returns_to_go(tiny_dense):
    """Values start at 0, so with lambda 1 a token's advantage is what its trajectory still earns: 1 (2 + 2 tokens),
    then 0 (2 tokens) and 0; standardised: mean 4/6... over [1, 1, 1, 1, 0, 0] = 2/3, std sqrt(2)/3."""
    config = _config(tiny_dense, LanguagePPOConfig())
    won, lost = _trajectories(config, [_scored("a", 0, [0.0, 1.0]), _scored("b", 0, [0.0])])
    np.testing.assert_allclose(won.value_targets, [1.0] * 4, atol=1e-6)
    np.testing.assert_allclose(lost.value_targets, [0.0] * 2, atol=1e-6)
    np.testing.assert_allclose(won.advantages, [0.5**0.5] * 4, atol=1e-5)
    np.testing.assert_allclose(lost.advantages, [-(2**0.5)] * 2, atol=1e-5)


def test_a_critic_learns_what_trajectories_return(tiny_dense):
    config = _config(tiny_dense, LanguagePPOConfig(), vf_lr=1e-2, lr=0.0)
    learner = config.build_learner(spaces=SPACES)
    explained = []
    for _ in range(25):
        data = GroupTrainingData.from_groups(_groups(), num_minibatches=1, seed=0)
        results = learner.update(training_data=data, num_epochs=1)[DEFAULT_MODULE_ID]
        explained.append(results["vf_explained_var"].peek())
    assert explained[0] == pytest.approx(0.0, abs=1e-6)
    assert explained[-1] > 0.9


def test_ragged_groups_are_averaged_over_the_trajectories_there_are(tiny_dense):
    whole = _groups(2)
    ragged = [TrajectoryGroup(whole[0].group_id, whole[0].episodes[:3]), whole[1]]
    data = GroupTrainingData.from_groups(ragged, num_minibatches=1, seed=0)
    (plan,) = data.minibatches
    turns = [len(turn.action_token_ids) for g in ragged for e in g.episodes for turn in e.get_extra_model_outputs(TURN)]
    assert (plan.num_trajectories, plan.num_turns, plan.num_sampled_tokens) == (7, len(turns), sum(turns))


def test_the_target_clip_fraction_moves_the_range_and_is_resumed(tiny_dense):
    config = _config(tiny_dense, clip_scaling="target", num_minibatches=2, lr=1e-2, old_log_probs="learner")
    learner, measured = _update(config, num_minibatches=2)
    assert measured["clip_scale"] == 1.0
    # Half of the steps start at ratio 1; after one step at this learning rate everything is outside 3e-4.
    assert measured["clip_fraction"] > 0.15
    assert learner.clip_scale > 1.0
    other = config.build_learner(spaces=SPACES)
    other.set_state(learner.get_state())
    assert other.clip_scale == learner.clip_scale


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

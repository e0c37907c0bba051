"""Bugs and surprises that were found in other implementations, and are not here: the parts that need no model.

Numbers in brackets are the other projects' issues. What other tests hold already is not repeated.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import columns
from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.connectors import GroupAdvantages, group_estimator, token_trajectory
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.ops import policy_loss, reduce_tokens, rollout_correction, trajectory_mean_advantages
from gspo_rllib.packing import TokenTable, pack
from gspo_rllib.types import TURN, TrajectoryGroup, group_episodes
from tests.episodes import make_episode


def _scored(episodes, name):
    """Trajectories with the advantages of an estimator."""
    batch = {DEFAULT_MODULE_ID: {columns.TRAJECTORIES: [token_trajectory(e) for e in episodes]}}
    piece = GroupAdvantages(estimator=group_estimator(name))
    return piece(rl_module=None, batch=batch, episodes=episodes)[DEFAULT_MODULE_ID][columns.TRAJECTORIES]


def _loss(logp, old, advantages, mask=None, **options):
    """Loss, gradient and statistics of float64 rows."""
    logp_BT = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    mask_BT = torch.ones_like(logp_BT).bool() if mask is None else torch.tensor(mask)
    loss, statistics = policy_loss(
        logp_BT, torch.tensor(old).double(), torch.tensor(advantages).double(), mask_BT, **options
    )
    return loss.item(), torch.autograd.grad(loss, logp_BT)[0], statistics


# --- Masks and padding ------------------------------------------------------------------------------------------------


def test_a_mean_advantage_does_not_move_with_what_padding_holds():
    """(AReaL 1346) 2 and 4 over two own tokens are 3, whatever 1000 stands behind them."""
    advantage = torch.tensor([[2.0, 4.0, 1000.0, float("nan")]])
    got = trajectory_mean_advantages(advantage, torch.tensor([[True, True, False, False]]))
    assert got.tolist() == [[3.0, 3.0, 0.0, 0.0]]


@pytest.mark.parametrize("filling", [1.0, 0.0, float("-inf"), 1e30])
def test_a_masked_token_has_no_probability_not_even_1_or_0(filling):
    """(Flash-RL 19: masked log-probs were set to 1, so that each gave a ratio e^-1.)

    Two sampled tokens with log-ratios 0.2 and 0: s = e^0.1. Engine 0.4 below on one of them: weight e^0.2.
    """
    mask = [[True, False, True, False]]
    old = [[-1.0, filling, -1.0, filling]]
    _, gradient, statistics = _loss([[-0.8, filling, -1.0, 0.0]], old, [1.0], mask, surrogate="policy_gradient")
    assert statistics["ratio_B"].item() == pytest.approx(math.exp(0.1))
    assert gradient[0].tolist() == pytest.approx([-math.exp(0.1) / 2, 0.0, -math.exp(0.1) / 2, 0.0])
    weights = rollout_correction(
        torch.tensor(old), torch.tensor([[-1.4, 0.0, -1.0, filling]]), torch.tensor(mask),
        mode="truncate", level="sequence_mean", low=0.0, high=2.0,
    )  # fmt: skip
    assert weights[0].tolist() == pytest.approx([math.exp(0.2), 0.0, math.exp(0.2), 0.0])


def test_as_many_trajectories_as_tokens_do_not_swap_the_axes():
    """(ms-swift 6014: a dimension added to the wrong term.) In a square batch a value per row must stay one per row."""
    _, gradient, _ = _loss([[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [1.0, -1.0])
    assert gradient.tolist() == [[-0.25, -0.25], [0.25, 0.25]]
    wide = torch.tensor([0.5, 0.05], dtype=torch.float64)
    _, gradient, statistics = _loss(
        [[0.2, 0.2], [0.2, 0.2]],
        [[0.0, 0.0], [0.0, 0.0]],
        [1.0, 1.0],
        clip_high=wide,
        importance_sampling_level="token",
    )
    assert statistics["clipped_high_B"].tolist() == [0.0, 1.0]
    assert (gradient != 0).tolist() == [[True, True], [False, False]]


# --- What is averaged over what ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["trajectory_mean", "turn_mean", "token_mean"])
def test_the_parts_of_a_mean_weigh_one_over_all_ranks_and_micro_batches(reduction):
    """(verl 5798: too small by the number of ranks; TRL 6369: counts of a part instead of the whole.)

    Ragged groups of 2, 3 and 4 on two ranks, rows of at most two trajectories: a mean of ones is one, however it is
    cut up. 9 trajectories, 2 turns each, 1 + index and 2 sampled tokens.
    """
    groups = [
        TrajectoryGroup(str(size), [make_episode(str(size), i, [(4, 1 + i), (2, 2)], 1.0) for i in range(size)])
        for size in (2, 3, 4)
    ]
    data = GroupTrainingData.from_groups(groups, num_minibatches=1, seed=0)
    total, pieces = 0.0, 0
    for shard, _ in data.shard(2):
        (plan,) = shard.minibatches
        # 3, 4; 3, 4, 5; 3, 4, 5, 6 sampled tokens.
        assert (plan.num_trajectories, plan.num_turns, plan.num_sampled_tokens) == (9, 18, 37)
        trajectories = [token_trajectory(episode) for episode in shard.episodes]
        for start in range(0, len(trajectories), 2):
            row = pack(trajectories[start : start + 2])
            table = TokenTable(row)
            total += reduce_tokens(
                torch.ones(table.mask_BT.shape), table.mask_BT, reduction=reduction,
                turn_ids_BT=table(row[columns.TURN_INDEX]), denominator=plan.denominator(reduction),
            ).item()  # fmt: skip
            pieces += 1
    assert pieces >= 5
    assert total == pytest.approx(1.0)


def test_a_token_sum_under_a_sequence_ratio_counts_each_length_once():
    """(TRL 6654: LUSPO scaled by L^2 / T.) Lengths 2 and 8, advantage 1, on policy: -(2 + 8) / 2 and -1/2 per token."""
    mask = [[True] * 2 + [False] * 6, [True] * 8]
    zeros = [[0.0] * 8] * 2
    loss, gradient, _ = _loss(zeros, zeros, [1.0, 1.0], mask, reduction="token_sum")
    assert loss == pytest.approx(-5.0)
    torch.testing.assert_close(gradient, -0.5 * torch.tensor(mask).double())


# --- The scope of a ratio ---------------------------------------------------------------------------------------------


def test_a_token_that_a_correction_masks_still_counts_in_the_ratio_and_its_length():
    """(AReaL rejects before the ratio, so the token left |y| and the mean as well.)

    Log-ratios 0.2 and 0, the second one masked: s = e^0.1 as before, not e^0.2. The gradient of the one objective that
    is left, s / 2, flows to both tokens through s: s / 4 each.
    """
    weights = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    _, gradient, statistics = _loss([[0.2, 0.0]], [[0.0, 0.0]], [1.0], weights_BT=weights, surrogate="policy_gradient")
    assert statistics["ratio_B"].item() == pytest.approx(math.exp(0.1))
    assert gradient[0].tolist() == pytest.approx([-math.exp(0.1) / 4] * 2)


def test_long_trajectories_are_not_masked_more_often_for_the_same_noise():
    """(TRL and NeMo multiply over tokens.) 0.1 nats of noise per token, weights up to 3 = e^1.0986 kept.

    The log of a product over 16 tokens has a deviation of 0.4, and 1.0986 is 2.7 of it away: 0.3 % are masked. Over
    1024 tokens it is 3.2, and 0.34 of it away: 37 %. A mean has 0.025 and 0.003: never.
    """
    generator = torch.Generator().manual_seed(0)

    def masked(level, tokens):
        noise = 0.1 * torch.randn(2000, tokens, generator=generator)
        weights = rollout_correction(
            noise, torch.zeros_like(noise), torch.ones_like(noise).bool(), mode="mask", level=level, low=0.0, high=3.0
        )
        return (weights[:, 0] == 0).float().mean().item()

    assert masked("sequence_mean", 16) == masked("sequence_mean", 1024) == 0.0
    assert masked("sequence_product", 16) == pytest.approx(0.003, abs=0.003)
    assert masked("sequence_product", 1024) == pytest.approx(0.366, abs=0.03)


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    """(TorchRL's gives them none: -1, 0, 0.) Ratios 1, 1.5 and 0.5 in 0.8 … 1.2, advantage 1: -1, -1.2, -0.8."""
    logp = [[0.0, math.log(1.5), math.log(0.5)]]
    _, gradient, _ = _loss(
        logp, [[0.0, 0.0, 0.0]], [1.0], surrogate="cispo", importance_sampling_level="token", reduction="token_sum",
        clip_low=0.2, clip_high=0.2,
    )  # fmt: skip
    assert gradient[0].tolist() == pytest.approx([-1.0, -1.2, -0.8])


# --- Credit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["group_z_score", "group_mean", "leave_one_out", "turn_returns", "step_groups"])
def test_a_reward_that_comes_last_credits_every_turn_with_its_sign(estimator):
    """(AgileRL: 0 for all turns but the last; TorchRL: -0.41, -0.41, 2.04 for a winner.) Three turns, one winner."""
    episodes = [make_episode("g", i, [(4, 2)] * 3, float(i == 0)) for i in range(4)]
    won, *lost = _scored(episodes, estimator)
    assert won.advantages.min() > 0.0
    assert max(trajectory.advantages.max() for trajectory in lost) < 0.0
    if estimator != "step_groups":
        # Undiscounted, and a turn's rivals all fared alike: no turn is worth more than another. Turns that answer the
        # same observation, here the second and third, have twice as many rivals among step groups.
        np.testing.assert_allclose(won.advantages, won.advantages[0])


def test_a_last_turn_without_a_token_takes_no_credit_from_the_others():
    """(SkyRL 1492: the advantage of the last step, masked, was copied to all.) Returns 1 and 0: +-0.7071."""
    won = make_episode("g", 0, [(4, 3), (2, 2), (2, 0)], 1.0)
    lost = make_episode("g", 1, [(4, 1)], 0.0)
    first, second = _scored([won, lost], "group_z_score")
    np.testing.assert_allclose(first.advantages, [0.7071] * 5, atol=1e-4)
    np.testing.assert_allclose(second.advantages, [-0.7071], atol=1e-4)


def test_a_turn_that_was_cut_off_is_trained_on():
    """(OpenRLHF 1327 dropped turns that ran out of tokens.)"""
    episode = make_episode("g", 0, [(4, 3), (2, 5)], 1.0)
    turns = episode.get_extra_model_outputs(TURN)
    episode.extra_model_outputs[TURN].data[0] = dataclasses.replace(turns[0], finish_reason="length")
    assert next(iter(episode.get_extra_model_outputs(TURN))).finish_reason == "length"
    trajectory = token_trajectory(episode, advantage=1.0)
    assert trajectory.turn_index.tolist() == [0] * 3 + [1] * 5
    assert trajectory.segments[0][trajectory.loss_masks[0]].tolist() == [
        *turns[0].action_token_ids.tolist(),
        *turns[1].action_token_ids.tolist(),
    ]


def test_a_group_that_agrees_is_found_whatever_it_agrees_on():
    """(OpenRLHF 1270: looked for a mean of 0 or 1, so rewards in between were missed.)"""
    selection = GSPOConfig().training(zero_variance_groups="drop").group_selection

    def group(*rewards):
        return TrajectoryGroup("g", [make_episode("g", i, [(3, 2)], reward) for i, reward in enumerate(rewards)])

    for reward in (0.0, 0.5, 1.0, -3.7):
        assert selection.select([group(reward, reward, reward)])[0] == []
    # A mean of 1/2, and of 1, of rewards that differ.
    assert len(selection.select([group(0.25, 0.75)])[0]) == len(selection.select([group(0.0, 2.0)])[0]) == 1


def test_groups_are_filtered_by_their_outcome_and_not_by_what_shaping_adds():
    """(verl-recipe 125: a filter on shaped rewards collapsed the policy in 40 steps.)

    Both members won; one gets 0.9, as shaping took 0.1 off. By return there is something to learn, by success nothing.
    """

    def kept(metric):
        episodes = [make_episode("g", i, [(3, 2)], reward) for i, reward in enumerate([1.0, 0.9])]
        for episode in episodes:
            episode.infos.data[-1]["success"] = True
        config = GSPOConfig().training(zero_variance_groups="drop", zero_variance_metric=metric)
        return len(config.group_selection.select(group_episodes(episodes))[0])

    assert kept("return") == 1
    assert kept("success") == 0


# --- Defaults ---------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers_and_nothing_is_added():
    """(AgileRL keeps 0.2, a token mean, no standard deviation, two masks and T = 0.9; TorchRL an entropy bonus of 0.01;
    TRL a product correction; SkyRL and OpenRLHF a KL penalty.)"""
    config = GSPOConfig()
    assert (config.clip_low, config.clip_high) == (3e-4, 4e-4)
    assert (config.importance_sampling_level, config.surrogate, config.reduction, config.advantage_estimator) == (
        "sequence", "clip", "trajectory_mean", "group_z_score",
    )  # fmt: skip
    assert (config.num_minibatches, config.num_epochs, config.temperature) == (4, 1, 1.0)
    assert config.kl_coeff == config.entropy_coeff == 0.0
    assert (config.rollout_correction, config.clip_scaling, config.advantage_aggregation) == ("none", "none", "none")
    assert (config.zero_variance_groups, config.truncated_trajectories, config.overlong_tokens) == (
        "keep",
        "keep",
        None,
    )

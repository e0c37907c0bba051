"""Bugs and surprises that were found in other implementations, and are not here: the learner with a model in it.

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
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.driver.selection import GroupSelection
from gspo_rllib.envs import UnicodeText
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.ops import policy_loss
from gspo_rllib.packing import TokenTable, pack
from gspo_rllib.types import TRUNCATED_BY, TURN, TokenTrajectory, group_episodes
from tests.episodes import make_episode, make_group

SPACES = {DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))}
LOG_2 = math.log(2.0)


def _config(path, *, model=None, **training):
    return (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 1})
        .rl_module(model_config={"path": str(path), **(model or {})})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .learners(num_learners=0)
        .training(**{"group_size": 2, "groups_per_iteration": 1, "num_minibatches": 1, "grad_clip": None, **training})
        .debugging(seed=0)
    )


def _learner(path, **settings):
    return _config(path, **settings).build_learner(spaces=SPACES)


def _module(learner):
    return learner.module[DEFAULT_MODULE_ID].unwrapped()


@torch.no_grad()
def _logp(learner, *trajectories):
    return _module(learner)._forward_train(pack(trajectories))[columns.LOGP]


def _sampled_by_an_engine_off_by(learner, episode, offsets):
    """Makes the engine's log-probs the learner's plus ``offsets``, one per sampled token."""
    logp = _logp(learner, token_trajectory(episode, advantage=1.0)).numpy() + np.asarray(offsets, np.float32)
    for turn in episode.get_extra_model_outputs(TURN):
        count = len(turn.action_token_ids)
        turn.action_logp[:], logp = logp[:count], logp[count:]
    return episode


def _update(learner, groups, *, num_minibatches=1):
    data = GroupTrainingData.from_groups(groups, num_minibatches=num_minibatches, seed=0)
    results = learner.update(training_data=data, num_epochs=1)[DEFAULT_MODULE_ID]
    return {name: value.peek() for name, value in results.items() if hasattr(value, "peek")} | {
        f"{name}/{edge}": value.peek()
        for name, values in results.items()
        if isinstance(values, dict)
        for edge, value in values.items()
    }


def _gradient(learner):
    return torch.cat([p.grad.flatten() for p in _module(learner).parameters()])


# --- Masks and padding ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", [True, False])
def test_an_end_of_turn_that_is_also_the_padding_token_is_scored(packing, tiny_dense):
    """(TorchRL 3580: its log-prob became 0 where both have one id.) Scored beside longer and shorter neighbours."""
    learner = _learner(tiny_dense, model={"packing": packing})
    tokenizer = load_tokenizer(str(tiny_dense))
    episodes = [make_episode("g", i, [(5, 3), (2, n)], 1.0) for i, n in enumerate([4, 1, 6])]
    for episode in episodes:
        for turn in episode.get_extra_model_outputs(TURN):
            turn.action_token_ids[-1] = tokenizer.eos_token_id if packing else tokenizer.pad_token_id
    trajectories = [token_trajectory(episode, advantage=1.0) for episode in episodes]
    together = _logp(learner, *trajectories)
    alone = torch.cat([_logp(learner, trajectory) for trajectory in trajectories])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert float(together.max()) < 0.0


# --- What is averaged over what ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["trajectory_mean", "token_mean"])
def test_a_truncated_trajectory_that_is_masked_leaves_numerator_and_denominator(reduction, tiny_dense):
    """(TRL 6369, 6439: it left the numerator only, so the others shrank.) As if it had never been sampled."""

    def groups(*extra):
        for episode in extra:
            episode.custom_data[TRUNCATED_BY] = "turns"
        return group_episodes([*make_group("g0", 4), *extra, *make_group("g1", 3)])

    def gradient(selected):
        learner = _learner(tiny_dense, reduction=reduction, old_log_probs="learner")
        _update(learner, selected)
        return _gradient(learner)

    long = make_episode("g0", 4, [(4, 30)], 5.0)
    masked, _ = GroupSelection(truncated_trajectories="mask").select(groups(long))
    kept, _ = GroupSelection(truncated_trajectories="keep").select(groups(long))
    expected = gradient(groups())
    assert float(expected.abs().max()) > 1e-4
    torch.testing.assert_close(gradient(masked), expected, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(gradient(kept), expected, rtol=1e-2, atol=1e-5)


def test_a_clip_fraction_under_a_sequence_ratio_counts_trajectories_not_tokens(tiny_dense):
    """(verl weighs it by tokens; TRL 6379: it depended on the layout.)

    One of two trajectories is 0.1 nats a token above its engine, so s = 1.105, with a positive advantage: clipped. It
    has 1 token and the other has 9: half of the trajectories, a tenth of the tokens.
    """
    for max_tokens in (16384, 8):
        learner = _learner(tiny_dense, old_log_probs="engine", max_tokens_per_micro_batch=max_tokens)
        won = _sampled_by_an_engine_off_by(learner, make_episode("g", 0, [(3, 1)], 1.0), [-0.1])
        lost = _sampled_by_an_engine_off_by(learner, make_episode("g", 1, [(3, 9)], 0.0), [0.0] * 9)
        measured = _update(learner, group_episodes([won, lost]))
        assert measured["clip_fraction"] == measured["clip_fraction_high"] == 0.5
        assert measured["clip_fraction_low"] == 0.0
        assert measured["ratio_mean"] == pytest.approx((math.exp(0.1) + 1) / 2, abs=1e-4)


@pytest.mark.parametrize(
    "layout", [{}, {"model": {"packing": False}}, {"max_tokens_per_micro_batch": 16}], ids=["packed", "padded", "split"]
)
def test_averages_per_token_do_not_shrink_with_padding(layout, tiny_dense):
    """(TorchRL averages divergence and clip fraction over padding too.) Lengths 1 and 9.

    Every token half as likely as its engine said: k3 of q/p = 1/2 is 1/2 - 1 + ln 2 = 0.1931 nats.
    """
    plain, learner = _learner(tiny_dense), _learner(tiny_dense, old_log_probs="engine", **layout)
    episodes = [make_episode("g", 0, [(12, 1)], 1.0), make_episode("g", 1, [(3, 9)], 0.0)]
    for episode in episodes:
        tokens = sum(len(turn.action_token_ids) for turn in episode.get_extra_model_outputs(TURN))
        _sampled_by_an_engine_off_by(learner, episode, [LOG_2] * tokens)
    measured = _update(learner, group_episodes(episodes))
    assert measured["kl_to_behavior"] == pytest.approx(LOG_2 - 0.5, abs=1e-4)
    # The uniform distribution over 320 tokens has 5.77 nats; what is measured must be the mean over the ten tokens.
    with torch.no_grad():
        entropy = [
            float(_module(plain)._forward_train(pack([token_trajectory(e)]))[columns.ENTROPY].sum()) for e in episodes
        ]
    assert 0.0 < measured["entropy"] < math.log(320)
    assert measured["entropy"] == pytest.approx(sum(entropy) / 10, rel=1e-4)


# --- The scope of a ratio ---------------------------------------------------------------------------------------------


def _two_contexts():
    """A trajectory whose history was edited: 2 sampled tokens in one context, 3 in another."""
    ids = np.arange(20, 40, dtype=np.int32)
    return TokenTrajectory(
        group_id="g",
        index=0,
        segments=(ids[:6], ids[6:16]),
        loss_masks=(np.arange(6) >= 4, np.arange(10) >= 7),
        turn_index=np.array([0, 0, 1, 1, 1], np.int32),
        behavior_logp=np.zeros(5, np.float32),
        behavior_version=0,
        turn_rewards=np.zeros(2),
        advantages=np.ones(5, np.float32),
    )


def test_a_trajectory_in_several_contexts_has_one_ratio(tiny_dense):
    """(SkyRL 1278 step by step, AReaL one by one, ART's histories, forks elsewhere: a ratio per row.)

    Log-ratios 0.3, 0.1 in one context and -0.1, -0.3, 0.5 in the other have the mean 0.1. A ratio per context would be
    e^0.2 and e^0.0333, and the first context's tokens would weigh 1/2 instead of 1/5.
    """
    learner = _learner(tiny_dense)
    edited, neighbour = _two_contexts(), token_trajectory(make_episode("g", 1, [(3, 2)], 0.0), advantage=-1.0)
    row = pack([edited, neighbour])
    table, logp = TokenTable(row), _logp(learner, edited, neighbour).requires_grad_()
    old = logp.detach() - torch.tensor([0.3, 0.1, -0.1, -0.3, 0.5, 0.0, 0.0])
    loss, statistics = policy_loss(
        table(logp), table(old), table(row[columns.ADVANTAGES]), table.mask_BT, surrogate="policy_gradient"
    )
    assert statistics["ratio_B"].tolist() == pytest.approx([math.exp(0.1), 1.0])
    gradient = torch.autograd.grad(loss, logp)[0].tolist()
    assert gradient == pytest.approx([-math.exp(0.1) / 5 / 2] * 5 + [1 / 2 / 2] * 2)


def test_one_context_of_a_trajectory_does_not_see_another(tiny_dense):
    learner, edited = _learner(tiny_dense), _two_contexts()
    second = dataclasses.replace(
        edited, segments=edited.segments[1:], loss_masks=edited.loss_masks[1:], behavior_logp=np.zeros(3, np.float32)
    )
    torch.testing.assert_close(_logp(learner, edited)[2:], _logp(learner, second), atol=1e-6, rtol=1e-5)


# --- Which log-probs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0, 1])
def test_the_first_token_of_a_turn_is_scored_like_any_other(turn, tiny_dense):
    """(TorchRL stores 0 for the first one it generates.) Over the whole vocabulary its probabilities sum to 1."""
    learner = _learner(tiny_dense)
    vocabulary = _module(learner).model.config.vocab_size
    lengths = [(5, 1)] if turn == 0 else [(5, 3), (4, 1)]
    sampled = token_trajectory(make_episode("g", 0, lengths, 1.0))
    ids = sampled.segments[0]
    first = [dataclasses.replace(sampled, segments=(np.append(ids[:-1], i),)) for i in range(vocabulary)]
    logp = _logp(learner, *first).view(vocabulary, -1)[:, -1]
    assert logp.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    assert logp.std().item() > 0.1


def test_recomputing_old_log_probs_does_not_switch_the_clip_off(tiny_dense):
    """(SkyRL 1315: recomputed before every step, the ratio is always 1.) Here only before the first."""
    learner = _learner(tiny_dense, old_log_probs="learner", lr=1e-2, groups_per_iteration=4, num_minibatches=4)
    groups = group_episodes([episode for i in range(4) for episode in make_group(f"g{i}", 4)])
    measured = _update(learner, groups, num_minibatches=4)
    assert measured["num_optimizer_steps"] == 4
    assert measured["abs_log_ratio_mean"] > 4e-4
    # The first quarter is on policy; most of the others are outside 3e-4, half of them on the side that clips.
    assert 0.1 < measured["clip_fraction"] <= 0.75


@pytest.mark.parametrize("old_log_probs", ["engine", "learner"])
def test_the_noise_floor_is_measured_against_the_engine_whatever_the_ratio_uses(old_log_probs, tiny_dense):
    """(UniRL 310, verl 7356: nobody could tell noise from learning.)

    Four tokens each: all 0.01 nats off give |log s| = 0.01; +0.01 and -0.01 in turn cancel. Mean 0.005.
    """
    learner = _learner(tiny_dense, old_log_probs=old_log_probs)
    even = _sampled_by_an_engine_off_by(learner, make_episode("g", 0, [(3, 4)], 1.0), [0.01] * 4)
    odd = _sampled_by_an_engine_off_by(learner, make_episode("g", 1, [(5, 2), (3, 2)], 0.0), [0.01, -0.01] * 2)
    measured = _update(learner, group_episodes([even, odd]))
    assert measured["sequence_gap_mean"] == pytest.approx(0.005, abs=1e-5)
    assert measured["sequence_gap_by_length/4"] == pytest.approx(0.005, abs=1e-5)
    assert measured["logp_gap_max"] == pytest.approx(0.01, abs=1e-5)
    expected = 1.0 if old_log_probs == "learner" else (math.exp(-0.01) + 1) / 2
    assert measured["ratio_mean"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("training", "off_by", "recomputed"),
    [
        ({}, 0.0, 0.0),
        ({}, 0.01, 1.0),  # nats per token, against a clip range of 3e-4
        ({}, math.nan, 1.0),
        ({"importance_sampling_level": "token", "clip_low": 0.2, "clip_high": 0.2}, 0.01, 0.0),
        ({"importance_sampling_level": "token", "clip_low": 0.2, "clip_high": 0.2}, 0.03, 1.0),
    ],
)
def test_an_engine_is_left_out_of_the_ratio_once_its_measured_noise_is_near_the_clip_range(
    training, off_by, recomputed, tiny_dense
):
    learner = _learner(tiny_dense, **training)
    measured = []
    for _ in range(2):
        episodes = [make_episode("g", i, [(3, 4)], float(i)) for i in range(2)]
        groups = group_episodes([_sampled_by_an_engine_off_by(learner, e, [off_by] * 4) for e in episodes])
        measured.append(_update(learner, groups)["old_log_probs_recomputed"])
    assert measured == [0.0, recomputed]
    restored = _learner(tiny_dense, **training)
    restored.set_state(learner.get_state())
    assert restored.recomputes_old_log_probs == bool(recomputed)

"""Advantages, value estimates, length penalties and clip scaling: numbers derived by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gspo_rllib.ops import (
    gae,
    group_mean_baseline,
    group_z_score,
    leave_one_out,
    length_clip_scale,
    returns_to_go,
    reward_parts_z_score,
    soft_overlong_penalty,
    step_groups,
    trajectory_mean_advantages,
    turn_returns,
)

NAN = float("nan")
ROOT = math.sqrt(0.5)
"""z-score of 1 against 0 with the K-1 deviation: 0.5 / 0.70711."""

# Each takes a [K] tensor of returns; the turn-level ones see a single turn.
ESTIMATORS: dict[str, Any] = {
    "group_z_score": group_z_score,
    "group_mean_baseline": group_mean_baseline,
    "leave_one_out": leave_one_out,
    "reward_parts_z_score": lambda r: reward_parts_z_score(r[:, None]),
    "turn_returns": lambda r: turn_returns(r[:, None], torch.ones(len(r), 1).bool(), gamma=1.0)[:, 0],
    "step_groups": lambda r: step_groups(
        r[:, None], torch.ones(len(r), 1).bool(), torch.zeros(len(r), 1).long(), gamma=1.0, step_weight=1.0
    )[:, 0],
}


def _t(*rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def _near(tensor: torch.Tensor, expected: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(tensor, torch.tensor(expected, dtype=tensor.dtype), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_whose_returns_agree_has_no_advantage_whatever_the_rounding(name, dtype):
    """The mean of equal floats need not be that float: 0.1 + 0.2, summed 3 or 7 times and divided."""
    for size in (2, 3, 7, 8):
        assert ESTIMATORS[name](torch.full((size,), 0.1 + 0.2, dtype=dtype)).tolist() == [0.0] * size


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_trajectory_and_returns_that_are_no_numbers_are_refused(name):
    with pytest.raises(ValueError, match="got 1, needs at least 2"):
        ESTIMATORS[name](_t(1.0))
    for bad in (NAN, float("inf")):
        with pytest.raises(ValueError, match="finite"):
            ESTIMATORS[name](_t(1.0, bad))


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(deadline=None, max_examples=20)
@given(values=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0]), min_size=2, max_size=6))
def test_advantages_sum_to_zero_and_follow_the_order_of_returns(name, values):
    advantage = ESTIMATORS[name](_t(*values)).tolist()
    assert sum(advantage) == pytest.approx(0.0, abs=1e-9)
    for a, b in itertools.pairwise(values):
        left, right = advantage[values.index(a)], advantage[values.index(b)]
        assert (left < right) == (a < b)


def test_the_three_group_baselines_by_hand():
    """Returns 4, 1, 1: mean 2, deviation sqrt((4 + 1 + 1) / 2) = sqrt 3; the others' means are 1, 2.5, 2.5."""
    returns = _t(4.0, 1.0, 1.0)
    _near(group_z_score(returns), [2 / math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3)])
    _near(group_mean_baseline(returns), [2.0, -1.0, -1.0])
    _near(leave_one_out(returns), [3.0, -1.5, -1.5])


def test_each_reward_part_is_scored_by_itself_before_they_are_weighed():
    """Part 0 is 1 against 0, part 1 is 100 against 300, part 2 says nothing: +-0.70711 each, then weighed 1, 0.5, 9."""
    parts = _t([1.0, 100.0, 5.0], [0.0, 300.0, 5.0])
    _near(reward_parts_z_score(parts), [0.0, 0.0])
    _near(reward_parts_z_score(parts, torch.tensor([1.0, 0.5, 9.0])), [0.5 * ROOT, -0.5 * ROOT])
    with pytest.raises(ValueError, match="finite"):
        reward_parts_z_score(parts, torch.tensor([1.0, NAN, 1.0]))


def test_returns_to_go_by_hand():
    """gamma 1/2: 4; 2 + 4/2 = 4; 1 + 4/2 = 3. What is not a turn has no reward, NaN or not."""
    mask = torch.tensor([[True, True, True], [True, True, False]])
    _near(returns_to_go(_t([1.0, 2.0, 4.0], [1.0, 2.0, NAN]), mask, gamma=0.5), [[3.0, 4.0, 4.0], [2.0, 2.0, 0.0]])
    with pytest.raises(ValueError, match="0 to 1"):
        returns_to_go(_t([1.0]), mask[:1, :1], gamma=1.5)


def test_a_winner_gets_credit_on_every_turn_and_nobody_is_compared_only_with_those_still_playing():
    """One reward at the end, gamma 1. Returns-to-go: winner 1, 1, 1; loser 0, 0; loser 0.

    At every index the winner has 1 and the other two 0, whether they still play or not: deviation sqrt(1/3),
    winner (2/3) / 0.57735 = 1.15470, the others half of it below.
    """
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    rewards = _t([0.0, 0.0, 1.0], [0.0, 0.0, NAN], [0.0, NAN, NAN])
    high, low = 1.154699, -0.577349
    _near(turn_returns(rewards, mask, gamma=1.0), [[high, high, high], [low, low, 0.0], [low, 0.0, 0.0]])


def test_a_discount_fades_credit_before_but_never_after_the_reward():
    """Returns-to-go 0.25, 0.5, 1, 0 against four zeros: the sign follows, the last turn is nobody's."""
    mask = torch.ones(2, 4, dtype=torch.bool)
    advantage = turn_returns(_t([0.0, 0.0, 1.0, 0.0], [0.0] * 4), mask, gamma=0.5)
    _near(advantage[0], [ROOT, ROOT, ROOT, 0.0])
    _near(advantage[1], [-ROOT, -ROOT, -ROOT, 0.0])


def test_step_groups_compare_turns_that_started_from_one_state():
    """Two trajectories, rewards 0, 1 and 0, 0, gamma 1/2, both from state 7; then one goes to 8, the other back to 7.

    Trajectory part: 1 against 0: +-0.70711. Returns-to-go: 0.5, 1 and 0, 0. State 7 holds 0.5, 0, 0: mean 1/6,
    deviation sqrt((1/9 + 2/36) / 2) = 0.288675: 1.154701, -0.57735, -0.57735. State 8 holds one turn: 0. Weight 2.
    """
    rewards, mask = _t([0.0, 1.0], [0.0, 0.0]), torch.ones(2, 2, dtype=torch.bool)
    states = torch.tensor([[7, 8], [7, 7]])
    got = step_groups(rewards, mask, states, gamma=0.5, step_weight=2.0)
    _near(got, [[ROOT + 2.309401, ROOT], [-ROOT - 1.154701, -ROOT - 1.154701]], 2e-5)
    _near(step_groups(rewards, mask, states, gamma=0.5, step_weight=0.0), [[ROOT, ROOT], [-ROOT, -ROOT]])


def test_step_groups_ignore_what_is_not_a_turn():
    mask = torch.tensor([[True, True], [True, False]])
    rewards, states = _t([0.0, 1.0], [0.0, NAN]), torch.tensor([[3, 4], [3, 4]])
    # The second turn's state 4 is met once: its twin is padding.
    _near(step_groups(rewards, mask, states, gamma=1.0, step_weight=1.0), [[2 * ROOT, ROOT], [-2 * ROOT, 0.0]])


def test_a_mean_advantage_is_over_a_trajectorys_own_tokens():
    mask = torch.tensor([[True, False, True], [False, False, False]])
    _near(trajectory_mean_advantages(_t([1.0, NAN, 4.0], [NAN] * 3), mask), [[2.5, 0.0, 2.5], [0.0] * 3])


def test_gae_by_hand():
    """Rewards 1, 0, 2, values 0.5, 1, 1.5, gamma 1/2, lambda 1/2.

    Errors: 1 + 0.5 x 1 - 0.5 = 1; 0 + 0.5 x 1.5 - 1 = -0.25; 2 + 0 - 1.5 = 0.5.
    Backwards with 1/4: 0.5; -0.25 + 0.125 = -0.125; 1 - 0.03125 = 0.96875. Target: advantage + value.
    """
    mask = torch.tensor([[True, True, True, False, False]])
    rewards, values = _t([1.0, 0.0, 2.0, NAN, NAN]), _t([0.5, 1.0, 1.5, NAN, NAN])
    advantage, target = gae(rewards, values.requires_grad_(), mask, gamma=0.5, lambda_=0.5)
    _near(advantage, [[0.96875, -0.125, 0.5, 0.0, 0.0]], 1e-12)
    _near(target, [[1.46875, 0.875, 2.0, 0.0, 0.0]], 1e-12)
    assert not advantage.requires_grad and not target.requires_grad


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=9), st.floats(0, 1))
def test_gae_with_lambda_1_is_the_return_minus_the_value_and_with_lambda_0_one_step(tokens, gamma):
    rewards, values = (torch.tensor([x], dtype=torch.float64) for x in zip(*tokens, strict=True))
    mask = torch.ones_like(rewards).bool()
    target = gae(rewards, values, mask, gamma=gamma, lambda_=1.0)[1]
    torch.testing.assert_close(target, returns_to_go(rewards, mask, gamma=gamma))
    one_step = gae(rewards, values, mask, gamma=gamma, lambda_=0.0)[1]
    torch.testing.assert_close(one_step[:, :-1], rewards[:, :-1] + gamma * values[:, 1:])
    assert one_step[0, -1].item() == pytest.approx(tokens[-1][0], abs=1e-12)


def test_gae_refuses_what_is_no_number_or_no_discount():
    ones, mask = torch.ones(1, 2), torch.tensor([[True, True]])
    with pytest.raises(ValueError, match="must be finite"):
        gae(torch.tensor([[1.0, NAN]]), ones, mask, gamma=1.0, lambda_=1.0)
    with pytest.raises(ValueError, match=r"lambda_=1.1; allowed: 0 to 1"):
        gae(ones, ones, mask, gamma=1.0, lambda_=1.1)


def test_the_overlong_penalty_falls_in_a_straight_line():
    """Limit 100, buffer 20: (80 - n) / 20 between 80 and 100."""
    lengths = torch.tensor([0, 80, 81, 85, 99, 100, 101, 10_000])
    expected = [0.0, 0.0, -0.05, -0.25, -0.95, -1.0, -1.0, -1.0]
    _near(soft_overlong_penalty(lengths, max_tokens=100, buffer=20), expected, 1e-6)
    for buffer in (0, 101):
        with pytest.raises(ValueError, match="0 < buffer <= max_tokens"):
            soft_overlong_penalty(lengths, max_tokens=100, buffer=buffer)


def test_a_clip_range_shrinks_like_the_noise_of_a_mean():
    """The mean of 4 n equally noisy tokens is half as noisy as that of n."""
    scale = length_clip_scale(torch.tensor([0, 1, 50, 200, 800]), reference_length=200)
    _near(scale, [math.sqrt(200), math.sqrt(200), 2.0, 1.0, 0.5], 1e-5)
    with pytest.raises(ValueError, match="tokens > 0"):
        length_clip_scale(torch.tensor([1]), reference_length=0)

"""Advantages within a group: numbers derived by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gspo_rllib.ops import (
    group_mean_baseline,
    group_z_score,
    leave_one_out,
    returns_to_go,
    reward_parts_z_score,
    step_groups,
    trajectory_mean_advantages,
    turn_returns,
)
from tests.ops.tensors import assert_near, float64

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


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_group_whose_returns_agree_has_no_advantage_whatever_the_rounding(name, dtype):
    """The mean of equal floats need not be that float: 0.1 + 0.2, summed 3 or 7 times and divided."""
    for size in (2, 3, 7, 8):
        assert ESTIMATORS[name](torch.full((size,), 0.1 + 0.2, dtype=dtype)).tolist() == [0.0] * size


@pytest.mark.parametrize("name", ESTIMATORS)
def test_one_trajectory_and_returns_that_are_no_numbers_are_refused(name):
    with pytest.raises(ValueError, match="got 1, needs at least 2"):
        ESTIMATORS[name](float64(1.0))
    for bad in (NAN, float("inf")):
        with pytest.raises(ValueError, match="finite"):
            ESTIMATORS[name](float64(1.0, bad))


@pytest.mark.parametrize("name", ESTIMATORS)
@settings(max_examples=20)
@given(values=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0]), min_size=2, max_size=6))
def test_advantages_sum_to_zero_and_follow_the_order_of_returns(name, values):
    advantage = ESTIMATORS[name](float64(*values)).tolist()
    assert sum(advantage) == pytest.approx(0.0, abs=1e-9)
    for a, b in itertools.pairwise(values):
        left, right = advantage[values.index(a)], advantage[values.index(b)]
        assert (left < right) == (a < b)


def test_the_three_group_baselines_by_hand():
    """Returns 4, 1, 1: mean 2, deviation sqrt((4 + 1 + 1) / 2) = sqrt 3; the others' means are 1, 2.5, 2.5."""
    returns = float64(4.0, 1.0, 1.0)
    assert_near(group_z_score(returns), [2 / math.sqrt(3), -1 / math.sqrt(3), -1 / math.sqrt(3)])
    assert_near(group_mean_baseline(returns), [2.0, -1.0, -1.0])
    assert_near(leave_one_out(returns), [3.0, -1.5, -1.5])


def test_each_reward_part_is_scored_by_itself_before_they_are_weighed():
    """Part 0 is 1 against 0, part 1 is 100 against 300, part 2 says nothing: +-0.70711 each, then weighed 1, 0.5, 9."""
    parts = float64([1.0, 100.0, 5.0], [0.0, 300.0, 5.0])
    assert_near(reward_parts_z_score(parts), [0.0, 0.0])
    assert_near(reward_parts_z_score(parts, torch.tensor([1.0, 0.5, 9.0])), [0.5 * ROOT, -0.5 * ROOT])
    with pytest.raises(ValueError, match="finite"):
        reward_parts_z_score(parts, torch.tensor([1.0, NAN, 1.0]))


def test_returns_to_go_by_hand():
    """gamma 1/2: 4; 2 + 4/2 = 4; 1 + 4/2 = 3. What is not a turn has no reward, NaN or not."""
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert_near(
        returns_to_go(float64([1.0, 2.0, 4.0], [1.0, 2.0, NAN]), mask, gamma=0.5), [[3.0, 4.0, 4.0], [2.0, 2.0, 0.0]]
    )
    with pytest.raises(ValueError, match="0 to 1"):
        returns_to_go(float64([1.0]), mask[:1, :1], gamma=1.5)


def test_a_winner_gets_credit_on_every_turn_and_nobody_is_compared_only_with_those_still_playing():
    """One reward at the end, gamma 1. Returns-to-go: winner 1, 1, 1; loser 0, 0; loser 0.

    At every index the winner has 1 and the other two 0, whether they still play or not: deviation sqrt(1/3),
    winner (2/3) / 0.57735 = 1.15470, the others half of it below.
    """
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    rewards = float64([0.0, 0.0, 1.0], [0.0, 0.0, NAN], [0.0, NAN, NAN])
    high, low = 1.154699, -0.577349
    assert_near(turn_returns(rewards, mask, gamma=1.0), [[high, high, high], [low, low, 0.0], [low, 0.0, 0.0]])


def test_a_discount_fades_credit_before_but_never_after_the_reward():
    """Returns-to-go 0.25, 0.5, 1, 0 against four zeros: the sign follows, the last turn is nobody's."""
    mask = torch.ones(2, 4, dtype=torch.bool)
    advantage = turn_returns(float64([0.0, 0.0, 1.0, 0.0], [0.0] * 4), mask, gamma=0.5)
    assert_near(advantage[0], [ROOT, ROOT, ROOT, 0.0])
    assert_near(advantage[1], [-ROOT, -ROOT, -ROOT, 0.0])


def test_step_groups_compare_turns_that_started_from_one_state():
    """Two trajectories, rewards 0, 1 and 0, 0, gamma 1/2, both from state 7; then one goes to 8, the other back to 7.

    Trajectory part: 1 against 0: +-0.70711. Returns-to-go: 0.5, 1 and 0, 0. State 7 holds 0.5, 0, 0: mean 1/6,
    deviation sqrt((1/9 + 2/36) / 2) = 0.288675: 1.154701, -0.57735, -0.57735. State 8 holds one turn: 0. Weight 2.
    """
    rewards, mask = float64([0.0, 1.0], [0.0, 0.0]), torch.ones(2, 2, dtype=torch.bool)
    states = torch.tensor([[7, 8], [7, 7]])
    got = step_groups(rewards, mask, states, gamma=0.5, step_weight=2.0)
    assert_near(got, [[ROOT + 2.309401, ROOT], [-ROOT - 1.154701, -ROOT - 1.154701]], 2e-5)
    assert_near(step_groups(rewards, mask, states, gamma=0.5, step_weight=0.0), [[ROOT, ROOT], [-ROOT, -ROOT]])


def test_step_groups_ignore_what_is_not_a_turn():
    mask = torch.tensor([[True, True], [True, False]])
    rewards, states = float64([0.0, 1.0], [0.0, NAN]), torch.tensor([[3, 4], [3, 4]])
    # The second turn's state 4 is met once: its twin is padding.
    assert_near(step_groups(rewards, mask, states, gamma=1.0, step_weight=1.0), [[2 * ROOT, ROOT], [-2 * ROOT, 0.0]])


def test_a_mean_advantage_is_over_a_trajectorys_own_tokens():
    mask = torch.tensor([[True, False, True], [False, False, False]])
    assert_near(trajectory_mean_advantages(float64([1.0, NAN, 4.0], [NAN] * 3), mask), [[2.5, 0.0, 2.5], [0.0] * 3])

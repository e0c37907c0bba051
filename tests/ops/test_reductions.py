"""Reductions: what a token, a turn and a trajectory weigh."""

from __future__ import annotations

import pytest
import torch

from gspo_rllib.ops import IMPORTANCE_SAMPLING_LEVELS, REDUCTIONS, reduce_tokens, sequence_log_ratio, token_weights
from tests.ops.objective_batches import one_turn, run


def test_trajectories_of_2_and_8_tokens_weigh_the_same_unless_tokens_are_counted():
    mask = torch.arange(8)[None, :] < torch.tensor([[2], [8]])
    zeros = torch.zeros(2, 8, dtype=torch.float64)
    batch = one_turn(zeros, zeros, torch.ones(2, dtype=torch.float64), mask)
    for level in IMPORTANCE_SAMPLING_LEVELS:
        assert run(batch, level)[1].sum(dim=1).tolist() == pytest.approx([-0.5, -0.5])
        assert run(batch, level, reduction="token_mean")[1].sum(dim=1).tolist() == pytest.approx([-0.2, -0.8])
        summed = run(batch, level, reduction="token_sum", token_sum_length=16)[1].sum(dim=1)
        assert summed.tolist() == pytest.approx([-2 / 32, -8 / 32])


def test_turns_of_1_and_3_tokens_weigh_the_same_under_turn_mean():
    """Three turns over two trajectories: a third each, whoever they belong to, shared by the turn's tokens."""
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    turn_ids = torch.tensor([[0, 1, 1, 1], [0, 0, 7, 7]])
    weights = token_weights(mask, reduction="turn_mean", turn_ids_BT=turn_ids, dtype=torch.float64)
    expected = [[1 / 3, 1 / 9, 1 / 9, 1 / 9], [1 / 6, 1 / 6, 0, 0]]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_without_a_sampled_token_do_not_count(reduction):
    value, turn_ids = torch.tensor([[2.0, 0.0], [7.0, 7.0]]), torch.zeros(2, 2, dtype=torch.long)
    one, none = torch.tensor([[True, False], [False, False]]), torch.zeros(2, 2, dtype=torch.bool)
    assert reduce_tokens(value, one, reduction=reduction, turn_ids_BT=turn_ids).item() == 2.0
    assert reduce_tokens(value, none, reduction=reduction, turn_ids_BT=turn_ids).item() == 0.0
    assert sequence_log_ratio(value, value + 1, none).tolist() == [0.0, 0.0]

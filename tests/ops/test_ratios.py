"""Ratio scopes: where they agree, and which tokens each of them sees."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given

from gspo_rllib.ops import REDUCTIONS, SURROGATES
from tests.ops.objective_batches import batches, every_objective, few_examples, one_turn, row, run


@every_objective
@few_examples
@given(batch=batches(width=1))
def test_with_one_token_every_ratio_scope_is_the_same(level, surrogate, reduction, batch):
    for got, expected in zip(
        run(batch, level, surrogate, reduction)[:2], run(batch, "token", surrogate, reduction)[:2], strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("surrogate", "reduction"), itertools.product(SURROGATES, REDUCTIONS))
@few_examples
@given(batch=batches())
def test_with_one_turn_turn_level_is_sequence_level(surrogate, reduction, batch):
    batch.turn_ids = torch.full_like(batch.turn_ids, 2)
    for got, expected in zip(
        run(batch, "turn", surrogate, reduction)[:2], run(batch, "sequence", surrogate, reduction)[:2], strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("reduction", sorted(set(REDUCTIONS) - {"turn_mean"}))
@few_examples
@given(batch=batches())
def test_gspo_token_is_gspo_when_advantages_are_equal_along_a_trajectory(surrogate, reduction, batch):
    batch.advantages = batch.advantages.reshape(len(batch.logp), -1)[:, 0]
    batch.weights = torch.ones_like(batch.weights)
    for got, expected in zip(
        run(batch, "sequence_token", surrogate, reduction)[:2],
        run(batch, "sequence", surrogate, reduction)[:2],
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_per_token_advantages_reach_their_own_tokens_under_gspo_token():
    batch = one_turn(row(0.0, 0.0), row(0.0, 0.0), row(1.0, 0.0))
    assert run(batch, "sequence_token")[1].tolist() == [[-0.5, 0.0]]
    assert run(batch, "sequence")[1].tolist() == [[-0.25, -0.25]]

"""Generalised advantage estimation: numbers derived by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gspo_rllib.ops import gae, returns_to_go
from tests.ops.tensors import assert_near, float64

NAN = float("nan")


def test_gae_by_hand():
    """Rewards 1, 0, 2, values 0.5, 1, 1.5, gamma 1/2, lambda 1/2.

    Errors: 1 + 0.5 x 1 - 0.5 = 1; 0 + 0.5 x 1.5 - 1 = -0.25; 2 + 0 - 1.5 = 0.5.
    Backwards with 1/4: 0.5; -0.25 + 0.125 = -0.125; 1 - 0.03125 = 0.96875. Target: advantage + value.
    """
    mask = torch.tensor([[True, True, True, False, False]])
    rewards, values = float64([1.0, 0.0, 2.0, NAN, NAN]), float64([0.5, 1.0, 1.5, NAN, NAN])
    advantage, target = gae(rewards, values.requires_grad_(), mask, gamma=0.5, lambda_=0.5)
    assert_near(advantage, [[0.96875, -0.125, 0.5, 0.0, 0.0]], 1e-12)
    assert_near(target, [[1.46875, 0.875, 2.0, 0.0, 0.0]], 1e-12)
    assert not advantage.requires_grad and not target.requires_grad


@settings(max_examples=20)
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

"""The clip of each token's log-ratio, and the geometric mean of what it leaves: worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gspo_rllib.ops import IMPORTANCE_SAMPLING_LEVELS, policy_loss

NAN = float("nan")
LOG_RATIO = torch.tensor([[0.1, 0.6, -0.5], [-0.9, 0.5, NAN]], dtype=torch.float64)
OLD = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, -1.5, NAN]], dtype=torch.float64)
MASK = torch.tensor([[True, True, True], [True, True, False]])
ADVANTAGE = torch.tensor([2.0, -1.0], dtype=torch.float64)


def _loss(logp: torch.Tensor, old: torch.Tensor = OLD, advantage: torch.Tensor = ADVANTAGE, **options: Any) -> Any:
    options = {"clip_low": 0.4, "clip_high": 0.4, **options}
    return policy_loss(logp, old, advantage, options.pop("mask", MASK), surrogate="log_clip", **options)


def _run(logp: torch.Tensor, *args: Any, **options: Any) -> Any:
    logp = logp.clone().requires_grad_()
    loss, statistics = _loss(logp, *args, **options)
    return loss.item(), torch.autograd.grad(loss, logp)[0], statistics


def test_the_geometric_mean_of_clipped_token_ratios_is_what_the_paper_says():
    """Two trajectories, the range exp(-0.4) to exp(0.4).

    First, A = 2, so that only the upper end binds: log-ratios 0.1, 0.6 -> 0.4, -0.5; their mean is 0, s = 1, sA = 2.
    A token's slope is s A / 3 = 2/3, and 0 for the second, which is held.
    Second, A = -1, so that only the lower end binds: -0.9 -> -0.4, 0.5; mean 0.05, s = exp(0.05), sA = -exp(0.05).
    A token's slope is -exp(0.05) / 2, and 0 for the first.
    The loss is minus the mean over the two trajectories.
    """
    s = math.exp(0.05)
    loss, grad, statistics = _run(OLD + LOG_RATIO)
    assert loss == pytest.approx(-(2.0 - s) / 2, abs=1e-12)
    expected = [[-1 / 3, 0.0, -1 / 3], [0.0, s / 4, 0.0]]
    torch.testing.assert_close(grad, torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)
    assert statistics["clipped_high_B"].tolist() == pytest.approx([1 / 3, 0.0])
    assert statistics["clipped_low_B"].tolist() == pytest.approx([0.0, 1 / 2])
    assert statistics["ratio_B"].tolist() == pytest.approx([1.0, s])
    # Before the clip: (0.1 + 0.6 - 0.5) / 3 and |-0.9 + 0.5| / 2.
    assert statistics["abs_log_ratio_B"].tolist() == pytest.approx([0.2 / 3, 0.2])


def test_an_outlier_moves_the_geometric_mean_less_than_its_own_gradient_would():
    """One token of 100 that became e^5 times as likely: its ratio is 148, the trajectory's exp(0.4 / 100) = 1.004."""
    old = torch.zeros(1, 100, dtype=torch.float64)
    logp = old.clone()
    logp[0, 7] = 5.0
    loss, grad, statistics = _run(logp, old, torch.ones(1, dtype=torch.float64), mask=torch.ones(1, 100).bool())
    assert loss == pytest.approx(-math.exp(0.004))
    assert grad[0, 7] == 0.0 and bool((grad[0, :7] != 0).all())
    assert statistics["clipped_high_B"].tolist() == pytest.approx([0.01])


@pytest.mark.parametrize("level", IMPORTANCE_SAMPLING_LEVELS)
def test_its_gradient_is_the_slope_of_the_loss(level):
    """Finite differences in float64; only the slope of "sequence_token" is not that of its value, by construction."""
    logp = torch.where(MASK, OLD + LOG_RATIO, torch.zeros_like(OLD)).requires_grad_()
    turns = torch.tensor([[0, 0, 1], [0, 1, 9]])

    def loss(logp: torch.Tensor) -> torch.Tensor:
        return _loss(logp, importance_sampling_level=level, turn_ids_BT=turns)[0]

    if level != "sequence_token":
        assert torch.autograd.gradcheck(loss, (logp,), eps=1e-6, atol=1e-9)
    else:
        # For one advantage along a trajectory the two sequence levels have the same gradient.
        (grad,) = torch.autograd.grad(loss(logp), logp)
        torch.testing.assert_close(grad, _run(logp.detach())[1])


def test_each_token_is_clipped_by_the_sign_of_its_own_advantage():
    """Log-ratios 0.6, 0.6 with A = 1, -1, and -0.6, -0.6 with A = -1, 1, under a ratio per token.

    The first is held at 0.4, the third at -0.4; A pulls the other two back, so they count as they are.
    """
    logp = torch.tensor([[0.6, 0.6, -0.6, -0.6]], dtype=torch.float64)
    advantage = torch.tensor([[1.0, -1.0, -1.0, 1.0]], dtype=torch.float64)
    options = {"importance_sampling_level": "token", "mask": torch.ones(1, 4).bool()}
    loss, grad, statistics = _run(logp, torch.zeros_like(logp), advantage, **options)
    assert loss == pytest.approx(-(math.exp(0.4) - math.exp(0.6) - math.exp(-0.4) + math.exp(-0.6)) / 4)
    assert (grad[0] != 0).tolist() == [False, True, False, True]
    assert (statistics["clipped_low_B"].item(), statistics["clipped_high_B"].item()) == (0.25, 0.25)


def test_a_trajectory_without_an_advantage_is_neither_clipped_nor_trained():
    loss, grad, statistics = _run(OLD + LOG_RATIO, OLD, torch.zeros(2, dtype=torch.float64))
    assert loss == 0.0 and not bool(grad.any())
    assert not bool(statistics["clipped_low_B"].any() | statistics["clipped_high_B"].any())


def test_a_batch_that_is_held_everywhere_has_no_gradient():
    logp = torch.tensor([[1.0] * 3, [-1.0] * 3], dtype=torch.float64)
    advantage = torch.tensor([1.0, -1.0], dtype=torch.float64)
    for level in IMPORTANCE_SAMPLING_LEVELS:
        options = {"importance_sampling_level": level, "mask": torch.ones(2, 3).bool()}
        turns = torch.tensor([[0, 0, 1], [0, 1, 1]])
        loss, grad, statistics = _run(logp, torch.zeros_like(logp), advantage, turn_ids_BT=turns, **options)
        assert loss == pytest.approx(-(math.exp(0.4) - math.exp(-0.4)) / 2)
        assert not bool(grad.any())
        assert statistics["clipped_high_B"].tolist() == [1.0, 0.0]
        assert statistics["clipped_low_B"].tolist() == [0.0, 1.0]


def test_the_ends_of_the_range_can_differ_and_be_one_per_trajectory():
    """Log-ratio 0.3 twice, A = 1: an end at 0.2 holds it, one at 0.4 does not; nothing is below."""
    logp = torch.full((2, 1), 0.3, dtype=torch.float64)
    high = torch.tensor([0.2, 0.4], dtype=torch.float64)
    mask = torch.ones(2, 1).bool()
    loss, grad, _ = _run(logp, torch.zeros_like(logp), torch.ones(2, dtype=torch.float64), clip_high=high, mask=mask)
    assert loss == pytest.approx(-(math.exp(0.2) + math.exp(0.3)) / 2)
    assert grad[:, 0].tolist() == pytest.approx([0.0, -math.exp(0.3) / 2])


def test_the_ends_are_met_in_float32_at_any_log_probability():
    """What is held at old + 0.4 has a log-ratio of 0.4 to a few units in the last place of the log-probability."""
    old = -torch.logspace(-3, 2, 50)[None, :]
    logp = old + 2.0
    loss, _, _ = _run(logp, old, torch.ones(1), mask=torch.ones(1, 50).bool())
    assert loss == pytest.approx(-math.exp(0.4), rel=1e-5)

"""Surrogates: what each one is worth by hand, and where its gradient ends."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from gspo_rllib.ops import IMPORTANCE_SAMPLING_LEVELS, REDUCTIONS
from tests.ops.objective_batches import one_turn, row, run


@pytest.mark.parametrize(("level", "reduction"), itertools.product(IMPORTANCE_SAMPLING_LEVELS, REDUCTIONS))
def test_a_batch_that_is_clipped_everywhere_has_no_gradient_except_under_cispo(level, reduction):
    logp = torch.tensor([[1.0] * 3, [-1.0] * 3], dtype=torch.float64)
    batch = one_turn(logp, torch.zeros_like(logp), torch.tensor([1.0, -1.0], dtype=torch.float64))
    for surrogate in ("clip", "dual_clip"):
        _, grad, statistics = run(batch, level, surrogate, reduction)
        assert not bool(grad.any())
        assert statistics["clipped_high_B"].tolist() == [1.0, 0.0]
        assert statistics["clipped_low_B"].tolist() == [0.0, 1.0]
    assert bool((run(batch, level, "cispo", reduction)[1] != 0).all())


@pytest.mark.parametrize(
    ("surrogate", "ratio", "advantage", "objective", "slope"),
    [
        ("clip", 1.5, 2.0, 2.4, 0.0),  # 1.2 x 2, flat
        ("clip", 1.5, -2.0, -3.0, -3.0),  # the pessimistic side is not clipped: slope in log p is s A
        ("clip", 0.5, -2.0, -1.8, 0.0),  # 0.9 x -2, flat
        ("dual_clip", 5.0, -2.0, -6.0, 0.0),  # at most 3 x
        ("dual_clip", 2.0, -2.0, -4.0, -4.0),
        ("dual_clip", 5.0, 2.0, 2.4, 0.0),  # a positive advantage knows only the ordinary clip
        ("cispo", 5.0, 2.0, 1.2 * 2 * -0.7, 2.4),  # weight 1.2, and the gradient of log p stays
        ("cispo", 0.5, -2.0, 0.9 * -2 * -0.7, -1.8),
        ("sapo", 1.0, 2.0, 4.0, 2.0),  # 4 / 1 x 1/2 x 2; slope A on policy, whatever tau is
        ("sapo", 1.0, -2.0, -2.0, -2.0),  # 4 / 2 x 1/2 x -2
        ("sapo", 2.0, 2.0, 5.848469, 3.145791),  # 4 sigmoid(1) 2; 4 sigmoid(1) (1 - sigmoid(1)) 2 x ratio 2
        ("policy_gradient", 5.0, 2.0, 10.0, 10.0),
    ],
)
def test_a_surrogate_is_worth_what_its_definition_says(surrogate, ratio, advantage, objective, slope):
    """One token with log p = -0.7, range 0.9 to 1.2, dual clip 3, tau 1 and 2. Slopes are in log p."""
    batch = one_turn(row(-0.7), row(-0.7 - math.log(ratio)), torch.tensor([advantage], dtype=torch.float64))
    loss, grad, _ = run(batch, "sequence", surrogate, sapo_temperature_negative=2.0)
    assert loss.item() == pytest.approx(-objective, abs=1e-6)
    assert grad.item() == pytest.approx(-slope, abs=1e-6)


def test_each_trajectory_can_have_its_own_clip_range():
    batch = one_turn(row(0.1, 0.1).T, row(0.0, 0.0).T, torch.ones(2, dtype=torch.float64))
    for level in IMPORTANCE_SAMPLING_LEVELS:
        _, grad, statistics = run(batch, level, clip_low=0.1, clip_high=torch.tensor([0.05, 0.2], dtype=torch.float64))
        assert grad[0].item() == 0.0 and grad[1].item() != 0.0
        assert statistics["clipped_high_B"].tolist() == [1.0, 0.0]

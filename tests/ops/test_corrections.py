"""Off-policy weights, against numbers that follow from a few ratios."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gspo_rllib.ops import CORRECTION_LEVELS, CORRECTION_MODES, kl_estimate, policy_loss, rollout_correction

NAN = float("nan")
MASK = torch.tensor([[True, True, True, False], [False, True, True, False]])
RATIOS = torch.tensor([[2.0, 4.0, 1.0, NAN], [NAN, 0.25, 1.0, NAN]], dtype=torch.float64)
"""Old policy over engine, token by token. Geometric means: 8^(1/3) = 2 and (1/4)^(1/2) = 1/2; products: 8 and 1/4."""


def _weights(mode: str, level: str, low: float, high: float) -> list[list[float]]:
    behavior = torch.where(MASK, torch.full_like(RATIOS, -1.5), NAN)
    weights = rollout_correction(behavior + RATIOS.log(), behavior, MASK, mode=mode, level=level, low=low, high=high)
    return [pytest.approx(row) for row in weights.tolist()]


@pytest.mark.parametrize(
    ("mode", "level", "expected"),
    [
        ("truncate", "token", [[2, 3, 1, 0], [0, 0.25, 1, 0]]),
        ("mask", "token", [[2, 0, 1, 0], [0, 0, 1, 0]]),
        ("truncate", "sequence_mean", [[2, 2, 2, 0], [0, 0.5, 0.5, 0]]),
        ("mask", "sequence_mean", [[2, 2, 2, 0], [0, 0.5, 0.5, 0]]),
        ("truncate", "sequence_product", [[3, 3, 3, 0], [0, 0.25, 0.25, 0]]),
        ("mask", "sequence_product", [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_a_correction_is_what_its_level_and_mode_say(mode, level, expected):
    """Range 0.4 to 3 on the ratios of ``RATIOS``; NaN in padding goes nowhere."""
    assert _weights(mode, level, 0.4, 3.0) == expected


def test_bounds_belong_to_the_range_that_is_kept():
    """Both are powers of two, so that their logarithm and back is exact."""
    behavior = torch.zeros(1, 2, dtype=torch.float64)
    old = torch.tensor([[1.0, 1.0]], dtype=torch.float64).log()
    kept = rollout_correction(old, behavior, behavior == 0, mode="mask", level="token", low=1.0, high=1.0)
    assert kept.tolist() == [[1.0, 1.0]]


@settings(max_examples=20)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=6), st.sampled_from(list(CORRECTION_LEVELS)))
def test_agreeing_engines_are_not_corrected(log_probs, level):
    logp = torch.tensor([log_probs], dtype=torch.float64)
    for mode in CORRECTION_MODES:
        weights = rollout_correction(logp, logp, torch.ones_like(logp).bool(), mode=mode, level=level, low=0.5, high=2)
        assert weights.tolist() == [[1.0] * len(log_probs)]


@pytest.mark.parametrize("level", CORRECTION_LEVELS)
@pytest.mark.parametrize("gap", [500.0, -500.0])
def test_weights_stay_finite_in_float32_and_have_no_gradient(level, gap):
    old = torch.full((1, 3), gap, requires_grad=True)
    zeros, mask = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)
    truncated = rollout_correction(old, zeros, mask, mode="truncate", level=level, low=0.0, high=2.0)
    masked = rollout_correction(old, zeros, mask, mode="mask", level=level, low=0.5, high=2.0)
    assert truncated.tolist() == [[2.0 if gap > 0 else 0.0] * 3]
    assert masked.tolist() == [[0.0] * 3]
    assert not truncated.requires_grad
    unbounded = rollout_correction(old, zeros, mask, mode="truncate", level=level, low=0.0, high=float("inf"))
    assert bool(torch.isfinite(unbounded).all())


def test_a_length_of_1000_tokens_survives_the_mean_but_not_the_product():
    """Every token 1 % more likely: the geometric mean is 1.01; the product is e^9.95 = 20959."""
    old, mask = torch.full((1, 1000), math.log(1.01), dtype=torch.float64), torch.ones(1, 1000, dtype=torch.bool)
    kept, lost = (
        rollout_correction(old, torch.zeros_like(old), mask, mode="mask", level=level, low=0.5, high=2.0)
        for level in ("sequence_mean", "sequence_product")
    )
    assert kept[0, 0].item() == pytest.approx(1.01)
    assert lost.max().item() == 0.0


def test_the_decoupled_objective_clips_on_the_old_policy_and_weighs_by_the_engine():
    """Ratio 1 to the old policy, so nothing is clipped; old/engine = 2 doubles the gradient, NaN padding aside."""
    logp = torch.tensor([[-1.0, -1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    behavior = torch.tensor([[-1.0, -1.0 - math.log(2), NAN]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False]])
    weights = rollout_correction(logp, behavior, mask, mode="truncate", level="token", low=0.0, high=5.0)
    weights[0, 2] = NAN
    loss, _ = policy_loss(logp, logp.detach(), torch.ones(1).double(), mask, weights_BT=weights)
    # GSPO at ratio 1: each token gets the trajectory's mean weight 1.5, shared by two tokens.
    assert torch.autograd.grad(loss, logp)[0].tolist() == [pytest.approx([-0.75, -0.75, 0.0])]


def test_a_correction_that_is_not_allowed_says_what_is():
    plain, zeros, mask = inspect.unwrap(rollout_correction), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    allowed = {"mode": "mask", "level": "token", "low": 0.5, "high": 2.0}
    for match, change in {
        "allowed: truncate, mask": {"mode": "clip"},
        "allowed: token, sequence_mean, sequence_product": {"level": "sequence"},
        "0 <= low <= high": {"low": 3.0},
        "high > 0": {"low": 0.0, "high": 0.0},
        "low=nan": {"low": NAN},
    }.items():
        with pytest.raises(ValueError, match=match):
            plain(zeros, zeros, mask, **{**allowed, **change})
    with pytest.raises(ValueError, match="allowed: k1, k2, k3"):
        inspect.unwrap(kl_estimate)(zeros, zeros, estimator="k4")

"""How wide the clip range should be: by length, and by the share that is clipped."""

from __future__ import annotations

import math

import pytest
import torch

from gspo_rllib.ops import LogRatioSpread, deviations_clip_range, length_clip_scale
from gspo_rllib.ops.clip_scaling import CLIP_SCALE_RANGE, next_clip_scale
from tests.ops.tensors import assert_near


def test_a_clip_range_shrinks_like_the_noise_of_a_mean():
    """The mean of 4 n equally noisy tokens is half as noisy as that of n."""
    scale = length_clip_scale(torch.tensor([0, 1, 50, 200, 800]), reference_length=200)
    assert_near(scale, [math.sqrt(200), math.sqrt(200), 2.0, 1.0, 0.5], 1e-5)
    with pytest.raises(ValueError, match="tokens > 0"):
        length_clip_scale(torch.tensor([1]), reference_length=0)


@pytest.mark.parametrize("start", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(
    ("fraction_at", "settled"),
    [
        # |log s| exponentially distributed: exp(-scale) is clipped; 0.15 at -ln 0.15 = 1.897.
        (lambda scale: math.exp(-scale), 1.8971),
        # A steeper one, 1 / (1 + (10 scale)^4): 0.15 at (0.85 / 0.15)^(1/4) / 10 = 0.1543.
        (lambda scale: 1 / (1 + (10 * scale) ** 4), 0.1543),
    ],
)
def test_the_clip_scale_settles_where_the_target_fraction_is_clipped(fraction_at, settled, start):
    scale = start
    for _ in range(120):
        scale = next_clip_scale(scale, fraction_at(scale), target=0.15)
    assert scale == pytest.approx(settled, rel=1e-3)


def test_the_clip_scale_stays_in_its_range_and_still_without_a_measurement():
    low = high = 1.0
    for _ in range(200):
        low, high = next_clip_scale(low, 0.0, target=0.15), next_clip_scale(high, 1.0, target=0.15)
    assert (low, high) == CLIP_SCALE_RANGE == (1e-3, 1e3)
    for nothing in (None, math.nan, math.inf):
        assert next_clip_scale(0.7, nothing, target=0.15) == 0.7


LENGTHS = torch.tensor([[25.0, 400.0]])


def _room(**spreads):
    """What log s may do above and below 1 at 25 and at 400 tokens, with two deviations: the same."""
    low, high = deviations_clip_range(LENGTHS, deviations=2.0, **{"step": None, "noise": None, **spreads})
    torch.testing.assert_close((1 + high).log(), -(1 - low).log(), rtol=1e-4, atol=1e-7)
    return (1 + high).log()[0].tolist()


def test_a_range_of_deviations_has_the_shape_of_the_measured_spread():
    assert _room(step=LogRatioSpread(0.0, 1e-4)) == pytest.approx([0.004, 0.001], rel=1e-3)
    # Half the variance at 25 tokens is common to all of them: 4e-6 + 1e-4 / 25.
    assert _room(step=LogRatioSpread(4e-6, 1e-4)) == pytest.approx([2 * 8e-6**0.5, 2 * 4.25e-6**0.5], rel=1e-3)


def test_a_range_of_deviations_is_never_wider_than_a_tokens_and_starts_there():
    """0.2 / sqrt(25) and 0.2 / sqrt(400)."""
    assert _room() == pytest.approx([0.04, 0.01], rel=1e-3)
    assert _room(step=LogRatioSpread(1.0, 9.0)) == pytest.approx([0.04, 0.01], rel=1e-3)


def test_a_range_of_deviations_always_lets_the_noise_through():
    noise = LogRatioSpread(0.0, 4e-4)
    assert _room(step=LogRatioSpread(0.0, 1e-6), noise=noise) == pytest.approx([0.008, 0.002], rel=1e-3)
    assert _room(noise=LogRatioSpread(1e-2, 0.0)) == pytest.approx([0.2, 0.2], rel=1e-3)

"""How wide the clip range should be: by length, and by the share that is clipped."""

from __future__ import annotations

import math

import pytest
import torch

from gspo_rllib.ops import length_clip_scale
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

"""The soft overlong penalty: numbers derived by hand."""

from __future__ import annotations

import pytest
import torch

from gspo_rllib.ops import soft_overlong_penalty
from tests.ops.tensors import assert_near


def test_the_overlong_penalty_falls_in_a_straight_line():
    """Limit 100, buffer 20: (80 - n) / 20 between 80 and 100."""
    lengths = torch.tensor([0, 80, 81, 85, 99, 100, 101, 10_000])
    expected = [0.0, 0.0, -0.05, -0.25, -0.95, -1.0, -1.0, -1.0]
    assert_near(soft_overlong_penalty(lengths, max_tokens=100, buffer=20), expected, 1e-6)
    for buffer in (0, 101):
        with pytest.raises(ValueError, match="0 < buffer <= max_tokens"):
            soft_overlong_penalty(lengths, max_tokens=100, buffer=buffer)

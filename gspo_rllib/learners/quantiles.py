"""Quantiles of numbers that come in pieces, over micro-batches, minibatches and ranks: counts in fixed bins.

Counts add up whatever the pieces, which quantiles of pieces do not. Bins are as wide as their distance from 0 asks for,
so log-ratios of 1e-5 and of 1 are told apart equally well, with an error of at most 2 % of their size.
"""

from __future__ import annotations

import torch
from torch import Tensor

PER_DECADE = 64
"""Bins between x and 10 x: the middle of one is at most 1.8 % from what is in it."""

SMALLEST, LARGEST = 1e-8, 100.0
"""Sizes below the first count as 0 (float32 tells no log-ratio from 0 there); above the second as the second."""

_ONE_SIDE = round(PER_DECADE * (torch.log10(torch.tensor(LARGEST / SMALLEST, dtype=torch.float64)).item()))

NUM_BINS = 2 * _ONE_SIDE + 1
"""Bins of negative numbers, one of 0, bins of positive numbers."""


def binned(values: Tensor, weights: Tensor) -> Tensor:
    """How much weight falls into each bin.

    Args:
        values: Any shape; NaN counts nowhere.
        weights: How much each counts for; the same shape.

    Returns:
        float64 [NUM_BINS], on the values' device.
    """
    known = ~values.isnan()
    value_L, weight_L = values[known].double(), weights[known].double()
    size_L = (PER_DECADE * (value_L.abs().clamp(SMALLEST / 2, LARGEST) / SMALLEST).log10()).floor().long() + 1
    place_L = value_L.sign().long() * size_L.clamp(0, _ONE_SIDE) + _ONE_SIDE
    return torch.zeros(NUM_BINS, dtype=torch.float64, device=values.device).index_add_(0, place_L, weight_L)


def quantile(counts: Tensor, share: float) -> float:
    """The number that a share of the weight is not above; NaN where nothing was counted.

    Args:
        counts: float64 [NUM_BINS], sums of ``binned``.
        share: 0 … 1.

    Example:
        >>> counts = binned(torch.tensor([-0.5, 0.0, 0.001, 0.002]), torch.ones(4))
        >>> [round(quantile(counts, share), 4) for share in (0.25, 0.5, 0.75, 1.0)]
        [-0.4958, 0.0, 0.001, 0.002]
    """
    total = float(counts.sum())
    if not total:
        return float("nan")
    place = int(torch.searchsorted(counts.cumsum(0), share * total * (1 - 1e-12))) - _ONE_SIDE
    if not place:
        return 0.0
    size = SMALLEST * 10 ** ((abs(place) - 0.5) / PER_DECADE)
    return float(size if place > 0 else -size)

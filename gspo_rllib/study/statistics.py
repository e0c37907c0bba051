"""What may be said about a few seeds: medians with bootstrap intervals, paired differences, collapses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
"""Share of the resamples that an interval holds."""

NUM_RESAMPLES = 10_000

MOST_FLIPS = 12
"""Up to as many pairs every assignment of signs is tried; beyond, as many random ones as there are resamples."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval.

    Attributes:
        value: The estimate.
        low: Lower end of the bootstrap interval; the value itself where there is one seed.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of 0, and it is one of several seeds."""
        return self.low < self.high and (self.low > 0 or self.high < 0)


def estimate(values: Sequence[float], statistic: Callable[..., np.ndarray] = np.median) -> Estimate:
    """A statistic of several seeds' values, with its percentile bootstrap interval.

    Args:
        values: One per seed, at least one.
        statistic: Called with an array and ``axis``, e.g. ``np.median`` or ``np.mean``.

    Example:
        >>> estimate([0.5, 0.5, 0.5])
        Estimate(value=0.5, low=0.5, high=0.5)
    """
    given = np.asarray(values, dtype=float)
    draws = np.random.default_rng(0).integers(len(given), size=(NUM_RESAMPLES, len(given)))
    resampled = np.asarray(statistic(given[draws], axis=1))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Estimate(float(statistic(given, axis=0)), float(low), float(high))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Two-sided p-value that paired differences have mean 0, from all ways of exchanging the members of pairs.

    Args:
        differences: One per pair, at least one.

    Example:
        >>> sign_flip_p([0.1, 0.2, 0.3])
        0.25
    """
    given = np.asarray(differences, dtype=float)
    if len(given) <= MOST_FLIPS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(given))))
    else:
        signs = np.random.default_rng(0).choice((1.0, -1.0), size=(NUM_RESAMPLES, len(given)))
        signs[0] = 1.0  # as they are
    means = np.abs((signs * given).mean(axis=1))
    return float((means >= abs(given.mean()) - 1e-12).mean())


def last_third(scores: Sequence[float]) -> float:
    """Mean of the last third of a run's scores, of one at least.

    Args:
        scores: One per iteration.

    Example:
        >>> last_third([0.0, 0.0, 0.5, 0.5, 1.0, 0.5])
        0.75
    """
    return float(np.mean(scores[-_third(scores) :]))


def on_the_way(scores: Sequence[float]) -> float:
    """Mean of a run's scores before its last third: the higher, the sooner it learnt; of a single score, itself.

    Args:
        scores: One per iteration.

    Example:
        >>> on_the_way([0.0, 0.0, 0.5, 0.5, 1.0, 0.5])
        0.25
    """
    return float(np.mean(scores[: -_third(scores)] or scores))


def _third(scores: Sequence[float]) -> int:
    return math.ceil(len(scores) / 3)


def has_collapsed(scores: Sequence[float]) -> bool:
    """Whether the last third of a run is below half of its best score.

    Example:
        >>> has_collapsed([0.2, 0.8, 0.1, 0.1]), has_collapsed([0.2, 0.4, 0.4])
        (True, False)
    """
    return last_third(scores) < max(scores) / 2


def first_at_least(scores: Sequence[float], bound: float) -> int | None:
    """The first iteration, counted from 1, whose score is at least the bound; None for never."""
    return next((number for number, score in enumerate(scores, 1) if score >= bound), None)


def paired(first: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    """``other - first`` for each seed that both have."""
    return [other[seed] - first[seed] for seed in sorted(set(first) & set(other))]

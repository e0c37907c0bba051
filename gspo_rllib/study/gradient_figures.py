"""Bias, variance and direction of a gradient, from minibatches' gradients; noise adds nothing to any expectation."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

LEAST_SIGNAL = 3.0
"""Standard errors that the fresh gradient must be away from 0 for anything to be said."""


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """How a gradient on old data compares with the one on fresh data.

    Attributes:
        signal: Squared norm of the expected fresh gradient, in its standard errors.
        cosine: Between the two expected gradients; None where a norm is not told from 0.
        bias: Squared distance of the two, / the squared norm of the fresh one; None likewise.
        variance: What one minibatch's gradient on old data varies by, in the same unit; None likewise.
        alignment: Mean cosine of one minibatch's gradient with the expected fresh one; None likewise.
    """

    signal: float
    cosine: float | None
    bias: float | None
    variance: float | None
    alignment: float | None

    def rounded(self) -> dict[str, float | None]:
        """As it is kept."""
        return {name: None if v is None else float(f"{v:.4g}") for name, v in dataclasses.asdict(self).items()}


def figures_of(old: np.ndarray, fresh: np.ndarray) -> Figures:
    """Compares gradients.

    Args:
        old: [minibatches, parameters], on data of the policy that sampled earlier; at least 2.
        fresh: [minibatches, parameters], on data of the present policy; at least 3. Independent of ``old``.

    Example:
        >>> noise = np.random.default_rng(0).normal(size=(2, 200, 50))
        >>> found = figures_of(np.ones(50) + noise[0], 2 * np.ones(50) + noise[1])
        >>> round(found.cosine, 1), round(found.bias, 1), round(found.variance, 1)
        (1.0, 0.2, 0.2)
    """
    old, fresh = old.astype(np.float64), fresh.astype(np.float64)
    fresh_square, error = _mean_off_diagonal(fresh @ fresh.T)
    signal = fresh_square / error if error > 0 else math.inf * np.sign(fresh_square) if fresh_square else 0.0
    if not signal >= LEAST_SIGNAL:
        return Figures(float(signal), None, None, None, None)
    old_square, _ = _mean_off_diagonal(old @ old.T)
    product_OF = old @ fresh.T
    product = float(product_OF.mean())
    squares_O = np.einsum("op,op->o", old, old)
    cosine = product / math.sqrt(old_square * fresh_square) if old_square > 0 else None
    moving = squares_O > 0
    alignment_O = product_OF.mean(axis=1)[moving] / np.sqrt(squares_O[moving] * fresh_square)
    return Figures(
        signal=float(signal),
        cosine=cosine,
        bias=(old_square - 2 * product + fresh_square) / fresh_square,
        variance=(float(squares_O.mean()) - old_square) / fresh_square,
        alignment=float(alignment_O.mean()) if moving.any() else None,
    )


def _mean_off_diagonal(gram: np.ndarray) -> tuple[float, float]:
    """Mean of the products of different rows, and its standard error by leaving out one row at a time."""
    n = len(gram)
    total = float(gram.sum() - np.trace(gram))
    mean = total / (n * (n - 1))
    if n < 3:
        return mean, math.inf
    without_N = (total - 2 * (gram.sum(axis=1) - np.diag(gram))) / ((n - 1) * (n - 2))
    return mean, float(math.sqrt((n - 1) / n * np.square(without_N - without_N.mean()).sum()))

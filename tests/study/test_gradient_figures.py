"""Bias, variance and direction of a gradient, against gradients whose expectations are known."""

from __future__ import annotations

import numpy as np
import pytest

from gspo_rllib.study.gradient_figures import figures_of


def noisy(mean: np.ndarray, count: int, seed: int, noise: float = 1.0) -> np.ndarray:
    return (mean + noise * np.random.default_rng(seed).normal(size=(count, len(mean)))).astype(np.float32)


def test_the_figures_are_those_of_the_expectations_however_large_the_noise() -> None:
    fresh, old = np.zeros(400), np.zeros(400)
    fresh[:100] = 2.0  # squared norm 400
    old[50:150] = 1.0  # squared norm 100, product 100
    found = figures_of(noisy(old, 300, 0), noisy(fresh, 300, 1))

    assert found.cosine == pytest.approx(100 / np.sqrt(100 * 400), abs=0.03)
    assert found.bias == pytest.approx((100 - 200 + 400) / 400, abs=0.03)
    assert found.variance == pytest.approx(400 / 400, abs=0.03)
    # One minibatch's squared norm is 100 + 400 of noise.
    assert found.alignment == pytest.approx(100 / np.sqrt(500 * 400), abs=0.03)


def test_noise_alone_says_nothing() -> None:
    found = [figures_of(noisy(np.ones(50), 8, 0), noisy(np.zeros(50), 8, seed)) for seed in range(300)]
    silent = [one for one in found if one.signal < 3]
    assert len(silent) / len(found) > 0.98
    assert all((one.cosine, one.bias, one.variance, one.alignment) == (None, None, None, None) for one in silent)


def test_an_objective_that_clips_everything_has_no_direction() -> None:
    found = figures_of(np.zeros((4, 10), np.float32), noisy(np.ones(10), 10, 0, noise=0.1))
    assert found.cosine is None
    assert found.alignment is None
    assert found.bias == pytest.approx(1.0)
    assert found.variance == 0.0


def test_without_noise_everything_is_exact() -> None:
    same = np.ones((3, 10), np.float32)
    found = figures_of(same, same)
    assert (found.cosine, found.bias, found.variance, found.alignment) == (1.0, 0.0, 0.0, 1.0)

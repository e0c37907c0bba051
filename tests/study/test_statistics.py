"""Intervals and tests on a few seeds."""

from __future__ import annotations

import numpy as np
import pytest

from gspo_rllib.study.statistics import estimate, first_at_least, has_collapsed, last_third, paired, sign_flip_p


def test_the_interval_of_a_mean_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        found = estimate(random.normal(1.0, 1.0, size=30), np.mean)
        covered += found.low <= 1.0 <= found.high
    assert 0.88 <= covered / 200 <= 1.0


def test_an_interval_is_the_same_every_time() -> None:
    assert estimate([0.1, 0.5, 0.9]) == estimate([0.1, 0.5, 0.9])


def test_one_seed_excludes_nothing() -> None:
    assert not estimate([0.5]).excludes_zero
    assert estimate([0.4, 0.5, 0.6]).excludes_zero


def test_signs_are_exchanged_in_all_ways() -> None:
    assert sign_flip_p([1.0] * 5) == 2 / 32
    assert sign_flip_p([1.0, -1.0]) == 1.0
    assert sign_flip_p([1.0] * 20) == pytest.approx(1e-4, abs=1e-4), "of many pairs, random exchanges"


def test_a_run_collapses_where_its_end_is_below_half_of_its_best() -> None:
    assert has_collapsed([0.9, 0.9, 0.9, 0.1, 0.1, 0.1])
    assert not has_collapsed([0.9, 0.1, 0.1, 0.6, 0.6, 0.6])
    assert last_third([1.0]) == 1.0


def test_seeds_that_only_one_has_are_no_pairs() -> None:
    assert paired({0: 0.5, 1: 0.5, 2: 0.1}, {1: 0.75, 2: 0.0, 3: 1.0}) == [0.25, -0.1]


def test_the_first_iteration_that_is_good_enough() -> None:
    assert first_at_least([0.5, 0.9, 0.8], 0.9) == 2
    assert first_at_least([0.5], 0.9) is None

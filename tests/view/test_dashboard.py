"""Curves of a run: the numbers of its results, the later of an iteration that was trained twice."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gspo_rllib.cli.recorder import read_by_people
from gspo_rllib.learners import statistics
from gspo_rllib.view.dashboard import PANELS, panels
from tests.view.rows import make_row, make_turn


def _lines(found: list, title: str) -> dict:
    (panel,) = [panel for panel in found if panel["title"] == title]
    return dict(panel["lines"])


def test_panels_hold_what_the_results_say() -> None:
    results = [
        {
            "training_iteration": at,
            "env_runners/success_mean": value,
            "env_runners/num_tokens_sampled": 100,
            "timers/env_runner_sampling_timer": 2.0 * at,
            "learners/default_policy/clip_fraction_low": 0.125,
            "learners/default_policy/staleness": 1,
        }
        for at, value in ((1, 0.1), (2, 0.2), (3, 0.9), (2, 0.3), (3, math.nan))
    ]
    found = panels(results, [])
    assert _lines(found, "Success") == {"sampled": [(1, 0.1), (2, 0.3)]}
    assert _lines(found, "Sampled tokens") == {"all env runners": [(1, 50.0), (2, 25.0), (3, pytest.approx(100 / 6))]}
    assert _lines(found, "Clip fraction") == {"below the range": [(1, 0.125), (2, 0.125), (3, 0.125)]}
    assert _lines(found, "Staleness")["mean"] == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert "Entropy" not in [panel["title"] for panel in found]


def test_quantiles_are_of_the_trajectories_that_were_trained() -> None:
    turns = [make_turn(sampled=2, logp=[-1.0, -1.0], updated_logp=[-1.0 + move, -1.0]) for move in (0.2, 0.4, 0.6)]
    rows = [make_row("g", i, iteration=2, turns=[turn]) for i, turn in enumerate(turns)]
    rows.append(make_row("h", iteration=2, turns=[make_turn(updated_logp=None)]))
    found = panels([], rows)
    assert _lines(found, "|log s| after the update, kept trajectories")["50 %"] == [(2, pytest.approx(0.2))]
    ratios = np.exp([0.2, 0, 0.4, 0, 0.6, 0])
    assert _lines(found, "Token ratio after the update, kept trajectories")["90 %"] == [
        (2, pytest.approx(np.quantile(ratios, 0.9)))
    ]


def test_every_number_of_a_curve_is_a_column_of_the_table() -> None:
    """result.json and TensorBoard have all numbers; progress.csv those that a person reads, and so every curve's."""
    keys = [key for panel in PANELS for key in panel.lines.values() if isinstance(key, str)]
    assert sorted(read_by_people(keys)) == sorted(keys)
    named = {key.removeprefix("learners/default_policy/") for key in keys}
    for name in statistics.DISTRIBUTIONS:
        assert {f"{name}/p{percentage}" for percentage in statistics.PERCENTAGES} <= named


def test_nothing_is_no_panel() -> None:
    assert panels([], []) == panels([{}], [make_row(turns=[])]) == []

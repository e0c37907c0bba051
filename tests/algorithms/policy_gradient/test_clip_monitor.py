"""The clip monitor names what is wrong with the clip range, and why."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.algorithms.policy_gradient.clip_monitor import PATIENCE, ClipMonitor
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.learners import statistics

HEALTHY = {
    statistics.CLIP_FRACTION: 0.15,
    statistics.SEQUENCE_GAP_MEAN: 1e-7,
    statistics.LOGP_GAP_MAX: 1e-5,
    statistics.ABS_LOG_RATIO_MEAN: 3e-4,
    statistics.STALENESS: 0.0,
}
"""What the paper's settings look like: 15 % clipped, engine and learner agree in float32."""


def _monitor(**training: Any) -> ClipMonitor:
    config = GSPOConfig().training(**{"old_log_probs": "engine", **training})
    return ClipMonitor(config.settings(TrainingSettings))


def _check(monitor: ClipMonitor, times: int = 1, **values: float) -> list[list[str]]:
    """What it says after each of ``times`` equal updates."""
    return [monitor.check({**HEALTHY, **values}) for _ in range(times)]


def _only(monitor: ClipMonitor, **values: float) -> str:
    """The one warning that a condition which stays leads to."""
    said = [message for messages in _check(monitor, 3 * PATIENCE, **values) for message in messages]
    assert len(said) == 1
    return said[0]


def test_a_healthy_clip_fraction_is_never_warned_about():
    assert _check(_monitor(), 10) == [[]] * 10
    # 0.1 % and 50 % are still within.
    assert _check(_monitor(), 10, clip_fraction=1e-3) == [[]] * 10
    assert _check(_monitor(), 10, clip_fraction=0.5) == [[]] * 10


@pytest.mark.parametrize("surrogate", ["cispo", "sapo", "policy_gradient"])
def test_a_surrogate_without_a_clip_is_never_warned_about(surrogate):
    said = _check(_monitor(surrogate=surrogate), 10, clip_fraction=0.0, sequence_gap_mean=1.0)
    assert said == [[]] * 10
    assert any(_check(_monitor(surrogate="dual_clip"), 10, clip_fraction=0.0))


@pytest.mark.parametrize(
    "values",
    [
        {},
        {statistics.LOSS: 0.0},
        dict.fromkeys(HEALTHY, math.nan),
        {statistics.CLIP_FRACTION: 0.0, statistics.ABS_LOG_RATIO_MEAN: math.nan},
    ],
)
def test_an_update_that_measured_nothing_is_never_warned_about(values):
    monitor = _monitor()
    assert [monitor.check(values) for _ in range(10)] == [[]] * 10


def test_a_range_under_the_noise_floor_is_said_at_once():
    """|log s| of 4.9e-3 at equal weights, the gap between engines that was measured elsewhere, against 3e-4."""
    message = _only(_monitor(), sequence_gap_mean=4.9e-3)
    for part in ("clip range 3.0e-04", "noise floor", "4.9e-03", 'training.old_log_probs="learner"', "float32"):
        assert part in message
    assert _check(_monitor(), sequence_gap_mean=4.9e-3)[0]


def test_the_noise_floor_is_compared_with_the_narrower_side_as_it_is_scaled():
    """Ranges 3e-4 and 4e-4: a floor of 3.5e-4 reaches the narrower one; at twice the scale, 6e-4, it does not."""
    assert _check(_monitor(), sequence_gap_mean=2.9e-4) == [[]]
    assert _check(_monitor(), sequence_gap_mean=3.5e-4) != [[]]
    assert _check(_monitor(), sequence_gap_mean=3.5e-4, clip_scale=2.0) == [[]]


def test_the_noise_floor_matters_only_where_the_engine_is_below_a_ratio_over_many_tokens():
    # Under "auto" the learner leaves the engine's log-probs by itself.
    token_level = {"importance_sampling_level": "token", "clip_high": 0.28}
    for quiet in ({"old_log_probs": "learner"}, {"old_log_probs": "auto"}, token_level):
        assert _check(_monitor(**quiet), sequence_gap_mean=1.0) == [[]]
    for level in ("sequence_token", "turn"):
        assert _check(_monitor(importance_sampling_level=level), sequence_gap_mean=1.0) != [[]]


def test_a_clip_that_never_binds_because_of_one_step_says_so():
    message = _only(_monitor(num_minibatches=1), clip_fraction=0.0)
    for part in ("inert", "0.00%", "one optimiser step", "raise training.num_minibatches"):
        assert part in message


def test_a_clip_that_never_binds_because_it_is_wide_says_how_wide():
    message = _only(_monitor(clip_low=0.2, clip_high=0.28), clip_fraction=5e-4, abs_log_ratio_mean=2e-4)
    for part in ("inert", "0.05%", "about 15 %", "2.0e-04", "2.0e-01", "narrow training.clip_low", "training.lr"):
        assert part in message


@pytest.mark.parametrize(
    ("training", "values", "says"),
    [
        ({}, {"staleness": 2.5, "logp_gap_max": 9.0}, ("staleness", "2.5 weights versions old", "fresher")),
        ({}, {"logp_gap_max": 2.04}, ("mask or a mismatch", "2.0 nats", "temperature, chat template, head")),
        ({}, {}, ("learning rate", "3.0e-03", "3.0e-04", "lower training.lr", "widen training.clip_low")),
        # 1 nat is the limit; a floor that the learner's own log-probs have taken away is no cause.
        ({"old_log_probs": "learner"}, {"logp_gap_max": 1.0, "sequence_gap_mean": 1e-2}, ("learning rate",)),
    ],
    ids=["staleness", "mismatch", "learning rate", "learning rate beside a noisy engine"],
)
def test_a_clip_that_takes_most_of_the_batch_names_its_cause(training, values, says):
    message = _only(_monitor(**training), clip_fraction=0.8, abs_log_ratio_mean=3e-3, **values)
    for part in ("saturated", "80%", "about 15 %", *says):
        assert part in message


def test_a_clip_that_takes_most_of_the_batch_for_noise_names_the_engine():
    said = _check(_monitor(), PATIENCE, clip_fraction=0.8, sequence_gap_mean=4.9e-3)
    assert [len(messages) for messages in said] == [1, 0, 1]
    assert "below the noise floor" in said[0][0]
    for part in ("saturated", "engine mismatch", "4.9e-03", 'training.old_log_probs="learner"'):
        assert part in said[-1][0]


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_single_odd_update_is_forgiven(fraction):
    """Two in a row, a good one, two in a row: never three."""
    monitor = _monitor()
    for value in (fraction, fraction, 0.15, fraction, fraction, 0.15):
        assert _check(monitor, clip_fraction=value) == [[]]


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_warning_is_repeated_only_after_its_condition_had_gone(fraction):
    monitor = _monitor()
    assert [len(m) for m in _check(monitor, 8, clip_fraction=fraction)] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert _check(monitor) == [[]]
    assert [len(m) for m in _check(monitor, 4, clip_fraction=fraction)] == [0, 0, 1, 0]


def test_from_one_extreme_to_the_other_is_patience_anew():
    monitor = _monitor()
    assert _check(monitor, 2, clip_fraction=0.0) == [[]] * 2
    first, second, third = _check(monitor, 3, clip_fraction=1.0)
    assert (first, second) == ([], []) and "saturated" in third[0]


def test_a_range_that_is_measured_is_compared_as_it_was_and_has_a_knob_of_its_own():
    monitor = _monitor(clip_scaling="deviations")
    message = _only(monitor, clip_fraction=0.0, clip_range_mean=0.0123)
    assert "against 1.2e-02" in message and "narrow training.clip_deviations" in message
    assert "clip_low" not in message
    assert "widen training.clip_deviations" in _only(monitor, clip_fraction=0.6, clip_range_mean=0.0123)

"""What an update measured is summed exactly, and the clip monitor names what is wrong with the clip range, and why."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.algorithms.policy_gradient.clip_monitor import PATIENCE, ClipMonitor
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.learners import statistics
from gspo_rllib.learners.statistics import UpdateStatistics
from gspo_rllib.ops.clip_scaling import CLIP_SCALE_RANGE, next_clip_scale

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


@pytest.mark.parametrize("values", [{}, {statistics.LOSS: 0.0}, dict.fromkeys(HEALTHY, math.nan)])
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


def _compute(update: UpdateStatistics) -> dict[str, float]:
    return update.compute(distributed=False, device="cpu")


@pytest.mark.parametrize(
    ("length", "bucket"),
    # 1, 2, 4, 8 …, each one's last neighbour 3, 7, 15 …, and one beyond the last bucket.
    [(2**power, 2**power) for power in range(21)]
    + [(2**power - 1, 2 ** (power - 1)) for power in range(2, 21)]
    + [(100, 64), (10**9, 2**20)],
)
def test_a_length_falls_into_the_bucket_of_the_power_of_two_below_it(length, bucket):
    update = UpdateStatistics()
    update.add_by_length(statistics.ABS_LOG_RATIO_BY_LENGTH, torch.tensor([0.25]), torch.tensor([length]))
    measured = {name: value for name, value in _compute(update).items() if "by_length" in name}
    assert measured == {f"{statistics.ABS_LOG_RATIO_BY_LENGTH}/{bucket}": 0.25}


def test_values_are_averaged_within_their_length_bucket_over_all_pieces():
    """Lengths 64, 100 and 127 share a bucket: (1 + 2 + 6) / 3 = 3, though two came first; 128 has its own."""
    update, name = UpdateStatistics(), statistics.SEQUENCE_GAP_BY_LENGTH
    update.add_by_length(name, torch.tensor([1.0, 2.0]), torch.tensor([64, 100]))
    update.add_by_length(name, torch.tensor([8.0, 6.0]), torch.tensor([128, 127]))
    measured = _compute(update)
    assert measured[f"{name}/64"] == pytest.approx(3.0)
    assert measured[f"{name}/128"] == pytest.approx(8.0)
    assert f"{name}/32" not in measured and f"{statistics.ABS_LOG_RATIO_BY_LENGTH}/64" not in measured


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([1.7] * 8, 1.0),  # alike, whatever they are
        ([1e4] + [1e-4] * 9, 0.1),  # one of ten counts
        ([1.0, 1.0, 0.0, 0.0], 0.5),  # two of four
        ([1.0, 2.0, 3.0], 6 / 7),  # 6^2 / (3 x 14)
    ],
)
@pytest.mark.parametrize("pieces", [1, 3])
def test_the_effective_sample_size_is_the_share_of_trajectories_that_count(ratios, expected, pieces):
    update = UpdateStatistics()
    for i in range(pieces):
        update.add_ratios(torch.tensor(ratios[i::pieces]))
    measured = _compute(update)
    assert measured[statistics.EFFECTIVE_SAMPLE_SIZE] == pytest.approx(expected, rel=1e-6)
    assert measured[statistics.RATIO_MEAN] == pytest.approx(sum(ratios) / len(ratios), rel=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 1.0, 2.0, 3.0], 1.0),
        ([5.0, 5.0, 5.0, 5.0], 0.0),  # a constant explains nothing, whatever it is
        ([7.0, 8.0, 9.0, 10.0], 1.0),  # off by a constant: everything that varies is explained
        ([0.0, 0.5, 1.0, 1.5], 0.75),  # half of each: a quarter of the variance is left
        ([3.0, 2.0, 1.0, 0.0], -3.0),  # the wrong way round: errors of -3, -1, 1, 3 vary four times as much
    ],
)
@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_the_explained_variance_of_a_critic_by_hand(values, expected, pieces):
    """Targets 0, 1, 2, 3."""
    update = UpdateStatistics()
    for i in range(pieces):
        update.add_values(torch.tensor(values[i::pieces]), torch.tensor([0.0, 1.0, 2.0, 3.0][i::pieces]))
    assert _compute(update)[statistics.VF_EXPLAINED_VAR] == pytest.approx(expected, abs=1e-9)


def test_targets_that_do_not_vary_have_nothing_to_explain():
    update = UpdateStatistics()
    update.add_values(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
    assert _compute(update)[statistics.VF_EXPLAINED_VAR] == 0.0


def test_moments_are_not_reported_themselves():
    update = UpdateStatistics()
    update.add_ratios(torch.ones(2))
    update.add_values(torch.ones(2), torch.tensor([1.0, 2.0]))
    reported = set(_compute(update))
    assert {statistics.EFFECTIVE_SAMPLE_SIZE, statistics.VF_EXPLAINED_VAR} <= reported
    assert not [name for name in reported if "squared" in name or name in ("vf_target", "vf_error")]

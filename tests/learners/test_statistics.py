"""What an update measured is summed exactly, in however many pieces it came."""

from __future__ import annotations

import math

import pytest
import torch

from gspo_rllib.learners import statistics
from gspo_rllib.learners.statistics import UpdateStatistics


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


@pytest.mark.parametrize("pieces", [1, 7])
def test_quantiles_are_of_all_log_ratios_whatever_the_pieces(pieces):
    """1,001 log-ratios from -1e-3 to 1e-3 in equal steps: a tenth is not above -8e-4, half not above 0."""
    update = UpdateStatistics()
    log_ratios = torch.linspace(-1e-3, 1e-3, 1001, dtype=torch.float64)
    for piece in log_ratios.chunk(pieces):
        update.add_log_ratios(statistics.RATIO_QUANTILES, piece, torch.ones_like(piece))
        update.add_log_ratios(statistics.ABS_LOG_RATIO_QUANTILES, piece.abs(), torch.ones_like(piece))
    measured = _compute(update)
    ratios = [math.log(measured[f"{statistics.RATIO_QUANTILES}/p{p}"]) for p in statistics.PERCENTAGES]
    sizes = [measured[f"{statistics.ABS_LOG_RATIO_QUANTILES}/p{p}"] for p in statistics.PERCENTAGES]
    assert ratios == pytest.approx([-8e-4, 0.0, 8e-4], rel=0.03, abs=1e-6)
    assert sizes == pytest.approx([1e-4, 5e-4, 9e-4], rel=0.03)


def test_a_ratio_that_many_tokens_share_counts_once_and_nan_nowhere():
    update = UpdateStatistics()
    # One trajectory of 98 tokens, two of one token each; the middle one of three is 0.2.
    log_ratios = torch.tensor([0.1] * 98 + [0.2, 0.3, float("nan")])
    update.add_log_ratios(statistics.RATIO_QUANTILES, log_ratios, torch.tensor([1 / 98] * 98 + [1.0, 1.0, 1.0]))
    measured = _compute(update)
    assert math.log(measured[f"{statistics.RATIO_QUANTILES}/p50"]) == pytest.approx(0.2, rel=0.02)
    assert not [name for name in measured if name.startswith(statistics.ABS_LOG_RATIO_QUANTILES)], "nothing measured"

"""The spread of a mean over tokens, by its length: two parameters, recovered from four means."""

from __future__ import annotations

import pytest
import torch

from gspo_rllib.ops import LogRatioSpread, Span, SpreadMoments, blend_moments, fit_spread, ratio_lengths, spread_sums


def _moments(length_B, square_B):
    length_B, square_B = torch.as_tensor(length_B).double(), torch.as_tensor(square_B).double()
    return SpreadMoments(*(float(v.mean()) for v in (length_B, 1 / length_B, square_B, length_B * square_B)))


@pytest.mark.parametrize(("shared", "own"), [(0.0, 0.04), (1e-4, 0.04), (2e-4, 0.0)])
def test_both_parts_are_recovered_exactly_where_the_spread_has_them(shared, own):
    length_B = torch.tensor([8.0, 43.0, 120.0, 400.0, 1000.0])
    spread = fit_spread(_moments(length_B, shared + own / length_B))
    assert spread.shared == pytest.approx(shared, abs=1e-9)
    assert spread.own == pytest.approx(own, abs=1e-7)


@pytest.mark.parametrize("correlation", [0.0, 0.02, 0.3])
def test_a_fit_to_noise_predicts_the_spread_at_every_length_within_a_few_percent(correlation):
    """Tokens with a common part: the variance of their mean is rho + (1 - rho) / l, not 1 / l."""
    torch.manual_seed(0)
    length_B = torch.randint(20, 400, (4000,)).double()
    common_B, own_B = torch.randn(2, 4000, dtype=torch.float64)
    x_B = 0.2 * (correlation**0.5 * common_B + (1 - correlation) ** 0.5 * own_B / length_B.sqrt())
    spread = fit_spread(_moments(length_B, x_B.square()))
    for length in (20.0, 100.0, 400.0):
        expected = 0.2 * (correlation + (1 - correlation) / length) ** 0.5
        assert float(spread.at(torch.tensor(length))) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize(
    "square_B", [[1.0, 0.01], [0.01, 1.0], [0.0, 0.0]], ids=["falls faster than 1/l", "rises with length", "nothing"]
)
def test_no_part_is_negative_and_the_mean_square_is_always_the_measured_one(square_B):
    length_B = torch.tensor([10.0, 100.0])
    spread = fit_spread(_moments(length_B, square_B))
    assert min(spread) >= 0.0
    assert float(spread.at(length_B).square().mean()) == pytest.approx(sum(square_B) / 2, rel=1e-6)


def test_equal_lengths_leave_tokens_independent():
    spread = fit_spread(_moments([50.0, 50.0], [2e-4, 4e-4]))
    assert spread == pytest.approx((0.0, 0.015))
    assert float(spread.at(torch.tensor(50.0))) == pytest.approx(3e-4**0.5)


def test_a_ratio_counts_once_however_many_tokens_share_it():
    """Turns of 1 and 3 tokens, and of 2: log-ratios 0.1, 0.2, -0.3; padding may hold anything."""
    mask_BT = torch.tensor([[True] * 4, [True, True, False, False]])
    turns_BT = torch.tensor([[0, 1, 1, 1], [0, 0, 7, 7]])
    log_ratio_BT = torch.tensor([[0.1, 0.2, 0.2, 0.2], [-0.3, -0.3, float("nan"), 9.0]])
    length_BT = ratio_lengths(mask_BT, turns_BT, span=Span.TURN)
    assert length_BT.tolist() == [[1, 3, 3, 3], [2, 2, 1, 1]]
    sums, count = spread_sums(log_ratio_BT, length_BT, mask_BT, largest=9.0)
    assert count == pytest.approx(3.0)
    assert sums == pytest.approx((6.0, 1 + 1 / 3 + 1 / 2, 0.01 + 0.04 + 0.09, 0.01 + 3 * 0.04 + 2 * 0.09))
    assert ratio_lengths(mask_BT, turns_BT, span=Span.TRAJECTORY)[:, 0].tolist() == [4, 2]
    assert ratio_lengths(mask_BT, turns_BT, span=Span.TOKEN).unique().tolist() == [1]


def test_a_ratio_that_exploded_counts_as_the_widest_range():
    """At 4 tokens and 0.2 for one token: at most 0.1."""
    mask_BT = torch.ones(1, 4, dtype=torch.bool)
    length_BT = ratio_lengths(mask_BT, torch.zeros(1, 4).long(), span=Span.TRAJECTORY)
    sums, _ = spread_sums(torch.full((1, 4), -50.0), length_BT, mask_BT, largest=0.2)
    assert sums.square == pytest.approx(0.01)


def test_sums_add_up_over_pieces_to_those_of_the_whole():
    torch.manual_seed(0)
    mask_BT = torch.arange(6) < torch.tensor([[2], [6], [3], [5]])
    log_ratio_BT = torch.randn(4, 1).expand(4, 6)
    length_BT = ratio_lengths(mask_BT, torch.zeros(4, 6).long(), span=Span.TRAJECTORY)
    whole, count = spread_sums(log_ratio_BT, length_BT, mask_BT, largest=9.0)
    parts = [spread_sums(log_ratio_BT[i::2], length_BT[i::2], mask_BT[i::2], largest=9.0) for i in range(2)]
    assert count == pytest.approx(4.0) == sum(n for _, n in parts)
    assert whole == pytest.approx([a + b for a, b in zip(parts[0][0], parts[1][0], strict=True)])


def test_a_moving_average_starts_with_what_is_measured_first():
    first, second = SpreadMoments(1.0, 1.0, 4.0, 8.0), SpreadMoments(2.0, 0.5, 0.0, 0.0)
    assert blend_moments(None, first, weight=0.25) == first
    assert blend_moments(first, second, weight=0.25) == pytest.approx((1.25, 0.875, 3.0, 6.0))


def test_a_spread_falls_with_length_no_faster_than_a_mean_of_independent_tokens():
    lengths = torch.tensor([1.0, 4.0, 100.0])
    torch.testing.assert_close(LogRatioSpread(0.0, 0.04).at(lengths), torch.tensor([0.2, 0.1, 0.02]))
    torch.testing.assert_close(LogRatioSpread(0.04, 0.0).at(lengths), torch.full((3,), 0.2))

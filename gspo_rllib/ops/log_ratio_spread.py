"""How far log-ratios spread, as a function of how many tokens each is a mean over; measured, with two parameters.

Shapes:  B trajectories · T tokens of the longest.
Source:  ours.

The log-ratio x of a trajectory, or of a turn, is a mean over its l tokens. What its tokens do independently averages
out, what they have in common (a drift of the whole policy, errors that correlate) does not:

    E[x^2] = shared + own / l,        shared, own >= 0

So the spread falls with length, but no faster than 1/sqrt(l), and nothing has to be known about the rate. Both
parameters follow from four means over trajectories, which add up over micro-batches, learners and updates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gspo_rllib.ops.reductions import tokens_per_turn
from gspo_rllib.ops.spans import Span

_SAME_LENGTHS = 1e-6
"""Spread of lengths (mean length times mean 1/length, less 1) below which they cannot tell ``shared`` from ``own``."""


class SpreadMoments(NamedTuple):
    """Means over ratios: what the spread is computed from.

    Attributes:
        length: Mean of l, the tokens that share the ratio.
        inverse_length: Mean of 1 / l.
        square: Mean of x^2, where x is the log-ratio (nats).
        scaled_square: Mean of l x^2.
    """

    length: float
    inverse_length: float
    square: float
    scaled_square: float


class LogRatioSpread(NamedTuple):
    """Mean square of a log-ratio: ``shared + own / length``.

    Attributes:
        shared: The part that does not average out over tokens (nats^2).
        own: The part that does, of one token (nats^2).
    """

    shared: float
    own: float

    def at(self, length: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Root mean square (nats) of the log-ratio over so many tokens.

        Args:
            length: Numbers of tokens, >= 1.

        Example:
            >>> LogRatioSpread(shared=0.0, own=0.04).at(torch.tensor([1.0, 25.0, 100.0]))
            tensor([0.2000, 0.0400, 0.0200])
        """
        return (self.shared + self.own / length).sqrt()


def ratio_lengths(mask_BT: Bool[Tensor, "B T"], turn_ids_BT: Int[Tensor, "B T"], *, span: Span) -> Float[Tensor, "B T"]:
    """How many sampled tokens share each token's ratio; 1 where the mask is False.

    Args:
        mask_BT: True on sampled tokens.
        turn_ids_BT: Turn of each sampled token, counting from 0; only used for turns.
        span: What a ratio is over.

    Example:
        >>> mask_BT, turns_BT = torch.tensor([[True, True, True, False]]), torch.tensor([[0, 1, 1, 0]])
        >>> ratio_lengths(mask_BT, turns_BT, span=Span.TURN)
        tensor([[1., 2., 2., 1.]])
    """
    one_BT = torch.ones(mask_BT.shape, device=mask_BT.device)
    if span is Span.TOKEN:
        return one_BT
    if span is Span.TURN:
        ids_BT, counts_BN = tokens_per_turn(mask_BT, turn_ids_BT)
        return torch.where(mask_BT, counts_BN.gather(1, ids_BT).to(one_BT), one_BT)
    return torch.where(mask_BT, mask_BT.sum(dim=1, keepdim=True).to(one_BT), one_BT)


def spread_sums(
    log_ratio_BT: Float[Tensor, "B T"],
    length_BT: Float[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"],
    *,
    largest: float | int,
) -> tuple[SpreadMoments, float]:
    """Sums over ratios whose quotients are ``SpreadMoments``, and how many ratios there are.

    Args:
        log_ratio_BT: The log-ratio of each token's trajectory or turn (nats), equal on all of its tokens.
        length_BT: From ``ratio_lengths``.
        mask_BT: True on sampled tokens.
        largest: A log-ratio over l tokens counts as at most largest / sqrt(l), so that one that exploded cannot stand
            for the others.

    Example:
        >>> log_ratio_BT, mask_BT = torch.tensor([[0.1, 0.1], [0.2, 0.0]]), torch.tensor([[True, True], [True, False]])
        >>> lengths_BT = ratio_lengths(mask_BT, torch.zeros_like(log_ratio_BT).long(), span=Span.TRAJECTORY)
        >>> sums, count = spread_sums(log_ratio_BT, lengths_BT, mask_BT, largest=1.0)
        >>> [round(value, 3) for value in sums], count
        ([3.0, 1.5, 0.05, 0.06], 2.0)
    """
    # A ratio's tokens each bring 1/l of it: so one sum serves trajectories and turns.
    length_L = length_BT[mask_BT].double()
    square_L = log_ratio_BT[mask_BT].double().square()
    square_L = torch.minimum(square_L, largest**2 / length_L)
    sums = (length_L, 1.0 / length_L, square_L, length_L * square_L)
    return SpreadMoments(*(float((value / length_L).sum()) for value in sums)), float((1.0 / length_L).sum())


def fit_spread(moments: SpreadMoments) -> LogRatioSpread:
    """The spread that has these moments, as nearly as parts that are not negative can.

    It is the least-squares fit of x^2 with weight l, about what the variance of x^2 asks for between the two extremes.
    Its mean over the ratios equals the measured mean square, whatever the split between the two parts.

    Args:
        moments: Means over ratios. Where all have the same length, nothing tells the parts apart: then tokens are
            taken to be independent.

    Example:
        >>> lengths = torch.tensor([10.0, 1000.0])
        >>> squares = 0.0001 + 0.04 / lengths
        >>> means = (lengths, 1 / lengths, squares, lengths * squares)
        >>> spread = fit_spread(SpreadMoments(*(float(value.mean()) for value in means)))
        >>> round(spread.shared, 6), round(spread.own, 6)
        (0.0001, 0.04)
    """
    length, inverse, square, scaled = moments
    differ = length * inverse - 1.0
    own = most = square / inverse
    if differ > _SAME_LENGTHS:
        own = min(max((square * length - scaled) / differ, 0.0), most)
    return LogRatioSpread(shared=max(square - own * inverse, 0.0), own=own)


def blend_moments(past: SpreadMoments | None, new: SpreadMoments, *, weight: float) -> SpreadMoments:
    """Moving average of moments; the new ones alone where there are none yet.

    Args:
        past: The average so far.
        new: What was measured now.
        weight: Share of the new ones, 0 … 1.
    """
    if past is None:
        return new
    return SpreadMoments(*(was + weight * (now - was) for was, now in zip(past, new, strict=True)))

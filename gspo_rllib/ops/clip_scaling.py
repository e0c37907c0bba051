"""Clip ranges that depend on how long a trajectory is, or on how many are clipped.

Shapes:  B trajectories.
Source:  arXiv:2509.09177 (FSPO): a fixed range on a length-normalised ratio treats short and long answers differently.

log s is a mean over |y| tokens, so its noise shrinks like 1/sqrt(|y|): a fixed range clips short trajectories often and
long ones never. A range that shrinks the same way clips both alike. Where tokens of a trajectory move together the
spread shrinks less, and how far one optimiser step moves them depends on the step: ``deviations_clip_range`` measures
both.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gspo_rllib.ops.log_ratio_spread import LogRatioSpread

WIDEST_TOKEN_RANGE = 0.2
"""Clip range of one token that is known to work at any length and step (PPO's and GRPO's)."""

CLIP_SCALE_RANGE = (1e-3, 1e3)
_GAIN = 1.0


def length_clip_scale(num_tokens_B: Int[Tensor, " B"], *, reference_length: float | int) -> Float[Tensor, " B"]:
    """sqrt(reference length / length): what a clip range is multiplied with.

    Args:
        num_tokens_B: Sampled tokens of each trajectory; 0 counts as 1.
        reference_length: Length (tokens, > 0) whose clip range stays as it is.

    Raises:
        ValueError: A reference length that is not positive.

    Example:
        >>> length_clip_scale(torch.tensor([25, 100, 400]), reference_length=100)
        tensor([2.0000, 1.0000, 0.5000])
    """
    if not reference_length > 0:
        raise ValueError(f"reference_length={reference_length!r}; allowed: a number of tokens > 0")
    return (reference_length / num_tokens_B.clamp(min=1).to(torch.float32)).sqrt()


def next_clip_scale(scale: float, clip_fraction: float | None, *, target: float) -> float:
    """What to multiply the clip range with in the next update, so that the clip fraction approaches its target.

    Args:
        scale: The factor that gave the clip fraction.
        clip_fraction: Clip fraction of the last update, 0 … 1; None when it trained on nothing.
        target: The clip fraction to aim at, 0 … 1.

    Example:
        >>> next_clip_scale(1.0, 0.15, target=0.15)
        1.0
        >>> next_clip_scale(1.0, 0.65, target=0.15) > 1.5  # clips too much: a wider range
        True
    """
    if clip_fraction is None or not math.isfinite(clip_fraction):
        return scale
    low, high = CLIP_SCALE_RANGE
    return min(max(scale * math.exp(_GAIN * (clip_fraction - target)), low), high)


def deviations_clip_range(
    length_BT: Float[Tensor, "B T"],
    *,
    step: LogRatioSpread | None,
    noise: LogRatioSpread | None,
    deviations: float | int,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """A clip range of so many standard deviations of what one optimiser step does to a log-ratio.

    Between two bounds: at most ``WIDEST_TOKEN_RANGE`` / sqrt(tokens), which is that range of a token where tokens are
    independent, and, above all, no less than so many standard deviations of the noise.

    Args:
        length_BT: Tokens that share each token's ratio, see ``ratio_lengths``.
        step: Spread of log-ratios after one step from ratio 1; None: not measured yet, the widest range.
        noise: Spread that is in them already at equal weights; None: there is none.
        deviations: Half the width of the range, in standard deviations; > 0.

    Returns:
        ``clip_low`` and ``clip_high`` of each token, so that log s has the same room on both sides.

    Example:
        >>> low, high = deviations_clip_range(
        ...     torch.tensor([[25.0, 100.0]]), step=LogRatioSpread(shared=0.0, own=1e-4), noise=None, deviations=2.0)
        >>> high
        tensor([[0.0040, 0.0020]])
    """
    widest_BT = WIDEST_TOKEN_RANGE / length_BT.sqrt()
    room_BT = widest_BT if step is None else torch.minimum(deviations * step.at(length_BT), widest_BT)
    if noise is not None:
        room_BT = torch.maximum(room_BT, deviations * noise.at(length_BT))
    return -torch.expm1(-room_BT), torch.expm1(room_BT)

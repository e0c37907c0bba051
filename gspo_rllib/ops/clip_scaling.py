"""Clip ranges that depend on how long a trajectory is, or on how many are clipped.

Shapes:  B trajectories.
Source:  arXiv:2509.09177 (FSPO): a fixed range on a length-normalised ratio treats short and long answers differently.

log s is a mean over |y| tokens, so its noise shrinks like 1/sqrt(|y|): a fixed range clips short trajectories often and
long ones never. A range that shrinks the same way clips both alike.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

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

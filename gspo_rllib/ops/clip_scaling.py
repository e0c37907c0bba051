"""Clip ranges that depend on how long a trajectory is.

Shapes:  B trajectories.
Source:  arXiv:2509.09177 (FSPO): a fixed range on a length-normalised ratio treats short and long answers differently.

log s is a mean over |y| tokens, so its noise shrinks like 1/sqrt(|y|): a fixed range clips short trajectories often and
long ones never. A range that shrinks the same way clips both alike.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


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

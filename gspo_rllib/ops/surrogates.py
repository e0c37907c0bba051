"""Surrogate objectives: what is maximised for one ratio and one advantage.

Shapes:  elementwise, any shape.
Source:  clip: Schulman et al. 2017, arXiv:1707.06347, with the asymmetric range of arXiv:2507.18071v2 §5.1.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def clipped_surrogate(
    ratio: Float[Tensor, "..."], advantage: Float[Tensor, "..."], *, clip_low: float, clip_high: float
) -> Float[Tensor, "..."]:
    """min(s A, clip(s, 1 - low, 1 + high) A): pessimistic, and flat (gradient 0) once the clip binds.

    Args:
        ratio: Importance ratio s, differentiable.
        advantage: Advantage A, constant.
        clip_low: How far below 1 the ratio may go while a negative advantage pushes it down.
        clip_high: How far above 1 it may go while a positive advantage pushes it up.

    Example:
        >>> clipped_surrogate(torch.tensor([1.5, 1.5]), torch.tensor([1.0, -1.0]), clip_low=0.1, clip_high=0.2)
        tensor([ 1.2000, -1.5000])
    """
    return torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantage)


def binding_clip(
    ratio: Float[Tensor, "..."], advantage: Float[Tensor, "..."], *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Where the clip binds (gradient is 0): below the range, and above it. Boolean tensors of the same shape."""
    return (ratio < 1.0 - clip_low) & (advantage < 0), (ratio > 1.0 + clip_high) & (advantage > 0)

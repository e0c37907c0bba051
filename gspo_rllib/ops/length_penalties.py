"""Rewards for answers that run into the length limit.

Shapes:  K trajectories of the group.
Source:  Yu et al. 2025, arXiv:2503.14476, eq. 13 (DAPO's soft overlong punishment).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def soft_overlong_penalty(num_tokens_K: Int[Tensor, " K"], *, max_tokens: int, buffer: int) -> Float[Tensor, " K"]:
    """0 up to ``max_tokens - buffer`` tokens, falling in a straight line to -1 at ``max_tokens``, -1 beyond.

    Args:
        num_tokens_K: Sampled tokens of each trajectory.
        max_tokens: Length (tokens) from which the penalty is full.
        buffer: Number of tokens before ``max_tokens`` over which the penalty grows; 0 < buffer <= max_tokens.

    Returns:
        Penalties in [-1, 0], to be added to the return.

    Raises:
        ValueError: A buffer outside its range.

    Example:
        >>> soft_overlong_penalty(torch.tensor([80, 90, 100, 120]), max_tokens=100, buffer=20)
        tensor([ 0.0000, -0.5000, -1.0000, -1.0000])
    """
    if not 0 < buffer <= max_tokens:
        raise ValueError(f"buffer={buffer!r} with max_tokens={max_tokens!r}; allowed: 0 < buffer <= max_tokens")
    over_K = (num_tokens_K - (max_tokens - buffer)).clamp(0, buffer)
    # Adding 0 turns -0.0 into 0.0.
    return -over_K.to(torch.float32) / buffer + 0.0

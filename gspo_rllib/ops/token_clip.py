"""A clip of each token's log-ratio, made before a ratio over many tokens is.

Shapes:  elementwise, any shape; clip bounds broadcast against it.
Source:  Zhao et al. 2025, arXiv:2507.20673v3 (GMPO): token-level clipping before the geometric mean.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Bound = Float[Tensor, "..."] | float | int


def hold_clipped_tokens(
    logp: Float[Tensor, "..."],
    old_logp: Float[Tensor, "..."],
    advantage: Float[Tensor, "..."],
    *,
    clip_low: Bound,
    clip_high: Bound,
) -> tuple[Float[Tensor, "..."], tuple[Bool[Tensor, "..."], Bool[Tensor, "..."]]]:
    """Log-probabilities in which a token that has gone too far is held, constant, at the end of its range.

    The clip of ``clipped_surrogate`` in log space and for one token each, to be made before a ratio over many tokens
    is: that ratio is then the geometric mean of the clipped ratios of its tokens. It is pessimistic too: only the side
    that the advantage pushes towards is clipped.

    Args:
        logp: Log-probabilities (nats) under the policy being trained, differentiable.
        old_logp: The same tokens under the policy that sampled them; constant.
        advantage: Advantage A of each token, constant; 0 is not clipped.
        clip_low: How far below 0 the log-ratio may go (nats) while a negative advantage pushes it down.
        clip_high: How far above 0 it may go (nats) while a positive advantage pushes it up.

    Returns:
        The log-probabilities, and where they are held: at the lower end, and at the upper end.

    Example:
        >>> logp, old_logp, advantage = torch.tensor([0.5, -0.5]), torch.zeros(2), torch.ones(2)
        >>> hold_clipped_tokens(logp, old_logp, advantage, clip_low=0.4, clip_high=0.25)[0]
        tensor([ 0.2500, -0.5000])
    """
    moved = (logp - old_logp).detach()
    low, high = (moved < -clip_low) & (advantage < 0), (moved > clip_high) & (advantage > 0)
    return torch.where(high, old_logp + clip_high, torch.where(low, old_logp - clip_low, logp)), (low, high)

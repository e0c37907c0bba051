"""Advantages of a group of trajectories that share one task.

Shapes:  K trajectories of the group.
Source:  Zheng et al. 2025, arXiv:2507.18071v2, eq. 6 (group z-score).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def group_z_score(return_K: Float[Tensor, " K"], *, epsilon: float = 1e-6) -> Float[Tensor, " K"]:
    """(R - mean R) / std R within the group; 0 for all when every return is the same.

    Args:
        return_K: Return of each trajectory.
        epsilon: Added to the (population-free, K-1) standard deviation.

    Returns:
        Advantages, summing to 0.

    Raises:
        ValueError: Fewer than two trajectories, or a return that is not finite.

    Example:
        >>> group_z_score(torch.tensor([1., 0., 0., 1.])).round(decimals=3)
        tensor([ 0.8660, -0.8660, -0.8660,  0.8660])
        >>> group_z_score(torch.tensor([1., 1.]))
        tensor([0., 0.])
    """
    if return_K.numel() < 2:
        raise ValueError(f"a group advantage compares trajectories: got {return_K.numel()}, needs at least 2")
    if not bool(torch.isfinite(return_K).all()):
        raise ValueError(f"returns must be finite, got {return_K.tolist()}")
    if bool((return_K == return_K[0]).all()):
        return torch.zeros_like(return_K)
    return (return_K - return_K.mean()) / (return_K.std() + epsilon)

"""From one value per sampled token to the scalar objective.

Shapes:  B trajectories · T tokens of the longest.
Source:  Zheng et al. 2025, arXiv:2507.18071v2, eq. 5 (mean over trajectories) and eq. 14 (mean over their tokens).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def trajectory_mean(
    value_BT: Float[Tensor, "B T"], mask_BT: Bool[Tensor, "B T"], *, num_trajectories: int | None = None
) -> Float[Tensor, ""]:
    """Mean over trajectories of the mean over each one's own sampled tokens: length never weighs.

    Args:
        value_BT: Anything where the mask is False.
        mask_BT: True on sampled tokens. A row without any does not count.
        num_trajectories: Denominator; None counts the rows with a sampled token. Pass the count of the whole
            minibatch when these rows are only a part of it (a micro-batch, one of several ranks).

    Returns:
        Scalar; 0 if no row counts.

    Example:
        >>> trajectory_mean(torch.tensor([[1., 9.], [2., 4.]]), torch.tensor([[True, False], [True, True]]))
        tensor(2.)
    """
    length_B = mask_BT.sum(dim=1)
    masked_BT = torch.where(mask_BT, value_BT, torch.zeros_like(value_BT))
    mean_B = masked_BT.sum(dim=1) / length_B.clamp(min=1)
    denominator = float((length_B > 0).sum()) if num_trajectories is None else num_trajectories
    return mean_B.sum() / max(denominator, 1.0)

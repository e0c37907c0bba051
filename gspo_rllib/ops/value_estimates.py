"""Advantages from a learned value of every token (actor-critic).

Shapes:  B trajectories · T sampled tokens of the longest.
Source:  Schulman et al. 2015, arXiv:1506.02438v6, eq. 16 (generalised advantage estimation).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    reward_BT: Float[Tensor, "B T"],
    value_BT: Float[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"],
    *,
    gamma: float | int,
    lambda_: float | int,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimates, token by token; what follows a trajectory's last token is worth 0.

    Args:
        reward_BT: Reward that arrives after each sampled token.
        value_BT: Critic's estimate before each sampled token.
        mask_BT: True on sampled tokens; the rest may hold anything and takes no step of discount.
        gamma: Discount per token, 0 to 1.
        lambda_: 0: one step of bootstrapping; 1: the full return minus the value.

    Returns:
        ``(advantage_BT, target_BT)``, detached; the target is advantage + value, what the critic should predict. Both
        are 0 where the mask is False.

    Raises:
        ValueError: A reward or value that is not finite, or gamma or lambda_ outside their range.

    Example:
        >>> reward_BT, value_BT = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
        >>> gae(reward_BT, value_BT, torch.tensor([[True, True]]), gamma=1.0, lambda_=1.0)
        (tensor([[0.5000, 0.5000]]), tensor([[1., 1.]]))
    """
    for name, number in (("gamma", gamma), ("lambda_", lambda_)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name}={number!r}; allowed: 0 to 1")
    zero_BT = torch.zeros_like(value_BT)
    reward_BT = torch.where(mask_BT, reward_BT.detach().to(value_BT), zero_BT)
    value_BT = torch.where(mask_BT, value_BT.detach(), zero_BT)
    if not bool(torch.isfinite(reward_BT).all() and torch.isfinite(value_BT).all()):
        raise ValueError("rewards and values of sampled tokens must be finite, got NaN or infinity")
    # Sampled tokens first: the next column is then the next token, and 0 follows the last one.
    order_BT = (~mask_BT).to(torch.int8).argsort(dim=1, stable=True)
    value_first_BT = value_BT.gather(1, order_BT)
    error_BT = reward_BT.gather(1, order_BT) + gamma * _shifted(value_first_BT, 1) - value_first_BT
    advantage_BT = zero_BT.scatter(1, order_BT, _discounted_sums(error_BT, gamma * lambda_))
    advantage_BT = torch.where(mask_BT, advantage_BT, zero_BT)
    return advantage_BT, advantage_BT + value_BT


def _discounted_sums(error_BT: Tensor, discount: float) -> Tensor:
    """Sum over j >= t of discount^(j - t) error_j, in log2 T steps: each one doubles how far a sum reaches."""
    reach = 1
    while reach < error_BT.shape[1]:
        error_BT = error_BT + discount * _shifted(error_BT, reach)
        reach, discount = 2 * reach, discount * discount
    return error_BT


def _shifted(value_BT: Tensor, steps: int) -> Tensor:
    """The value ``steps`` columns later; 0 past the end."""
    return torch.nn.functional.pad(value_BT[:, steps:], (0, min(steps, value_BT.shape[1])))

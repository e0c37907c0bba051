"""Advantages of a group of trajectories that share one task.

Shapes:  K trajectories of the group · P reward parts · N turns of the longest.
Source:  group z-score: Zheng et al. 2025, arXiv:2507.18071v2, eq. 6; mean baseline: Liu et al. 2025,
         arXiv:2503.20783 (Dr. GRPO); leave-one-out: Ahmadian et al. 2024, arXiv:2402.14740 (RLOO); z-score of each
         reward part: arXiv:2601.05242 (GDPO, without its batch-wise step); step groups: Feng et al. 2025,
         arXiv:2505.10978 (GiGPO).

Every function gives exactly 0 to a group whose values are all equal: tested by equality, since the standard deviation
of equal floats need not be 0.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

EPSILON = 1e-6


def group_z_score(return_K: Float[Tensor, " K"], *, epsilon: float | int = EPSILON) -> Float[Tensor, " K"]:
    """(R - mean R) / std R within the group; 0 for all when every return is the same.

    Args:
        return_K: Return of each trajectory.
        epsilon: Added to the standard deviation, which divides by K - 1.

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
    _check(return_K)
    return _z_score(return_K, epsilon=epsilon)


def group_mean_baseline(return_K: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """R - mean R within the group: no division, so an easy group does not count more than it is worth.

    Args:
        return_K: Return of each trajectory.

    Raises:
        ValueError: Fewer than two trajectories, or a return that is not finite.

    Example:
        >>> group_mean_baseline(torch.tensor([1., 0., 0., 0.]))
        tensor([ 0.7500, -0.2500, -0.2500, -0.2500])
    """
    _check(return_K)
    return _zero_if_equal(return_K, return_K - return_K.mean())


def leave_one_out(return_K: Float[Tensor, " K"]) -> Float[Tensor, " K"]:
    """R minus the mean return of the other trajectories: an unbiased baseline.

    Args:
        return_K: Return of each trajectory.

    Raises:
        ValueError: Fewer than two trajectories, or a return that is not finite.

    Example:
        >>> leave_one_out(torch.tensor([1., 0., 0.]))
        tensor([ 1.0000, -0.5000, -0.5000])
    """
    _check(return_K)
    others_K = (return_K.sum() - return_K) / (return_K.numel() - 1)
    return _zero_if_equal(return_K, return_K - others_K)


def reward_parts_z_score(
    part_KP: Float[Tensor, "K P"], weight_P: Float[Tensor, " P"] | None = None
) -> Float[Tensor, " K"]:
    """Weighted sum over reward parts of each part's z-score within the group: no part drowns another by its scale.

    Args:
        part_KP: Each trajectory's return in each part.
        weight_P: What each part's z-score is multiplied with; None: 1 for all.

    Raises:
        ValueError: Fewer than two trajectories, or a value that is not finite.

    Example:
        >>> reward_parts_z_score(torch.tensor([[1., 500.], [0., 100.]])).round(decimals=3)
        tensor([ 1.4140, -1.4140])
    """
    _check(part_KP)
    score_KP = _z_score(part_KP)
    if weight_P is None:
        return score_KP.sum(dim=1)
    _check_finite(weight_P)
    return (score_KP * weight_P.to(score_KP)).sum(dim=1)


def turn_returns(
    reward_KN: Float[Tensor, "K N"], mask_KN: Bool[Tensor, "K N"], *, gamma: float | int
) -> Float[Tensor, "K N"]:
    """Each turn's discounted return-to-go, z-scored against all K trajectories at that turn's index.

    A trajectory that has ended counts with return-to-go 0 there, so a turn is never compared only with those who are
    still playing.

    Args:
        reward_KN: Reward of each turn.
        mask_KN: True on turns that were taken; the rest may hold anything.
        gamma: Discount per turn, 0 to 1.

    Returns:
        Advantages of the turns; 0 where the mask is False.

    Raises:
        ValueError: Fewer than two trajectories, a reward that is not finite, or gamma outside its range.

    Example:
        >>> reward_KN, mask_KN = torch.tensor([[0., 1.], [0., 0.]]), torch.tensor([[True, True], [True, False]])
        >>> turn_returns(reward_KN, mask_KN, gamma=1.0).round(decimals=3)
        tensor([[ 0.7070,  0.7070],
                [-0.7070,  0.0000]])
    """
    _check(torch.where(mask_KN, reward_KN, torch.zeros_like(reward_KN)))
    score_KN = _z_score(returns_to_go(reward_KN, mask_KN, gamma=gamma))
    return torch.where(mask_KN, score_KN, torch.zeros_like(score_KN))


def step_groups(
    reward_KN: Float[Tensor, "K N"],
    mask_KN: Bool[Tensor, "K N"],
    state_ids_KN: Int[Tensor, "K N"],
    *,
    gamma: float | int,
    step_weight: float | int,
) -> Float[Tensor, "K N"]:
    """The trajectory's z-score plus ``step_weight`` times the turn's, among all turns that started from one state.

    Args:
        reward_KN: Reward of each turn.
        mask_KN: True on turns that were taken; the rest may hold anything.
        state_ids_KN: Equal for turns of the group that started from the same state (observation).
        gamma: Discount per turn, 0 to 1, of the return-to-go that turns are compared by.
        step_weight: Factor on the turn's z-score, >= 0; with 0 only the trajectory's is left.

    Returns:
        Advantages of the turns; 0 where the mask is False. The turn's z-score is 0 in a state that was met once.

    Raises:
        ValueError: Fewer than two trajectories, a reward that is not finite, or gamma outside its range.

    Example:
        >>> reward_KN, mask_KN = torch.tensor([[0., 1.], [0., 0.]]), torch.ones(2, 2, dtype=torch.bool)
        >>> step_groups(reward_KN, mask_KN, torch.tensor([[0, 1], [0, 2]]), gamma=1, step_weight=1).round(decimals=3)
        tensor([[ 1.4140,  0.7070],
                [-1.4140, -0.7070]])
    """
    zero_KN = torch.zeros_like(reward_KN)
    masked_KN = torch.where(mask_KN, reward_KN, zero_KN)
    _check(masked_KN)
    return_KN = returns_to_go(reward_KN, mask_KN, gamma=gamma)
    step_KN = zero_KN.clone()
    for state in state_ids_KN[mask_KN].unique().tolist():
        members_KN = mask_KN & (state_ids_KN == state)
        if int(members_KN.sum()) > 1:
            step_KN[members_KN] = _z_score(return_KN[members_KN])
    total_KN = _z_score(masked_KN.sum(dim=1))[:, None] + step_weight * step_KN
    return torch.where(mask_KN, total_KN, zero_KN)


def returns_to_go(
    reward_KN: Float[Tensor, "K N"], mask_KN: Bool[Tensor, "K N"], *, gamma: float | int
) -> Float[Tensor, "K N"]:
    """Sum over later turns j >= k of gamma^(j - k) times their reward.

    Args:
        reward_KN: Reward of each turn.
        mask_KN: True on turns that were taken; the others have no reward, whatever is there.
        gamma: Discount per turn, 0 to 1.

    Raises:
        ValueError: gamma outside its range.

    Example:
        >>> returns_to_go(torch.tensor([[0., 0., 1.]]), torch.tensor([[True, True, True]]), gamma=0.5)
        tensor([[0.2500, 0.5000, 1.0000]])
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma!r}; allowed: 0 to 1")
    return_KN = torch.where(mask_KN, reward_KN, torch.zeros_like(reward_KN))
    for turn in range(reward_KN.shape[1] - 2, -1, -1):
        return_KN[:, turn] += gamma * return_KN[:, turn + 1]
    return return_KN


def trajectory_mean_advantages(
    advantage_BT: Float[Tensor, "B T"], mask_BT: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Mean advantage over each trajectory's own tokens, spread to them: one advantage for one sequence ratio.

    Args:
        advantage_BT: Advantage of each token; anything where the mask is False.
        mask_BT: True on sampled tokens.

    Returns:
        Advantages that are equal within a trajectory; 0 where the mask is False.

    Example:
        >>> trajectory_mean_advantages(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
        tensor([[2., 2., 0.]])
    """
    zero_BT = torch.zeros_like(advantage_BT)
    total_B1 = torch.where(mask_BT, advantage_BT, zero_BT).sum(dim=1, keepdim=True)
    return torch.where(mask_BT, total_B1 / mask_BT.sum(dim=1, keepdim=True).clamp(min=1), zero_BT)


def _check(value_K: Tensor) -> None:
    if value_K.shape[0] < 2:
        raise ValueError(f"a group advantage compares trajectories: got {value_K.shape[0]}, needs at least 2")
    _check_finite(value_K)


def _check_finite(value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"returns, rewards and weights must be finite, got {value.tolist()}")


def _zero_if_equal(value_K: Tensor, advantage_K: Tensor) -> Tensor:
    """0 where all values along the first axis are equal: rounding never makes an advantage of nothing."""
    return torch.where((value_K == value_K[:1]).all(dim=0), torch.zeros_like(advantage_K), advantage_K)


def _z_score(value_K: Tensor, *, epsilon: float | int = EPSILON) -> Tensor:
    """Along the first axis, which has at least two members."""
    score_K = (value_K - value_K.mean(dim=0)) / (value_K.std(dim=0) + epsilon)
    return _zero_if_equal(value_K, score_K)

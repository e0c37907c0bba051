"""Weights for tokens that another policy sampled than the one the update starts from.

Shapes:  B trajectories · T tokens of the longest.
Source:  truncated importance sampling: Espeholt et al. 2018, arXiv:1802.01561 (IMPALA); decoupled objective (behaviour
         policy, proximal policy): Hilton et al. 2021, arXiv:2110.00641.

The engine that sampled and the learner that trains never agree exactly (kernels, precision, older weights). The policy
ratio compares the policy being trained with the learner's own; these weights carry the rest: learner over engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gspo_rllib.ops.ratios import token_log_ratio

CorrectionMode = Literal["truncate", "mask"]
"""What happens to a weight outside the range; see ``rollout_correction``."""

CorrectionLevel = Literal["token", "sequence_mean", "sequence_product"]
"""What one weight spans; see ``rollout_correction``."""

CORRECTION_MODES: tuple[str, ...] = get_args(CorrectionMode)

_MAX_LOG_WEIGHT = 80.0


def _each_token(log_weight_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return log_weight_BT


def _mean_of_tokens(log_weight_BT: Tensor, mask_BT: Tensor) -> Tensor:
    total_B1 = log_weight_BT.sum(dim=1, keepdim=True)
    return (total_B1 / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)).expand_as(log_weight_BT)


def _sum_of_tokens(log_weight_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return log_weight_BT.sum(dim=1, keepdim=True).expand_as(log_weight_BT)


@dataclasses.dataclass(frozen=True)
class CorrectionLevelTraits:
    """What follows from the level of a correction.

    Attributes:
        combine: Log-weights of the tokens (0 where the mask is False) and mask -> the log-weights at this level.
        grows_with_length: Whether the spread of the weights grows with the number of tokens.
    """

    combine: Callable[[Tensor, Tensor], Tensor]
    grows_with_length: bool = False


CORRECTION_LEVELS: dict[str, CorrectionLevelTraits] = {
    "token": CorrectionLevelTraits(_each_token),
    "sequence_mean": CorrectionLevelTraits(_mean_of_tokens),
    "sequence_product": CorrectionLevelTraits(_sum_of_tokens, grows_with_length=True),
}
"""Every ``CorrectionLevel`` and what follows from it."""


def rollout_correction(
    old_logp_BT: Float[Tensor, "B T"],
    behavior_logp_BT: Float[Tensor, "B T"],
    mask_BT: Bool[Tensor, "B T"],
    *,
    mode: CorrectionMode,
    level: CorrectionLevel,
    low: float | int,
    high: float | int,
) -> Float[Tensor, "B T"]:
    """Importance weights w = old policy / policy that sampled, kept in a range; for ``policy_loss``.

    Args:
        old_logp_BT: Log-probabilities (nats) of the sampled tokens by the learner, before its first update.
        behavior_logp_BT: The same tokens by the engine that sampled them.
        mask_BT: True on sampled tokens; the rest may hold anything.
        mode: ``"truncate"``: min(w, high), ``low`` is not used; ``"mask"``: w inside the range, 0 outside, so that
            the token (the trajectory, at sequence level) is left out.
        level: ``"token"``: one weight per token; ``"sequence_mean"``: the geometric mean over each trajectory's own
            tokens, which does not depend on length; ``"sequence_product"``: their product, the exact importance
            weight of the trajectory, whose spread grows with length.
        low: Smallest weight that ``"mask"`` keeps, >= 0.
        high: Largest weight, > 0 and >= low.

    Returns:
        Detached weights; 0 where the mask is False.

    Raises:
        ValueError: An unknown mode or level, or a range that is not allowed.

    Example:
        >>> old_BT, behavior_BT = torch.tensor([[2.0, 8.0]]).log(), torch.tensor([[1.0, 2.0]]).log()
        >>> mask_BT = torch.tensor([[True, True]])
        >>> rollout_correction(old_BT, behavior_BT, mask_BT, mode="truncate", level="token", low=0.0, high=3.0)
        tensor([[2., 3.]])
        >>> rollout_correction(old_BT, behavior_BT, mask_BT, mode="mask", level="sequence_product", low=0.5, high=5.0)
        tensor([[0., 0.]])
    """
    if mode not in CORRECTION_MODES:
        raise ValueError(f"mode={mode!r}; allowed: {', '.join(CORRECTION_MODES)}")
    if level not in CORRECTION_LEVELS:
        raise ValueError(f"level={level!r}; allowed: {', '.join(CORRECTION_LEVELS)}")
    if not (0 <= low <= high and high > 0):
        raise ValueError(f"low={low!r}, high={high!r}; allowed: 0 <= low <= high and high > 0")
    log_weight_BT = token_log_ratio(old_logp_BT.detach(), behavior_logp_BT.detach(), mask_BT)
    log_weight_BT = CORRECTION_LEVELS[level].combine(log_weight_BT, mask_BT)
    weight_BT = log_weight_BT.clamp(max=_MAX_LOG_WEIGHT).exp()
    zero_BT = torch.zeros_like(weight_BT)
    if mode == "mask":
        weight_BT = torch.where((weight_BT >= low) & (weight_BT <= high), weight_BT, zero_BT)
    return torch.where(mask_BT, weight_BT.clamp(max=high), zero_BT)

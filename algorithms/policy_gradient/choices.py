"""Values of settings that only this folder uses, each with what follows from it; the others are beside their code.

Ratio levels, surrogates, reductions, divergences and correction levels: ``gspo_rllib.ops``; advantage estimators:
``gspo_rllib.connectors``; groups: ``gspo_rllib.driver.selection``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from gspo_rllib.ops import CorrectionMode, trajectory_mean_advantages

ADVANTAGE_AGGREGATIONS: dict[str, Callable[[Tensor, Tensor], Tensor] | None] = {
    "none": None,
    "trajectory_mean": trajectory_mean_advantages,
}
"""Every ``advantage_aggregation``: (advantages, mask) -> the advantages that are used; None leaves them as they are."""


@dataclasses.dataclass(frozen=True)
class ClipScalingTraits:
    """What follows from a way to scale the clip range.

    Attributes:
        by_length: Whether each trajectory has a range of its own.
        towards_target: Whether the range moves after every update.
        measures: Whether the range is what the run measures, ``clip_low`` and ``clip_high`` are not used, and every
            trajectory or turn has its own.
    """

    by_length: bool = False
    towards_target: bool = False
    measures: bool = False

    @property
    def scales(self) -> bool:
        """Whether the range ever differs from ``clip_low`` … ``clip_high``."""
        return self.by_length or self.towards_target or self.measures


CLIP_SCALINGS: dict[str, ClipScalingTraits] = {
    "none": ClipScalingTraits(),
    "length": ClipScalingTraits(by_length=True),
    "target": ClipScalingTraits(towards_target=True),
    "deviations": ClipScalingTraits(measures=True),
}
"""Every ``clip_scaling`` and what follows from it."""

KL_IN_LOSS: dict[str, bool] = {"loss": True, "reward": False}
"""Every ``kl_placement``, and whether the penalty is part of the loss; elsewhere it is part of the reward."""

LEARNER_RECOMPUTES: dict[str, bool | None] = {"auto": None, "engine": False, "learner": True}
"""Every ``old_log_probs``, and whether the learner computes them; None: other settings and the noise decide."""

ROLLOUT_CORRECTIONS: dict[str, CorrectionMode | None] = {"none": None, "truncate": "truncate", "mask": "mask"}
"""Every ``rollout_correction``, and the mode of ``gspo_rllib.ops.rollout_correction`` that it is; None: no weight."""

SCHEDULES: dict[str, bool] = {"free": False, "fixed_lag": True}
"""Every ``schedule``, and whether what is trained next is decided by number instead of by the clock."""

"""Keeps the weights out of the driver while RLlib sets up an algorithm whose learners are in actors."""

from __future__ import annotations

from typing import Any

from ray.rllib.core import COMPONENT_LEARNER
from ray.rllib.core.learner.learner_group import LearnerGroup


class KeepsWeightsOutOfTheDriver(LearnerGroup):
    """RLlib's ``LearnerGroup``; while an algorithm is set up, it has no weights to hand out.

    RLlib copies them all into the driver then, for env runners that get theirs from ``weight_sync.Weights`` a moment
    later, without a detour through the driver.

    Attributes:
        is_set_up: Whether that is over.
    """

    is_set_up: bool = False

    def get_state(self, components: Any = None, *, inference_only: bool = False, **kwargs: Any) -> dict[str, Any]:
        """RLlib's."""
        if self.is_remote and inference_only and not self.is_set_up:
            return {COMPONENT_LEARNER: {}}
        state: dict[str, Any] = super().get_state(components, inference_only=inference_only, **kwargs)
        return state

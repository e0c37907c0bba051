"""The clip range of ``clip_scaling="deviations"``: measured in the run, for every length, and never by what it permits.

What is measured is how far *one* optimiser step moves log-ratios, on the second minibatch of each update. The first
minibatch starts at ratio 1 and is never clipped, so that step is the same whatever the range: a wider range cannot make
the measurement wider, and so itself. Measured after later steps it could, and does (docs/objectives.md). A log-ratio
counts as at most the widest range, which bounds the average too: a step that exploded is forgotten within some updates.

An optimiser's first step is not counted. Adam has no averages then and moves every weight by its whole learning rate,
five to ten times as far as later; until more is known, the range is the widest there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.learners.statistics import LOG_RATIO_MOMENTS, UpdateStatistics
from gspo_rllib.ops import (
    SpreadMoments,
    blend_moments,
    clip_span,
    deviations_clip_range,
    fit_spread,
    log_ratio,
    ratio_lengths,
    spread_sums,
)
from gspo_rllib.ops.clip_scaling import WIDEST_TOKEN_RANGE

NEW_SHARE = 0.2
"""Least weight of an update in the moving average; the first ones weigh alike. An update measures some ten to hundred
trajectories, most of which hardly move, so that one alone is off by half; a new learning rate counts within five."""

UPDATES = "updates"
"""Key in the state: how many updates have measured a step."""

STEP, NOISE = LOG_RATIO_MOMENTS


class MeasuredClipRange:
    """A range of ``clip_deviations`` standard deviations of what one optimiser step does to a log-ratio.

    Args:
        settings: The training settings of the algorithm.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self._span = clip_span(settings.importance_sampling_level, settings.surrogate)
        self._moments: dict[str, SpreadMoments | None] = dict.fromkeys(LOG_RATIO_MOMENTS)
        self._updates = 0

    def bounds(self, mask_BT: Tensor, turn_ids_BT: Tensor, *, has_noise: bool) -> tuple[Tensor, Tensor]:
        """``clip_low`` and ``clip_high`` of each token.

        Args:
            mask_BT: True on sampled tokens.
            turn_ids_BT: Turn of each sampled token.
            has_noise: Whether the engine's log-probs are below the ratio, and their noise hence in it.
        """
        step, noise = self._moments[STEP], self._moments[NOISE] if has_noise else None
        return deviations_clip_range(
            ratio_lengths(mask_BT, turn_ids_BT, span=self._span),
            step=fit_spread(step) if step else None,
            noise=fit_spread(noise) if noise else None,
            deviations=self._settings.clip_deviations,
        )

    def typical(self) -> float | None:
        """The range (of log s) at the lengths there were, without regard to noise; None before anything is measured."""
        step = self._moments[STEP]
        measured = step or self._moments[NOISE]
        if measured is None:
            return None
        widest = WIDEST_TOKEN_RANGE * math.sqrt(measured.inverse_length)
        return min(self._settings.clip_deviations * math.sqrt(step.square), widest) if step else widest

    def measure(
        self,
        kind: str,
        logp_BT: Tensor,
        old_logp_BT: Tensor,
        mask_BT: Tensor,
        turn_ids_BT: Tensor,
        statistics: UpdateStatistics,
    ) -> None:
        """Adds a micro-batch's log-ratios to an update's statistics.

        Args:
            kind: ``STEP``: after one step; ``NOISE``: engine and learner at equal weights.
            logp_BT: Log-probabilities (nats) of the learner.
            old_logp_BT: What they are compared with.
            mask_BT: True on sampled tokens.
            turn_ids_BT: Turn of each sampled token.
            statistics: The update's own, which they are added to.
        """
        log_ratio_BT = log_ratio(
            logp_BT, old_logp_BT, mask_BT, level=self._settings.importance_sampling_level, turn_ids_BT=turn_ids_BT
        )
        length_BT = ratio_lengths(mask_BT, turn_ids_BT, span=self._span)
        statistics.add_moments(kind, *spread_sums(log_ratio_BT, length_BT, mask_BT, largest=WIDEST_TOKEN_RANGE))

    def follow(self, values: dict[str, float]) -> None:
        """Takes what an update measured, over all learners, out of its values and into the averages."""
        measured = {
            kind: SpreadMoments(*(values.pop(name, math.nan) for name in names))
            for kind, names in LOG_RATIO_MOMENTS.items()
        }
        # A policy that is not a number measures nothing; its step was not taken either.
        if all(map(math.isfinite, measured[NOISE])):
            self._moments[NOISE] = blend_moments(self._moments[NOISE], measured[NOISE], weight=NEW_SHARE)
        if all(map(math.isfinite, measured[STEP])):
            if self._updates:
                weight = max(NEW_SHARE, 1 / self._updates)
                self._moments[STEP] = blend_moments(self._moments[STEP], measured[STEP], weight=weight)
            self._updates += 1

    def get_state(self) -> dict[str, Any]:
        """The averages, as numbers."""
        averages = {kind: list(moments) if moments else None for kind, moments in self._moments.items()}
        return {**averages, UPDATES: self._updates}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores what ``get_state`` returned; what it lacks is not measured yet."""
        self._moments = {kind: SpreadMoments(*state[kind]) if state.get(kind) else None for kind in LOG_RATIO_MOMENTS}
        self._updates = state.get(UPDATES, 0)

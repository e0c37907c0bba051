"""Watches the clip range: says when it does nothing, nothing else, or only reacts to numerical noise, and why.

The paper reports about 15 % of trajectories clipped. What was measured after each update is compared with that and
with the noise floor: how far engine and learner are apart at the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gspo_rllib.algorithms.policy_gradient.choices import CLIP_SCALINGS, LEARNER_RECOMPUTES
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.learners import statistics
from gspo_rllib.ops import SURROGATES, Span, clip_span

INERT_BELOW = 1e-3
"""Clip fraction below which the clip has practically no effect."""

SATURATED_ABOVE = 0.5
"""Clip fraction above which most of the batch has no gradient."""

PATIENCE = 3
"""Consecutive iterations before the clip fraction is called inert or saturated."""

WRONG_TOKENS_GAP = 1.0
"""Nats between engine and learner for one token that no rounding explains: they score different things."""


class ClipMonitor:
    """Turns the statistics of updates into warnings, each once until its condition has gone.

    Args:
        settings: The training settings of the algorithm.
    """

    def __init__(self, settings: TrainingSettings) -> None:
        self._settings = settings
        self._span = clip_span(settings.importance_sampling_level, settings.surrogate)
        # With "auto" the learner stops using the engine's log-probs by itself once they are noisy.
        self._uses_engine = LEARNER_RECOMPUTES[settings.old_log_probs] is False
        self._streaks: dict[str, int] = {}

    def check(self, values: Mapping[str, Any]) -> list[str]:
        """What there is to warn about after an update.

        Args:
            values: Statistics of the update, by their names in ``gspo_rllib.learners.statistics``.
        """
        if not SURROGATES[self._settings.surrogate].clips_gradient:
            return []
        fraction = values.get(statistics.CLIP_FRACTION, math.nan)
        if math.isnan(values.get(statistics.ABS_LOG_RATIO_MEAN, 0.0)):
            fraction = math.nan  # of no trajectory
        floor = values.get(statistics.SEQUENCE_GAP_MEAN, math.nan)
        # Token ratios are normally clipped at about one token in a thousand, so a low fraction means nothing there; and
        # the noise floor is measured for trajectories.
        averaged = self._span is not Span.TOKEN
        findings = {
            "floor": (floor, averaged and self._uses_engine and floor >= self._range(values), 1),
            "inert": (fraction, averaged and fraction < INERT_BELOW, PATIENCE),
            "saturated": (fraction, fraction > SATURATED_ABOVE, PATIENCE),
        }
        warnings = []
        for name, (measured, found, patience) in findings.items():
            # An update without a gradient measures nothing, and says nothing about the condition either.
            if not math.isfinite(measured):
                continue
            self._streaks[name] = self._streaks.get(name, 0) + 1 if found else 0
            if found and self._streaks[name] == patience:
                warnings.append(getattr(self, f"_describe_{name}")(values))
        return warnings

    @property
    def _unit(self) -> str:
        return "trajectories" if self._span is Span.TRAJECTORY else "a trajectory's tokens"

    @property
    def _usual(self) -> str:
        return " (the paper reports about 15 %)" if self._span is Span.TRAJECTORY else ""

    @property
    def _knob(self) -> str:
        measures = CLIP_SCALINGS[self._settings.clip_scaling].measures
        return "training.clip_deviations" if measures else "training.clip_low and clip_high"

    def _range(self, values: Mapping[str, float]) -> float:
        if statistics.CLIP_RANGE_MEAN in values:
            return values[statistics.CLIP_RANGE_MEAN]
        scale = values.get(statistics.CLIP_SCALE, 1.0)
        return scale * min(self._settings.clip_low, self._settings.clip_high)

    def _describe_floor(self, values: Mapping[str, float]) -> str:
        return (
            f"clip range {self._range(values):.1e} is below the noise floor: at the same weights |log s| between "
            f"engine and learner is {values[statistics.SEQUENCE_GAP_MEAN]:.1e} on average, so trajectories are clipped "
            'for numerical noise. Set training.old_log_probs="learner", compute both in float32, or widen the range.'
        )

    def _describe_inert(self, values: Mapping[str, float]) -> str:
        return (
            f"clipping is inert: {values[statistics.CLIP_FRACTION]:.2%} of {self._unit} in each of {PATIENCE} updates"
            f"{self._usual}. Likely cause: {self._why_inert(values)}"
        )

    def _why_inert(self, values: Mapping[str, float]) -> str:
        if self._settings.num_minibatches * self._settings.num_epochs == 1:
            return "one optimiser step per iteration, so the ratio is always 1; raise training.num_minibatches."
        moved = values.get(statistics.ABS_LOG_RATIO_MEAN, 0.0)
        return (
            f"the range is far wider than what one update moves (mean |log s| {moved:.1e} against "
            f"{self._range(values):.1e}); narrow {self._knob}, or raise training.lr if learning is slow too."
        )

    def _describe_saturated(self, values: Mapping[str, float]) -> str:
        return (
            f"clipping is saturated: {values[statistics.CLIP_FRACTION]:.0%} of {self._unit} in each of {PATIENCE} "
            f"updates{self._usual}. Likely cause: {self._why_saturated(values)}"
        )

    def _why_saturated(self, values: Mapping[str, float]) -> str:
        staleness = values.get(statistics.STALENESS, 0.0)
        if staleness > 0:
            return (
                f"staleness: trajectories are {staleness:.1f} weights versions old on average; train on fresher ones "
                "or widen the range."
            )
        gap = values.get(statistics.LOGP_GAP_MAX, 0.0)
        if gap > WRONG_TOKENS_GAP:
            return (
                f"a mask or a mismatch: one token's log-prob differs by {gap:.1f} nats between engine and learner at "
                "the same weights, so they score different tokens or distributions (temperature, chat template, head)."
            )
        floor = values.get(statistics.SEQUENCE_GAP_MEAN, 0.0)
        if floor >= self._range(values) and self._uses_engine:
            return f'engine mismatch: the noise floor is {floor:.1e}; set training.old_log_probs="learner".'
        moved = values.get(statistics.ABS_LOG_RATIO_MEAN, 0.0)
        return (
            f"the learning rate: one update moves |log s| by {moved:.1e} on average, the range is "
            f"{self._range(values):.1e}; lower training.lr, or widen {self._knob}."
        )

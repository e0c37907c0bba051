"""What a run's evaluations say about it: its best so far, and whether it has fallen far below that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EVALUATED = "evaluation/env_runners/"
"""Where a flat result keeps the metrics of an evaluation."""

SAMPLED = "env_runners/"
"""Where it keeps those of the training groups."""

Flat = Mapping[str, Any]

COLLAPSE_ERRORS = 3.0
"""Standard errors of the difference that a fall must exceed, so that no evaluation's luck passes for a collapse."""


@dataclass(frozen=True, slots=True)
class Score:
    """How well an evaluation, or an iteration's training groups, went.

    Attributes:
        iteration: The training iteration it belongs to.
        value: Share of trajectories that succeeded, or the mean return where the environment reports no success.
        error: Standard error of the value, over tasks; NaN where it is not known.
        is_success: Whether the value is a share of successes.
    """

    iteration: int
    value: float
    error: float
    is_success: bool

    @classmethod
    def of(cls, flat: Flat, place: str) -> Score | None:
        """The score in a flat result; None where there is none.

        Args:
            flat: A result with its keys joined by ``/``.
            place: ``EVALUATED`` or ``SAMPLED``.
        """
        success = flat.get(f"{place}success_mean")
        value = success if success is not None else flat.get(f"{place}episode_return_mean")
        if value is None or math.isnan(value):
            return None
        groups = flat.get(f"{place}num_groups") or 0
        square = flat.get(f"{place}success_group_square_mean") if success is not None else None
        known = square is not None and groups > 1
        error = math.sqrt(max(0.0, square - value**2) / (groups - 1)) if known else math.nan
        return cls(int(flat["training_iteration"]), float(value), error, success is not None)

    def __str__(self) -> str:
        """As people read it.

        Example:
            >>> str(Score(3, 0.40625, 0.0434, True)), str(Score(3, 0.5, float("nan"), True))
            ('41±4%', '50%')
            >>> str(Score(3, -12.345, float("nan"), False))
            '-12.345'
        """
        if not self.is_success:
            return f"{self.value:.3f}"
        error = "" if math.isnan(self.error) else f"±{100 * self.error:.0f}"
        return f"{100 * self.value:.0f}{error}%"


def has_collapsed(now: Score, best: Score) -> bool:
    """Whether a policy that was good is lost: less than half of its best success, and that is no matter of luck.

    Args:
        now: The latest evaluation.
        best: The best one before it.

    Example:
        >>> best = Score(10, 0.8, 0.04, True)
        >>> has_collapsed(Score(15, 0.1, 0.03, True), best), has_collapsed(Score(15, 0.5, 0.04, True), best)
        (True, False)
        >>> has_collapsed(Score(15, 0.0, 0.0, True), Score(10, 0.06, 0.04, True))
        False
    """
    luck = COLLAPSE_ERRORS * math.hypot(now.error, best.error)
    return now.is_success and now.value < best.value / 2 and best.value - now.value > luck

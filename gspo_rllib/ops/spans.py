"""How many sampled tokens share one value: a ratio, an advantage, a decision of the clip, a place in a mean."""

from __future__ import annotations

import enum


class Span(enum.IntEnum):
    """The sampled tokens that share one value; of two spans the greater is the finer.

    Example:
        >>> Span.TOKEN > Span.TRAJECTORY
        True
    """

    TRAJECTORY = 0
    TURN = 1
    TOKEN = 2

"""The space of texts: what a language environment shows, and what it accepts.

Gymnasium's ``Text`` holds only the characters of its charset, and a charset of all Unicode takes 20 s to build.
"""

from __future__ import annotations

import string
from typing import Any

import numpy as np
from gymnasium import spaces

_SAMPLE_LENGTH = 64


class UnicodeText(spaces.Text):
    """Any string up to a length, the empty one included.

    Args:
        max_length: Longest string in characters.
        seed: Seeds ``sample()``.

    Example:
        >>> "x + \u00e9 = ?\\n" in UnicodeText()
        True
        >>> "four" in UnicodeText(max_length=3), 4 in UnicodeText()
        (False, False)
        >>> UnicodeText(max_length=3)
        UnicodeText(max_length=3)
    """

    def __init__(self, max_length: int = 1_000_000, *, seed: int | np.random.Generator | None = None) -> None:
        # A string, not a set: the order of a set differs from process to process, and with it what is sampled.
        super().__init__(max_length, min_length=0, charset=string.printable, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a string of at most ``max_length`` characters, whichever they are."""
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """A random printable string of at most 64 characters, unless a mask or probability sets its length."""
        if mask is None and probability is None:
            length = int(self.np_random.integers(min(_SAMPLE_LENGTH, self.max_length) + 1))
            mask = (length, None)
        text: str = super().sample(mask=mask, probability=probability)
        return text

    def __repr__(self) -> str:
        return f"UnicodeText(max_length={self.max_length})"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, UnicodeText) and self.max_length == other.max_length

"""Everything random is a function of names, never of a process's random state.

So what is sampled, and in which order it is trained on, depends neither on which process does the work nor on when.
"""

from __future__ import annotations

import hashlib


def derive_seed(*names: object, bits: int) -> int:
    """A seed that depends only on names.

    Args:
        names: What the seed belongs to; compared by their ``str``.
        bits: The result is in [0, 2**bits), at most 256.

    Example:
        >>> derive_seed(0, "train", "1/0", 0, bits=31) == derive_seed(0, "train", "1/0", 0, bits=31)
        True
        >>> derive_seed(0, "train", "1/0", 0, bits=31) == derive_seed(0, "train", "1/0", 1, bits=31)
        False
    """
    digest = hashlib.sha256("\x1f".join(map(str, names)).encode()).digest()
    return int.from_bytes(digest, "big") >> (256 - bits)

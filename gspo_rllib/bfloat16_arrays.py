"""bfloat16 as numpy arrays, which have no such numbers: for what travels through Ray's object store.

An array of these has the one field ``bfloat16``, the 16 bits of each number; it is mapped and sliced like any other.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

BFLOAT16 = np.dtype([("bfloat16", np.uint16)])


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as an array; one on the CPU shares its memory.

    Args:
        tensor: A tensor of any shape, on any device.

    Example:
        >>> to_array(torch.ones(2, dtype=torch.bfloat16)).nbytes
        4
    """
    here = tensor.detach().cpu()
    if here.dtype != torch.bfloat16:
        return here.numpy()
    return here.contiguous().view(torch.uint16).numpy().view(BFLOAT16)


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """An array as a tensor that shares its memory where it can; only to be read.

    Args:
        array: Any that ``to_array`` makes; it may be read-only, as arrays out of Ray's object store are.

    Example:
        >>> to_tensor(to_array(torch.full((1, 2), 0.1, dtype=torch.bfloat16)))
        tensor([[0.1001, 0.1001]], dtype=torch.bfloat16)
    """
    ordered = np.asarray(array, order="C")  # ascontiguousarray makes a scalar a vector
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        if ordered.dtype == BFLOAT16:
            return torch.from_numpy(ordered.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(ordered)

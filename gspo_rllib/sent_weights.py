"""Weights in Ray's object store, one object for each tensor: whoever sends or takes them holds one beside it at most.

Learners that share a model gather it so, tensor by tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from gspo_rllib.errors import WeightSyncError
from gspo_rllib.lent_weights import LentWeights


@dataclass(frozen=True, slots=True)
class SentWeights:
    """A whole ``state_dict`` under Hugging Face names.

    Attributes:
        numbers: Name to index in ``arrays``; a tensor under two names has one.
        arrays: Each an array.
    """

    numbers: Mapping[str, int]
    arrays: Sequence[ray.ObjectRef]

    def fetch(self) -> dict[str, np.ndarray]:
        """The arrays by name, mapped out of the object store where it is this machine's."""
        arrays = ray.get(list(self.arrays))
        return {name: arrays[number] for name, number in self.numbers.items()}


def sent(weights: Any) -> ray.ObjectRef:
    """Weights in the object store.

    Raises:
        WeightSyncError: There is no room.
    """
    with _room_needed():
        return ray.put(weights)


def fetched(named_weights: Any) -> Any:
    """Weights as arrays or tensors by name, wherever they are.

    Args:
        named_weights: Arrays or tensors by name, ``SentWeights``, ``LentWeights``, or a reference to one of these.

    Raises:
        WeightSyncError: There was no room for them in the object store.
    """
    with _room_needed():
        here = ray.get(named_weights) if isinstance(named_weights, ray.ObjectRef) else named_weights
        return here.fetch() if isinstance(here, SentWeights | LentWeights) else here


@contextlib.contextmanager
def _room_needed() -> Iterator[None]:
    try:
        yield
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise WeightSyncError(
            "Ray's object store has no room for the weights, and the disk that it spills to is full: make room there "
            "(under Ray's temp folder, /tmp/ray by default), or start Ray with a larger object_store_memory, and go "
            "on from the last checkpoint."
        ) from error

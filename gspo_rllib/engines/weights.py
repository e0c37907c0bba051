"""Weight updates as every engine sees them: what is refused before anything changes, arrays as tensors, and which
weights sampled which token of a request that an update did not wait for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gspo_rllib.bfloat16_arrays import to_array, to_tensor
from gspo_rllib.engines.protocol import Engine
from gspo_rllib.errors import WeightSyncError, did_you_mean

NamedWeights = Mapping[str, "np.ndarray | torch.Tensor"]
"""A whole ``state_dict`` under Hugging Face names: arrays, or tensors on the learner's device."""


def for_engine(engine: Engine, named_weights: NamedWeights) -> Mapping[str, Any]:
    """The weights as an engine takes them: arrays, unless it says that it ``loads_tensors``."""
    return named_weights if getattr(engine, "loads_tensors", False) else on_host(named_weights)


def on_host(named_weights: NamedWeights) -> dict[str, np.ndarray]:
    """The weights as arrays; a tensor under two names stays one array.

    Args:
        named_weights: Arrays, which are returned as they are, or tensors on any device.
    """
    arrays: dict[int, np.ndarray] = {}
    for value in named_weights.values():
        if id(value) not in arrays:
            arrays[id(value)] = to_array(value) if isinstance(value, torch.Tensor) else value
    return {name: arrays[id(value)] for name, value in named_weights.items()}


def check_idle(unfinished: int) -> None:
    """Refuses a weight update while requests are running: their cached keys would belong to other weights.

    Raises:
        WeightSyncError: ``unfinished`` is not 0.
    """
    if unfinished:
        raise WeightSyncError(
            f"{unfinished} requests are unfinished; weights can only change between requests. Call step() until "
            "has_work() is False, abort them, or pass keep_running=True where the engine's can_update_while_running is "
            "True."
        )


def check_weights(named_weights: NamedWeights, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a weight update that is not exactly the model's ``state_dict``.

    Args:
        named_weights: The update, name to array.
        shapes: Name and shape of every entry of the engine's own ``state_dict``.

    Raises:
        WeightSyncError: A name is missing, unknown, or has another shape.
    """
    missing = sorted(shapes.keys() - named_weights.keys())
    if missing:
        raise WeightSyncError(
            f"weight update lacks {len(missing)} of {len(shapes)} names, e.g. {missing[:3]}. Send the whole "
            "state_dict(), a tied head under both of its names."
        )
    unknown = sorted(named_weights.keys() - shapes.keys())
    if unknown:
        raise WeightSyncError(
            f"weight update holds {len(unknown)} unknown names, e.g. {unknown[:3]}. {did_you_mean(unknown[0], shapes)} "
            "The engine and the learner must be built from the same model folder."
        )
    for name, array in named_weights.items():
        if tuple(array.shape) != tuple(shapes[name]):
            raise WeightSyncError(
                f"weight {name!r} has shape {tuple(array.shape)}; the engine's model has {tuple(shapes[name])}. The "
                "engine and the learner must be built from the same model folder."
            )


def without_tied(named_weights: NamedWeights, tied: Mapping[str, str]) -> dict[str, np.ndarray | torch.Tensor]:
    """The update with every tied tensor under one name only, as a safetensors file holds it.

    Args:
        named_weights: The update, name to array, tied tensors under both names.
        tied: Second name to first name of each tied tensor (transformers' ``all_tied_weights_keys``).

    Raises:
        WeightSyncError: Two names of one tensor carry different values, so the learner's model is not tied.
    """
    for second, first in tied.items():
        if named_weights[second] is named_weights[first]:
            continue
        if not torch.equal(as_tensor(named_weights[second]), as_tensor(named_weights[first])):
            raise WeightSyncError(
                f"{second!r} and {first!r} are one tensor in the engine's model but differ in the update. The learner "
                "must tie them too (tie_word_embeddings in config.json)."
            )
    return {name: array for name, array in named_weights.items() if name not in tied}


def as_tensor(array: np.ndarray | torch.Tensor) -> torch.Tensor:
    """The array as a tensor that shares its memory where it can; only to be read.

    Args:
        array: An array of any shape; may be read-only, as arrays out of Ray's object store are. A tensor is returned
            as it is, on its device.
    """
    return array if isinstance(array, torch.Tensor) else to_tensor(array)


class TokenVersions:
    """Which weights sampled each token of the requests that were running when weights changed."""

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[int, int]]] = {}

    def weights_change(self, num_sampled: Mapping[str, int], version: int) -> None:
        """Notes an update, before it happens.

        Args:
            num_sampled: Tokens sampled so far by each running request.
            version: Version of the weights that the update replaces.
        """
        for request_id, count in num_sampled.items():
            if count:
                self._spans.setdefault(request_id, []).append((count, version))

    def forget(self, request_id: str) -> None:
        """Forgets an aborted request."""
        self._spans.pop(request_id, None)

    def take(self, request_id: str, num_tokens: int, version: int) -> np.ndarray | None:
        """The versions of a finished request, which is forgotten.

        Args:
            request_id: Id of the request.
            num_tokens: Number of tokens the request sampled.
            version: Version of the weights that sampled the last of these tokens.

        Returns:
            int32 [num_tokens], the version that sampled each token; None when ``version`` sampled all of them.
        """
        spans = self._spans.pop(request_id, None)
        if spans is None:
            return None
        versions = np.full(num_tokens, version, dtype=np.int32)
        start = 0
        for stop, old in spans:
            versions[start:stop] = old
            start = stop
        return versions if (versions != version).any() else None

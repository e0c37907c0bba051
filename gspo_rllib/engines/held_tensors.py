"""What a model holds, in a few numbers per tensor: enough to see whether loading weights changed it.

A fixed sample of every tensor is kept, not a sum over all of it: reading all weights once more would cost a tenth of a
weight update, and a tensor that was loaded differs in nearly every number.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch

_SAMPLE = 64  # numbers of each tensor
_MOVED = 0.05  # share of its sample: a tensor that moved this much has others of its numbers moved, too


class HeldTensors:
    """A sample of each of a model's parameters, or of any named tensors.

    Args:
        tensors: Names and tensors; those without a number are left out.
        dtype: Precision in which they are compared.
        packed: Names and objects that stand for weights the model keeps where nobody can read them; one that was loaded
            is another object.
    """

    def __init__(
        self,
        tensors: Iterable[tuple[str, torch.Tensor]],
        *,
        dtype: torch.dtype,
        packed: Mapping[str, Any] | None = None,
    ) -> None:
        named = [(name, tensor.detach()) for name, tensor in tensors if tensor.numel() and not tensor.is_meta]
        samples = [_sample(tensor).to(dtype) for _, tensor in named]
        self._sizes = {name: len(sample) for (name, _), sample in zip(named, samples, strict=True)}
        self._values = torch.cat(samples).cpu() if samples else torch.zeros(0, dtype=dtype)
        # Not the object: that would keep a second copy of the weights alive.
        self._packed = {name: weakref.ref(item) for name, item in (packed or {}).items()}

    def moved(self, later: HeldTensors) -> dict[str, float]:
        """Share of its sample that changed, for each tensor that both have; 1 or 0 where it cannot be read.

        Args:
            later: The same model afterwards.
        """
        shares = {}
        if self._sizes == later._sizes:
            sizes = list(self._sizes.values())
            differs = (self._values != later._values).float().split(sizes) if sizes else ()
            shares = {name: float(part.mean()) for name, part in zip(self._sizes, differs, strict=True)}
        for name, item in self._packed.items():
            if name in later._packed:
                shares[name] = float(item() is None or item() is not later._packed[name]())
        return shares


def lost(sent: Mapping[str, float], held: Mapping[str, float], loadable: Iterable[str]) -> list[str]:
    """Tensors of an engine that an update should have changed and did not.

    Which of the engine's tensors hold which of those sent is the engine's secret. So this asks for a change of each
    only where all that was sent has moved, and otherwise for a change of any.

    Args:
        sent: Share of each tensor sent that differs from what was sent before, in the engine's precision.
        held: Share of each of the engine's tensors that changed.
        loadable: Names of those that an earlier update changed.

    Example:
        >>> lost({"q": 1.0, "k": 0.9}, {"qk": 0.0, "norm": 1.0}, ["qk", "norm"])
        ['qk']
        >>> lost({"q": 1.0, "k": 0.0}, {"qk": 0.0, "norm": 1.0}, ["qk", "norm"])
        []
    """
    if not sent or max(sent.values()) < _MOVED:
        return []
    unchanged = [name for name in loadable if held.get(name, 1.0) == 0.0]
    all_moved = min(sent.values()) >= _MOVED
    return unchanged if all_moved or not any(held.values()) else []


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.flatten()
    return flat[:: max(1, len(flat) // _SAMPLE)][:_SAMPLE]

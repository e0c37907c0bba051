"""What the layers of a model keep for the backward pass: observed while a short row runs, then worked out for any row.

Shapes: N layers · T tokens of a row · D hidden.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ATTENTION = (torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,)
"""The operations whose outputs are worth keeping where the rest is recomputed."""

_LARGE = 0.2
"""Share of what its layer keeps that a part must keep to be worth computing in tiles."""

_NOISE = 1e-5
"""Difference between a token's output alone and among others that is rounding, as a share of the largest output."""

_GRADIENTS, _GRADIENTS_OF_ALL = 0.5, 0.35
"""Gradients that are there at a time, as a share of what was saved: by a gated part of three matrices, which has those
of two products of its width while four of that width are kept; by a layer of which no such part is known."""


class Observer:
    """Counts the bytes that each layer saves while a pass runs.

    Args:
        layers: The layers of the models that run, in their order.
        weights: Parameters and buffers of those models, which no pass takes memory for.

    Attributes:
        kept: [N] bytes saved by each layer.
        entering: [N] bytes of what comes into each.
        attention: [N] bytes of what attention returns in each.
        parts: Bytes that were saved inside each child of each layer.
        other: Bytes saved outside the layers.
        tokenwise: The child of each layer that saves most among those that treat each token alone; None for none.
    """

    def __init__(self, layers: Sequence[torch.nn.Module], weights: Iterable[Tensor]) -> None:
        self._layers = layers
        self.kept, self.entering, self.attention = (np.zeros(len(layers)) for _ in range(3))
        self.parts: list[defaultdict[str, float]] = [defaultdict(float) for _ in layers]
        self.other = 0.0
        self.tokenwise: list[str | None] = [None] * len(layers)
        self._layer: int | None = None
        self._part: str | None = None
        self._storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in weights}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around the pass."""
        with torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor), _Outputs(self):
            yield

    @contextmanager
    def layer(self, index: int, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[None]:
        """Around a layer: what is saved inside is its own."""
        inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.requires_grad]
        self.entering[index] += sum(value.numel() * value.element_size() for value in inputs)
        self._layer = index
        with contextlib.ExitStack() as stack:
            for name, child in self._layers[index].named_children():
                stack.enter_context(self._watched(index, name, child))
            yield
        self._layer = None

    @contextmanager
    def _watched(self, index: int, name: str, child: torch.nn.Module) -> Iterator[None]:
        calls: list[tuple[Tensor, ...]] = []

        def enter(_child: Any, _args: Any, _kwargs: Any) -> None:
            self._part = name

        def leave(_child: Any, args: Any, kwargs: Any, output: Any) -> None:
            self._part = None
            calls.append(
                tuple(
                    value.detach() if isinstance(value, Tensor) else value
                    for value in (*args, *kwargs.values(), output)
                )
            )

        handles = (
            child.register_forward_pre_hook(enter, with_kwargs=True),
            child.register_forward_hook(leave, with_kwargs=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        best = self.tokenwise[index]
        least = max(_LARGE * self.kept[index], self.parts[index][best] if best else 0.0)
        if len(calls) == 1 and self.parts[index][name] > least and _treats_tokens_alone(child, *calls[0]):
            self.tokenwise[index] = name

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._storages:
            # Held, so that no other gets its place.
            self._storages[storage.data_ptr()] = storage
            if self._layer is None:
                self.other += storage.nbytes()
            else:
                self.kept[self._layer] += storage.nbytes()
                if self._part is not None:
                    self.parts[self._layer][self._part] += storage.nbytes()
        return tensor

    def add_attention(self, outputs: Sequence[Tensor]) -> None:
        """Counts what an attention call returned."""
        if self._layer is not None:
            self.attention[self._layer] += sum(out.numel() * out.element_size() for out in outputs)


class _Outputs(TorchDispatchMode):
    """Shows an observer what attention returns."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._observer = observer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in ATTENTION:
            self._observer.add_attention(out)
        return out


@torch.no_grad()
def _treats_tokens_alone(child: torch.nn.Module, *call: Any) -> bool:
    """Whether a part of a layer gives each half of a row what it gives the whole: ``call`` is its input and output."""
    if len(call) != 2 or not all(isinstance(value, Tensor) and value.dim() == 3 for value in call):
        return False
    whole, output = call
    if whole.shape[:2] != output.shape[:2]:
        return False
    halves = torch.cat([child(half) for half in whole.chunk(2, dim=1)], dim=1)
    return bool((halves - output).abs().max() <= _NOISE * output.abs().max())


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes of a row, by layer.

    Attributes:
        kept: [N] what a layer keeps while it is differentiated.
        held: [N] what one that recomputes holds on to from the forward pass until then.
        beside: [N] what one that recomputes has beside ``kept`` while it is differentiated: gradients mostly.
        beside_kept: [N] the same of one that does not.
        whole: [N] what one that does not recompute keeps.
        last: What the rest of the model keeps, and its gradients.
        entering: [N] what comes into a layer.
        attention: [N] what attention returns.
        tokenwise: [N] what is saved by the part that can be computed in tiles.
    """

    kept: np.ndarray
    held: np.ndarray
    beside: np.ndarray
    beside_kept: np.ndarray
    whole: np.ndarray
    last: float
    entering: np.ndarray
    attention: np.ndarray
    tokenwise: np.ndarray

    def peak(self, number: int) -> float:
        """Most bytes at a time where the first ``number`` layers recompute and the others keep everything."""
        first = np.arange(len(self.whole)) < number
        before = np.cumsum(np.where(first, self.held, self.whole))
        own = np.where(first, self.kept + self.beside - self.held, self.beside_kept)
        return float(max(before[-1] + self.last, (before + own).max()))

    def with_attention_kept(self) -> Sizes | None:
        """Where layers that recompute hold on to what attention returned; None where that is not known."""
        if not self.attention.all():
            return None
        held = self.held + self.attention
        return dataclasses.replace(self, held=held, kept=self.kept + self.attention)

    def in_tiles(self, tile: Sizes) -> Sizes | None:
        """Where layers that recompute do their token-wise part in tiles; None where none has one.

        Args:
            tile: Sizes of a row that is one tile.
        """
        if not self.tokenwise.any():
            return None
        tiled = self.tokenwise > 0
        at_a_time = np.minimum(tile.tokenwise, self.tokenwise) * (1 + _GRADIENTS)
        kept = np.where(tiled, self.kept - self.tokenwise + self.entering + at_a_time, self.kept)
        return dataclasses.replace(self, kept=kept, beside=np.where(tiled, self.entering, self.beside))


@dataclasses.dataclass(frozen=True)
class ActivationCosts:
    """What was observed of a shorter and of a longer row; in between and beyond, a straight line.

    Attributes:
        few: Tokens of the shorter one.
        many: Tokens of the longer one.
        of_few: Bytes, one row per quantity and one column per layer.
        of_many: The same.
    """

    few: int
    many: int
    of_few: np.ndarray
    of_many: np.ndarray

    @classmethod
    def between(cls, shorter: Observer, longer: Observer, *, few: int, many: int) -> ActivationCosts:
        """The costs that two observers saw.

        Args:
            shorter: The one of the pass with fewer tokens.
            longer: The other one.
            few: Tokens of the first.
            many: Tokens of the second.
        """

        def table(seen: Observer) -> np.ndarray:
            tokenwise = [parts[name] if name else 0.0 for parts, name in zip(seen.parts, longer.tokenwise, strict=True)]
            other = np.full(len(seen.kept), seen.other)
            return np.stack([seen.kept, seen.entering, seen.attention, np.array(tokenwise), other])

        return cls(few, many, table(shorter), table(longer))

    def at(self, tokens: int) -> Sizes:
        """Bytes of a row of so many tokens."""
        share = (tokens - self.few) / (self.many - self.few)
        kept, entering, attention, tokenwise, other = self.of_few + (self.of_many - self.of_few) * share
        beside = np.where(tokenwise > 0, _GRADIENTS * tokenwise, _GRADIENTS_OF_ALL * kept) + entering
        last = float(other[0] + 2 * entering[-1])
        return Sizes(kept, entering, beside, beside, kept, last, entering, attention, tokenwise)

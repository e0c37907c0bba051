"""Weight updates written straight into a running model, once its own loader has shown where every part belongs.

vLLM loads an update as if for the first time: into new memory, layer by layer, and copies what comes out over what was
there. While it does so once, ``Watch`` notes which part of which tensor goes where; ``Places`` repeats these copies.
Matrices that a CPU's kernel wants packed are packed anew from the update, by vLLM itself.

What a loader computes instead of copying is not noted. A model keeps vLLM's way unless every number it holds is
accounted for and equals what vLLM's loader made of the same update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gspo_rllib.engines.held_tensors import HeldTensors

Update = Mapping[str, torch.Tensor]
Owner = tuple[torch.nn.Module, str]
"""A layer, and the name of a parameter or buffer of its own."""

_PROBE_ROWS = 3  # rows multiplied with two packings of a matrix to compare them


@dataclass(frozen=True, slots=True)
class View:
    """Part of a tensor's storage, as ``torch.Tensor.as_strided`` takes it."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> View:
        """The part that a tensor is of its storage."""
        return cls(tuple(tensor.size()), tuple(tensor.stride()), int(tensor.storage_offset()), tensor.dtype)

    def within(self, whole: torch.Tensor) -> torch.Tensor:
        """The same part of another tensor's storage."""
        return whole.as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True, slots=True)
class Part:
    """One copy: part of a tensor that is sent, into part of one that the model holds."""

    source: str
    taken: View
    put: View


@dataclass(frozen=True, slots=True)
class Filling:
    """How an update fills one tensor of the model.

    Attributes:
        whole: The tensor when it was filled by vLLM's loader.
        parts: The copies into it, in order.
    """

    whole: View
    parts: list[Part] = field(default_factory=list)

    def fill(self, tensor: torch.Tensor, sent: Update) -> None:
        """Copies an update's parts into a tensor laid out like ``whole``."""
        for part in self.parts:
            part.put.within(tensor).copy_(part.taken.within(sent[part.source]))

    def covers(self) -> bool:
        """Whether the copies leave out no number."""
        reached = torch.zeros(math.prod(self.whole.size), dtype=torch.bool)
        for part in self.parts:
            part.put.within(reached).fill_(True)
        return bool(reached.all())


class Watch(TorchDispatchMode):
    """Notes the copies out of an update while a model's loader runs inside the block.

    Args:
        model: vLLM's model, about to be reloaded.
        sent: The update.

    Attributes:
        fillings: How each parameter and buffer was filled that was copied to.
    """

    def __init__(self, model: torch.nn.Module, sent: Update) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._model = model
        self._sent = {_storage(tensor): name for name, tensor in sent.items()}
        self._owners: dict[int, Owner] = {}
        self.fillings: dict[Owner, Filling] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # vLLM first tries a loader on the meta device, to count what it would load.
        if func is torch.ops.aten.copy_.default and not args[0].is_meta and not args[1].is_meta:
            source = self._sent.get(_storage(args[1]))
            owner = None if source is None else self._owner(args[0])
            if source is not None and owner is not None:
                filling = self.fillings.setdefault(owner, Filling(View.of(getattr(*owner))))
                part = Part(source, View.of(args[1]), View.of(args[0]))
                if part not in filling.parts:
                    filling.parts.append(part)
        return func(*args, **(kwargs or {}))

    def _owner(self, target: torch.Tensor) -> Owner | None:
        """Whose parameter or buffer a tensor is a part of; a layer's come and go while it is loaded."""
        place = _storage(target)
        found = self._owners.get(place)
        held = None if found is None else getattr(*found, None)
        if held is None or held.is_meta or _storage(held) != place:
            self._owners = {
                _storage(tensor): (layer, name)
                for layer in self._model.modules()
                for named in (layer.named_parameters(recurse=False), layer.named_buffers(recurse=False))
                for name, tensor in named
                if not tensor.is_meta
            }
        return self._owners.get(place)


class Places:
    """Where every part of an update belongs in a model; see the module.

    Args:
        model: vLLM's model.
        sent: The update that was watched.
        fillings: What ``Watch`` noted meanwhile.
    """

    def __init__(self, model: torch.nn.Module, sent: Update, fillings: Mapping[Owner, Filling]) -> None:
        self._fillings = fillings
        self._format = _format(sent)
        self._packed: list[Any] = [layer for layer in model.modules() if callable(vars(layer).get("cpu_linear"))]
        self._scratch: dict[torch.dtype, torch.Tensor] = {}

    @classmethod
    def learnt(cls, model: torch.nn.Module, sent: Update, fillings: Mapping[Owner, Filling]) -> Places | None:
        """The places, or None where they do not account for every number that the model holds.

        Args:
            model: vLLM's model, just reloaded by its own loader.
            sent: The update that it was reloaded with.
            fillings: What ``Watch`` noted meanwhile.
        """
        used = {part.source for filling in fillings.values() for part in filling.parts}
        has_packed_experts = any(
            getattr(getattr(layer, "quant_method", None), "moe_kernel", None) is not None for layer in model.modules()
        )
        if used != set(sent) or has_packed_experts:
            return None
        places = cls(model, sent, fillings)
        known = places._accounts_for(model) and places._holds(sent) and places._packs_the_same(sent)
        return places if known else None

    def fit(self, sent: Update) -> bool:
        """Whether an update has the names and layouts of the one that was watched."""
        return _format(sent) == self._format

    @torch.no_grad()
    def write(self, sent: Update) -> None:
        """Puts an update where it belongs.

        Args:
            sent: An update that fits.
        """
        for owner, filling in self._fillings.items():
            held = getattr(*owner)
            if held.numel():
                filling.fill(held, sent)
        for layer in self._packed:
            self._pack(layer, sent)

    def _accounts_for(self, model: torch.nn.Module) -> bool:
        """Whether every parameter is filled, under one of its names, and is laid out as when vLLM filled it."""
        for (layer, name), filling in self._fillings.items():
            held = getattr(layer, name)
            if held.numel() and View.of(held) != filling.whole:
                return False
            if not held.numel() and not (layer in self._packed and name == "weight" and filling.covers()):
                return False
        if not all(hasattr(layer, "quant_method") for layer in self._packed):
            return False
        filled = {id(getattr(*owner)) for owner in self._fillings}
        return all(id(parameter) in filled for parameter in model.parameters())

    @torch.no_grad()
    def _holds(self, sent: Update) -> bool:
        """Whether all that is not packed has exactly the values that ``write`` gives it, and zeros elsewhere."""
        for owner, filling in self._fillings.items():
            held = getattr(*owner)
            if held.numel():
                expected = torch.zeros_like(held)
                filling.fill(expected, sent)
                if not torch.equal(held, expected):
                    return False
        return True

    @torch.no_grad()
    def _packs_the_same(self, sent: Update) -> bool:
        """Whether matrices that are packed from the update multiply exactly as those that vLLM's loader packed."""
        for layer in self._packed:
            weight, multiply = layer.weight, layer.cpu_linear
            like = weight if weight.numel() else self._assembled(layer, sent)
            rows = torch.randn(_PROBE_ROWS, like.shape[1], generator=torch.Generator().manual_seed(0)).to(like.dtype)
            expected = multiply(rows, weight, None)
            self._pack(layer, sent)
            if not torch.equal(layer.cpu_linear(rows, weight, None), expected):
                layer.cpu_linear = multiply
                return False
        return True

    def _pack(self, layer: Any, sent: Update) -> None:
        held = layer.weight
        if not held.numel():  # given up for the packed copy
            layer.weight = torch.nn.Parameter(self._assembled(layer, sent), requires_grad=False)
        layer.cpu_linear = None  # its memory is then there for the new packing
        try:
            layer.quant_method.process_weights_after_loading(layer)
        finally:
            layer.weight = held

    def _assembled(self, layer: torch.nn.Module, sent: Update) -> torch.Tensor:
        """A matrix before it is packed: as it was sent, or put together in memory that is kept for that."""
        filling = self._fillings[layer, "weight"]
        if len(filling.parts) == 1:
            whole = filling.parts[0].taken.within(sent[filling.parts[0].source])
            if View.of(whole) == filling.whole:
                return whole
        count, dtype = math.prod(filling.whole.size), filling.whole.dtype
        if dtype not in self._scratch or self._scratch[dtype].numel() < count:
            self._scratch[dtype] = torch.empty(count, dtype=dtype)
        matrix = filling.whole.within(self._scratch[dtype])
        filling.fill(matrix, sent)
        return matrix


class DerivedState:
    """Whether a model keeps numbers beside its parameters that come out of them, as absorbed projections do.

    Buffers and attributes of layers, and of the objects there, are looked at before and after the first update, which
    replaces random weights: what is derived from any weight then changes.

    Args:
        model: vLLM's model, before its first update.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        before = _beside_parameters(model)
        self._names = before.keys()
        self._sample = HeldTensors(before.items(), dtype=torch.float32)

    def changed(self, model: torch.nn.Module) -> set[str]:
        """Names of what came or went, or otherwise of what changed, e.g. ``layers.0.attn.W_UV``.

        Args:
            model: The same model after the update.
        """
        after = _beside_parameters(model)
        moved = self._sample.moved(HeldTensors(after.items(), dtype=torch.float32))
        return set(after.keys() ^ self._names) or {name for name in self._names if moved.get(name, 1.0)}


def _beside_parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for place, layer in model.named_modules():
        parameters = {id(parameter) for parameter in layer.parameters(recurse=False)}
        for name, value in vars(layer).items():
            # An engine's cache is no part of the model; an update empties it.
            if name not in ("_parameters", "_modules", "kv_cache"):
                for inner, tensor in _tensors(value):
                    if tensor.numel() and not tensor.is_meta and id(tensor) not in parameters:
                        found[f"{place}.{name}{inner}"] = tensor
    return found


def _tensors(value: Any, *, deeper: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that a value is, or that it holds: in a list, under a key, or as an attribute."""
    if isinstance(value, torch.Tensor):
        yield "", value
    elif deeper and not isinstance(value, (torch.nn.Module, type)):
        if isinstance(value, Mapping):
            held: Any = value.items()
        else:
            held = (
                enumerate(value)
                if isinstance(value, (list, tuple))
                else vars(value).items()
                if hasattr(value, "__dict__")
                else ()
            )
        for key, item in held:
            yield from ((f".{key}{inner}", tensor) for inner, tensor in _tensors(item, deeper=False))


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _format(sent: Update) -> dict[str, View]:
    return {name: View.of(tensor) for name, tensor in sent.items()}

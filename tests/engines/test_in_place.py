"""Updates in place on a toy of vLLM's model: bit for bit what its loader leaves, where all is accounted for."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gspo_rllib.engines.in_place import DerivedState, Places, Watch

Update = dict[str, torch.Tensor]


class Packs:
    """Packs a matrix for the kernel, as vLLM's CPU backend does."""

    def __init__(self, removes: bool) -> None:
        self._removes = removes

    def process_weights_after_loading(self, layer: Any) -> None:
        packed = layer.weight.detach().t().contiguous()
        layer.cpu_linear = lambda rows, weight, bias: rows @ packed
        if self._removes:
            layer.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)


class Toy(torch.nn.Module):
    """An embedding, three projections in one packed matrix, one of its own, and a head that keeps its plain weight."""

    def __init__(self) -> None:
        super().__init__()
        for name, shape in (("embed", (10, 4)), ("qkv", (8, 4)), ("out", (4, 4)), ("head", (12, 4)), ("norm", (4,))):
            layer: Any = torch.nn.Module()
            layer.weight = torch.nn.Parameter(torch.randn(shape), requires_grad=False)
            layer.shape = shape
            if name in ("qkv", "out", "head"):
                layer.quant_method = Packs(removes=name != "head")
                layer.quant_method.process_weights_after_loading(layer)
            self.add_module(name, layer)

    def load(self, sent: Update, change: Callable[[str, torch.Tensor], torch.Tensor] | None = None) -> None:
        """Into new storage, then over what is there."""
        for name, layer in self.named_children():
            new = torch.zeros(layer.shape)
            kept, layer.weight = layer.weight, torch.nn.Parameter(new, requires_grad=False)
            if name == "qkv":
                for start, part in ((0, "q"), (4, "k"), (6, "v")):
                    layer.weight.data.narrow(0, start, len(sent[part])).copy_(sent[part])
            else:
                loaded = sent[name] if change is None else change(name, sent[name])
                layer.weight.data[: len(loaded)].copy_(loaded)  # the head is padded with zeros
            if hasattr(layer, "quant_method"):
                layer.quant_method.process_weights_after_loading(layer)
            if kept.numel():
                kept.data.copy_(layer.weight)
            layer.weight = kept

    def held(self) -> Update:
        rows = torch.arange(8.0).reshape(2, 4)
        held = {name: parameter.clone() for name, parameter in self.named_parameters()}
        packed = (name for name, layer in self.named_children() if hasattr(layer, "cpu_linear"))
        return held | {f"{name} packed": self.get_submodule(name).cpu_linear(rows, None, None) for name in packed}


def _update(seed: int) -> Update:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed": (10, 4), "q": (4, 4), "k": (2, 4), "v": (2, 4), "out": (4, 4), "head": (11, 4), "norm": (4,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _learnt(model: Toy, sent: Update, change: Callable[[str, torch.Tensor], torch.Tensor] | None = None) -> Any:
    with Watch(model, sent) as watch:
        model.load(sent, change)
    return Places.learnt(model, sent, watch.fillings)


def test_an_update_in_place_leaves_what_the_loader_would() -> None:
    model, other = Toy(), Toy()
    before = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    places = _learnt(model, _update(1))
    for seed in (1, 2, 3):
        sent = _update(seed)
        assert places.fit(sent)
        places.write(sent)
        other.load(sent)
        expected = other.held()
        assert expected.keys() == model.held().keys() and len(expected) == 8
        for name, tensor in model.held().items():
            assert torch.equal(tensor, expected[name]), name
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == before


def test_an_update_of_another_layout_does_not_fit() -> None:
    places = _learnt(Toy(), _update(1))
    other = _update(2)
    assert not places.fit({**other, "out": other["out"].t()})
    assert not places.fit({**other, "norm": other["norm"].double()})
    assert not places.fit({name: tensor for name, tensor in other.items() if name != "norm"})


def _scaled(layer: Any) -> None:
    layer.weight.data.mul_(2)


def _packed_otherwise(layer: Any) -> None:
    multiply = layer.cpu_linear
    layer.cpu_linear = lambda rows, weight, bias: 2 * multiply(rows, weight, bias)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("embed", _scaled),
        ("embed", lambda layer: layer.weight.data[-1:].fill_(3.0)),
        ("out", _packed_otherwise),
        ("head", _packed_otherwise),
        ("norm", lambda layer: layer.register_parameter("bias", torch.nn.Parameter(torch.ones(4)))),
        ("norm", lambda layer: setattr(layer, "quant_method", SimpleNamespace(moe_kernel=object()))),
    ],
    ids=["scaled", "a part set", "packed otherwise", "plain as well", "not sent", "packed experts"],
)
def test_what_is_not_a_copy_of_the_update_keeps_the_loader_s_way(name: str, change: Callable[[Any], Any]) -> None:
    model, sent = Toy(), _update(1)
    with Watch(model, sent) as watch:
        model.load(sent)
    change(model.get_submodule(name))
    held = model.held()
    assert Places.learnt(model, sent, watch.fillings) is None
    assert all(torch.equal(tensor, held[place]) for place, tensor in model.held().items())


@pytest.mark.parametrize(
    "change",
    [
        lambda name, tensor: tensor + 1 if name == "norm" else tensor,
        lambda name, tensor: tensor.t().contiguous() if name == "out" else tensor,
    ],
    ids=["computed", "rearranged in new memory"],
)
def test_what_a_loader_computes_keeps_its_way(change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    assert _learnt(Toy(), _update(1), change) is None


def test_what_is_derived_from_weights_and_kept_beside_them_is_seen() -> None:
    model: Any = Toy()
    model.embed.register_buffer("table", torch.arange(4.0))
    model.out.kv_cache = torch.zeros(3)
    model.out.scale = [torch.ones(())]
    model.norm.register_buffer("whole", torch.ones(4))
    model.qkv.absorbed = torch.ones(4)
    model.head.impl = SimpleNamespace(sinks=torch.ones(4))
    derived = DerivedState(model)
    assert derived.changed(model) == set()

    model.out.kv_cache.add_(1)  # an engine empties it
    assert derived.changed(model) == set()
    for tensor in (model.norm.whole, model.qkv.absorbed, model.head.impl.sinks):
        tensor.mul_(2)
    assert derived.changed(model) == {"norm._buffers.whole", "qkv.absorbed", "head.impl.sinks"}
    model.out.more = {"key": torch.ones(2)}
    del model.qkv.absorbed
    assert derived.changed(model) == {"out.more.key", "qkv.absorbed"}

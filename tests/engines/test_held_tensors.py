"""Whether loading weights changed what a model holds, seen from a few numbers per tensor."""

from __future__ import annotations

import torch

from gspo_rllib.engines.held_tensors import HeldTensors, lost

F32 = torch.float32


class Packed:
    """Stands for weights that nobody can read."""


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"big": (300, 200), "scalar": (), "norm": (16,), "empty": (0,)}
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def test_each_tensor_that_was_loaded_is_seen_to_move_and_no_other() -> None:
    model = tensors()
    before = HeldTensors(model.items(), dtype=F32)
    model["big"] += 1e-3
    model["scalar"] *= 2
    moved = before.moved(HeldTensors(model.items(), dtype=F32))
    assert moved == {"big": 1.0, "scalar": 1.0, "norm": 0.0}


def test_what_is_sent_is_compared_in_the_precision_of_the_engine() -> None:
    """An update too small for bfloat16 changes nothing that an engine in bfloat16 holds."""
    model = tensors()
    before = {dtype: HeldTensors(model.items(), dtype=dtype) for dtype in (F32, torch.bfloat16)}
    model["big"] *= 1 + 1e-5
    after = {dtype: HeldTensors(model.items(), dtype=dtype) for dtype in before}
    assert before[F32].moved(after[F32])["big"] > 0.9
    assert before[torch.bfloat16].moved(after[torch.bfloat16])["big"] < 0.05


def test_other_layouts_of_memory_are_sampled_too() -> None:
    model = {"transposed": tensors()["big"].t()}
    before = HeldTensors(model.items(), dtype=F32)
    model["transposed"] = model["transposed"] + 1.0
    assert before.moved(HeldTensors(model.items(), dtype=F32)) == {"transposed": 1.0}


def test_packed_weights_are_loaded_when_they_are_another_object_and_are_not_kept_alive() -> None:
    old, same = Packed(), Packed()
    before = HeldTensors([], dtype=F32, packed={"head": old, "gate": same})
    assert before.moved(HeldTensors([], dtype=F32, packed={"head": old, "gate": same})) == {"head": 0.0, "gate": 0.0}
    new = Packed()
    del old
    assert before.moved(HeldTensors([], dtype=F32, packed={"head": new, "gate": same})) == {"head": 1.0, "gate": 0.0}


def test_an_update_that_changes_nothing_of_the_engine_is_lost() -> None:
    loadable = ["qkv", "norm"]
    assert lost({"q": 1.0, "k": 0.0}, {"qkv": 0.0, "norm": 0.0}, loadable) == loadable
    assert lost({"q": 0.01, "k": 0.0}, {"qkv": 0.0, "norm": 0.0}, loadable) == [], "too small to be sure"
    assert lost({}, {"qkv": 0.0}, loadable) == []
    assert lost({"q": 1.0, "k": 1.0}, {"qkv": 1.0, "norm": 0.0}, ["qkv"]) == [], "never loaded: no weight of the model"

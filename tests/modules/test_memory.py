"""What a model takes in memory: the arithmetic against whole models, and autograd's own count."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gspo_rllib.modules.memory import LearnerMemory, ModelSizes

_SMALL = {
    "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 160, "vocab_size": 300,
}  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_the_model(tied: bool) -> None:
    config = AutoConfig.for_model("qwen3", **_SMALL, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config)
    assert ModelSizes.of(config, autocast=False).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_a_model_far_larger_than_this_machine_is_counted_in_its_published_size() -> None:
    config = AutoConfig.for_model(
        "qwen3_moe", hidden_size=2048, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4,
        head_dim=128, moe_intermediate_size=768, num_experts=128, num_experts_per_tok=8, vocab_size=151936,
    )  # fmt: skip
    sizes = ModelSizes.of(config, autocast=False)
    assert sizes.parameters == pytest.approx(30.5e9, rel=0.01)
    assert sizes.kv_numbers == 2 * 48 * 4 * 128


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3_text"])
def test_all_layers_save_what_two_of_them_promise(family: str) -> None:
    """Autograd's own count over the whole model, at a length that was not watched."""
    config = AutoConfig.for_model(family, **_SMALL)
    trunk = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().base_model
    weights = {p.untyped_storage().data_ptr() for p in [*trunk.parameters(), *trunk.buffers()]}
    kept = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        state = trunk(input_ids=torch.zeros(1, 100, dtype=torch.long), use_cache=False)
    counted = sum(storage.nbytes() for place, storage in kept.items() if place not in weights)
    del state
    said = ModelSizes.of(config, autocast=False).activation_bytes(100, checkpointing=False)
    assert said == pytest.approx(counted, rel=0.02)


def test_checkpointing_keeps_less_and_one_layer() -> None:
    sizes = ModelSizes(
        10, layers=8, hidden=4, vocabulary=9, kv_numbers=1, layer_bytes=100.0, other_bytes=3.0, cast_bytes=0
    )
    assert sizes.activation_bytes(10, checkpointing=False) == 8 * 100 * 10 + 30
    assert sizes.activation_bytes(10, checkpointing=True) == 8 * 4 * 4 * 10 + 100 * 10 + 30


def test_several_learners_hold_a_copy_to_reduce_and_a_reference_is_one_more_model() -> None:
    sizes = ModelSizes(
        100, layers=1, hidden=1, vocabulary=1, kv_numbers=1, layer_bytes=0.0, other_bytes=0.0, cast_bytes=0
    )

    def total(**changes: object) -> float:
        known = {"tokens": 1, "checkpointing": False, "learners": 0, "reference": False, "logits_bytes": 0.0}
        return LearnerMemory.of(sizes, **(known | changes)).total  # type: ignore[arg-type]

    assert total() == total(learners=1) == 1600
    assert total(learners=2) == 2000 and total(reference=True) == 2000


def test_learners_that_share_a_model_hold_a_share_and_what_runs() -> None:
    """100 numbers, in 4 layers of 20 and 20 outside: each of 4 learners has a quarter, and what is gathered."""
    sizes = ModelSizes(
        100, layers=4, hidden=1, vocabulary=1, kv_numbers=1, layer_bytes=0.0, other_bytes=0.0, cast_bytes=0,
        layer_parameters=20,
    )  # fmt: skip

    def memory(**changes: object) -> LearnerMemory:
        known = {"tokens": 1, "checkpointing": False, "learners": 4, "reference": False, "logits_bytes": 0.0}
        return LearnerMemory.of(sizes, **(known | {"sharded": True} | changes))  # type: ignore[arg-type]

    assert (memory().weights, memory().gradients, memory().optimiser, memory().buckets) == (100, 100, 200, 0)
    assert memory().gathered == 4 * (2 * 20 + 4 * 20)
    assert memory(reference=True).reference == 100 and memory(sharded=False).gathered == 0


def test_the_largest_layer_is_counted() -> None:
    config = AutoConfig.for_model("qwen3", **_SMALL)
    model = AutoModelForCausalLM.from_config(config)
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.model.layers]
    assert ModelSizes.of(config, autocast=False).layer_parameters == max(layers)

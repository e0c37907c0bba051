"""What is sent in which precision: engines in bfloat16 hold the very numbers they would of a float32 update."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.bfloat16_arrays import BFLOAT16, to_tensor
from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.engines.transformers import TransformersEngine
from gspo_rllib.sent_dtypes import Wire
from gspo_rllib.weight_sync import Weights
from tests.learners.small_learner import SPACES, learner_config


def _sent(path: str, *, dtype: str | None = None, lora: Any = None, **generation: Any) -> dict[str, Any]:
    config = learner_config(path, model={"lora": lora}).generation(**generation)
    group = config.build_learner_group(spaces=SPACES)
    return dict(Weights(group, dtype=dtype).on_host())


def _held(path: str, sent: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What an engine in bfloat16 makes of an update."""
    engine = TransformersEngine(
        EngineSpec(
            engine="transformers",
            model=path,
            dtype="bfloat16",
            max_model_len=64,
            max_num_seqs=2,
            stop_token_ids=(0,),
            seed=0,
            device="cpu",
        )
    )
    engine.load_weights(sent, 1)
    assert engine._model is not None
    return dict(engine._model.state_dict())


@pytest.mark.parametrize("name", ["tiny_dense", "tiny_tied", "tiny_moe"])
def test_an_engine_in_bfloat16_holds_the_same_bits_of_half_the_bytes(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    exact, half = _sent(path), _sent(path, engine_dtype="bfloat16")
    bytes_of = [sum({id(a): a.nbytes for a in sent.values()}.values()) for sent in (exact, half)]
    assert 0.5 <= bytes_of[1] / bytes_of[0] <= 0.51
    assert {name for name, array in half.items() if array.dtype != BFLOAT16} == {
        name for name, array in exact.items() if array.ndim < 2
    }
    from_exact, from_half = _held(path, exact), _held(path, half)
    assert all(torch.equal(tensor, from_half[name]) for name, tensor in from_exact.items())
    assert any(tensor.dtype == torch.bfloat16 for tensor in from_half.values())


def test_a_merged_adapter_and_an_engine_in_float32_are_rounded_only_where_asked(tiny_dense: str) -> None:
    lora = {"rank": 2, "alpha": 4}
    exact, rounded = _sent(tiny_dense, lora=lora), _sent(tiny_dense, lora=lora, sync_dtype="bfloat16")
    for name, array in exact.items():
        assert array.dtype != BFLOAT16
        if array.ndim >= 2:
            assert torch.equal(to_tensor(rounded[name]), torch.from_numpy(array).bfloat16())
        else:
            assert (array == rounded[name]).all()


def test_who_asks_for_float32_gets_what_the_learner_has(tiny_dense: str) -> None:
    exact, asked = _sent(tiny_dense), _sent(tiny_dense, dtype="float32", engine_dtype="bfloat16")
    assert all((array == asked[name]).all() for name, array in exact.items())


def test_what_engines_keep_in_float32_is_sent_so() -> None:
    settings = {"precision": "bfloat16"}
    model = SimpleNamespace(_keep_in_fp32_modules_strict=["gate.weight", "statics"])
    wire = Wire.of(SimpleNamespace(model=model, settings=settings), SimpleNamespace())
    matrix, vector = torch.ones(2, 2), torch.ones(2)
    assert wire.dtype_of("layers.0.mlp.gate.weight", matrix) == torch.float32
    assert wire.dtype_of("layers.0.statics.bias", matrix) == torch.float32
    assert wire.dtype_of("layers.0.mlp.up_gate.weight", matrix) == torch.bfloat16
    assert wire.dtype_of("norm.weight", vector) == torch.float32
    assert wire.dtype_of("steps", torch.ones(2, 2, dtype=torch.long)) == torch.long


def test_an_evaluation_in_float32_is_sent_float32(tiny_dense: str) -> None:
    config = learner_config(tiny_dense, model={"precision": "bfloat16"})
    config.evaluation(evaluation_config={"engine_dtype": "float32"})
    learner = config.build_learner(spaces=SPACES)
    assert Wire.of(learner.module[DEFAULT_MODULE_ID].unwrapped(), learner.config).matrices == torch.float32


def test_bfloat16_travels_through_the_object_store_without_a_copy(tiny_dense: str, ray_local: None) -> None:
    sent = _sent(tiny_dense, engine_dtype="bfloat16")
    there = ray.get(ray.put(sent))
    for name, array in sent.items():
        assert there[name].dtype == array.dtype and not there[name].flags.writeable
        assert torch.equal(to_tensor(there[name]), to_tensor(array))

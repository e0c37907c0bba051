"""How large a cache the vLLM engine asks for: never more than can run, and on a GPU a share of what is free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import Gemma4TextConfig, MambaConfig, Qwen3Config

from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.engines.vllm_defaults import cpu_defaults, gpu_defaults

CONFIG = Qwen3Config(num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128)
BYTES_PER_TOKEN = 2 * 28 * 8 * 128 * 2  # keys and values in bfloat16


def spec(max_model_len: int, max_num_seqs: int, **options: Any) -> EngineSpec:
    return EngineSpec("vllm", "m", "bfloat16", max_model_len, max_num_seqs, (), device="cuda", options=options)


@pytest.fixture
def _free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100 << 30, 140 << 30))


@pytest.mark.usefixtures("_free_memory")
def test_on_a_gpu_the_cache_holds_what_can_run_and_no_more() -> None:
    found = gpu_defaults(spec(1024, 8), CONFIG, 1 << 30)

    assert found["kv_cache_memory_bytes"] == 8 * (1024 + 16) * BYTES_PER_TOKEN


@pytest.mark.usefixtures("_free_memory")
def test_on_a_gpu_the_cache_leaves_a_learner_its_room() -> None:
    found = gpu_defaults(spec(4096, 1000), CONFIG, 1 << 30)

    assert found["kv_cache_memory_bytes"] == int(0.3 * (100 << 30))
    # With vLLM's own 0.92 an engine beside a learner is refused, whatever its cache.
    assert found["gpu_memory_utilization"] < 0.1


@pytest.mark.usefixtures("_free_memory")
def test_beside_a_learner_that_waits_the_cache_gets_what_it_leaves() -> None:
    alone = gpu_defaults(replace(spec(4096, 1000), colocated_bytes=0), CONFIG, 1 << 30)["kv_cache_memory_bytes"]
    beside = gpu_defaults(replace(spec(4096, 1000), colocated_bytes=50 << 30), CONFIG, 1 << 30)["kv_cache_memory_bytes"]

    assert alone == int(0.8 * (0.92 * (140 << 30) - (1 << 30))) and alone - beside == pytest.approx(0.8 * (50 << 30))


@pytest.mark.usefixtures("_free_memory")
def test_one_whole_context_always_fits_as_far_as_we_decide() -> None:
    found = gpu_defaults(spec(1_000_000, 4), CONFIG, 1 << 30)

    assert found["kv_cache_memory_bytes"] >= 1_000_000 * BYTES_PER_TOKEN


@pytest.mark.usefixtures("_free_memory")
def test_who_sets_a_share_of_the_device_gets_vllms_own_sizing() -> None:
    assert gpu_defaults(spec(1024, 8, gpu_memory_utilization=0.8), CONFIG, 1 << 30) == {}


def test_on_a_cpu_the_cache_is_bounded_too() -> None:
    assert cpu_defaults(spec(4096, 1000), CONFIG)["kv_cache_memory_bytes"] == 4 << 30
    assert cpu_defaults(spec(32, 1), CONFIG)["kv_cache_memory_bytes"] == 64 << 20


def test_layers_that_keep_a_state_have_no_heads_to_count() -> None:
    config = MambaConfig(hidden_size=64, num_hidden_layers=2)
    assert not hasattr(config, "num_attention_heads")
    assert cpu_defaults(spec(32, 1), config)["kv_cache_memory_bytes"] == 64 << 20


def test_layers_with_heads_of_different_sizes_all_count_as_the_widest() -> None:
    sizes = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_global_key_value_heads": 2,
    }
    layers = ["sliding_attention", "full_attention"]
    config = Gemma4TextConfig(hidden_size=64, head_dim=256, global_head_dim=512, layer_types=layers, **sizes)
    found = cpu_defaults(spec(64 * 1024, 1), config)["kv_cache_memory_bytes"]
    assert found == 2 * 2 * 2 * 512 * 2 * (64 * 1024 + 32)

"""What the vLLM engine asks for where the user does not: how large its cache is, and what its CPU backend needs.

The module does not import vllm.
"""

from __future__ import annotations

from typing import Any

import torch

from gspo_rllib.engines.device_room import colocated_room
from gspo_rllib.engines.protocol import EngineSpec

_CPU_BLOCK_SIZE = 32  # tokens; the smallest the CPU kernel takes. Prefixes are reused in whole blocks.
_CPU_BATCH_TOKENS = 2048
_GPU_BLOCK_SIZE = 16  # tokens; vLLM's own there
_CPU_CACHE_BOUNDS = (64 << 20, 4 << 30)  # the CPU backend touches all of it at start
_GPU_CACHE_SHARE = 0.3  # of the memory that is free when the engine starts; a learner may share the device
# vLLM wants this share of the device free at start even where it is told how large its cache is. It need not be: what
# the engine takes is its weights, its cache and one step.
_GPU_DEMANDED_SHARE = 0.01


def cpu_defaults(spec: EngineSpec, config: Any) -> dict[str, Any]:
    """``EngineArgs`` for vLLM's CPU backend.

    Args:
        spec: How the engine is built.
        config: The model's transformers config.
    """
    one = _context_bytes(spec, config, _CPU_BLOCK_SIZE)
    low, high = _CPU_CACHE_BOUNDS
    return {
        "enforce_eager": True,
        # After a partial prompt vLLM rewinds the request's generator, which fails for CPU generators (seen in 0.32).
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(spec.max_model_len, spec.max_num_seqs, _CPU_BATCH_TOKENS),
        "block_size": _CPU_BLOCK_SIZE,
        "kv_cache_memory_bytes": max(one, min(max(one * spec.max_num_seqs, low), high)),
    }


def gpu_defaults(spec: EngineSpec, config: Any, num_weight_bytes: int) -> dict[str, Any]:
    """``EngineArgs`` for a GPU that a learner may share: a cache for what can run, of at most a share of what is free.

    Args:
        spec: How the engine is built; ``gpu_memory_utilization`` among its options leaves the cache to vLLM.
        config: The model's transformers config.
        num_weight_bytes: What its weights will take.
    """
    if "gpu_memory_utilization" in spec.options:  # vLLM's own way to size its cache
        return {}
    one = _context_bytes(spec, config, _GPU_BLOCK_SIZE)
    room = int(torch.cuda.mem_get_info()[0] * _GPU_CACHE_SHARE)
    if spec.colocated_bytes is not None:
        room = colocated_room(spec.colocated_bytes, num_weight_bytes)
    return {
        "gpu_memory_utilization": _GPU_DEMANDED_SHARE,
        "kv_cache_memory_bytes": max(one, min(one * spec.max_num_seqs, room)),
    }


def _context_bytes(spec: EngineSpec, config: Any, block_size: int) -> int:
    """Bytes of keys and values of one context of full length, in whole blocks and one more."""
    # Where layers differ in it (Gemma-4), the config as a whole refuses to say; vLLM gives all of them as much.
    layers = config.per_layer_config if getattr(config, "per_layer_attributes", None) else [config]
    widest = max(_key_width(layer) for layer in layers)
    itemsize: int = getattr(torch, spec.dtype).itemsize
    blocks = -(-spec.max_model_len // block_size) + 1
    return int(2 * config.num_hidden_layers * widest * itemsize * blocks * block_size)


def _key_width(config: Any) -> int:
    """Numbers in the keys of one token in one layer."""
    heads = getattr(config, "num_attention_heads", None) or 1  # none where layers keep a state instead (Mamba)
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return int(key_heads * (getattr(config, "head_dim", None) or config.hidden_size // heads))

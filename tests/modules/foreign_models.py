"""Random models that differ from what the learner takes for granted, each in another way: some layers, 320 words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from gspo_rllib.modules import exactness
from gspo_rllib.modules.scoring import Scoring

_WORDS = {"vocab_size": 320, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.3}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_WORDS, **_SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 256}
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
_LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "ordinary": ("LlamaConfig", _LLAMA),
    "a bias on the head": ("PhiConfig", {**_LLAMA, "num_key_value_heads": 4}),
    "a soft cap in the text config of a multimodal model": (
        "Gemma4Config",
        {
            "text_config": {**_LLAMA, "head_dim": 8, "global_head_dim": 8, "hidden_size_per_layer_input": 8}
            | {"vocab_size_per_layer_input": 320, "final_logit_softcapping": 2.0, "num_kv_shared_layers": 0},
            "vision_config": {**_VISION, "global_head_dim": 8},
            "audio_config": None,
        },
    ),
    "a head of several layers": ("ModernBertDecoderConfig", {**_WORDS, **_SIZES, "intermediate_size": 48}),
    "a bias on attention scores": (
        "InklingTextConfig",
        {**_LLAMA, "head_dim": 8, "moe_intermediate_size": 24, "n_routed_experts": 4, "num_experts_per_tok": 2},
    ),
    "a soft cap behind xLSTM": ("xLSTMConfig", {**_WORDS, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4}),
    "recurrent layers and a soft cap": (
        "RecurrentGemmaConfig",
        {**_LLAMA, "head_dim": 8, "lru_width": 32, "num_hidden_layers": 3},
    ),
    "a mask of its own": ("DogeConfig", {**_LLAMA, "num_hidden_layers": 2}),
    "sinks": ("GptOssConfig", {**_LLAMA, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "attention by its class": ("NemotronConfig", _LLAMA),
    "chunks and a trunk without a name": (
        "Llama4TextConfig",
        {**_LLAMA, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 128},
    ),
    "values narrower than keys": (
        "DeepseekV3Config",
        {**_LLAMA, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8}
        | {"qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
        | {"topk_group": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 1},
    ),
    "positions that change beyond 64 tokens": (
        "Phi3Config",
        {**_LLAMA, "original_max_position_embeddings": 64}
        | {"rope_parameters": {**_LONG_ROPE, "original_max_position_embeddings": 64}},
    ),
    "positions that go with the length": (
        "LlamaConfig",
        {**_LLAMA, "max_position_embeddings": 64}
        | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
    ),
    "soft-capped attention scores": (
        "Gemma2Config",
        {**_LLAMA, "head_dim": 8, "attn_logit_softcapping": 1.0, "final_logit_softcapping": 3.0}
        | {"query_pre_attn_scalar": 8},
    ),
    "sparse attention": (
        "DeepseekV32Config",
        {**_LLAMA, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8}
        | {"qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1}
        | {"topk_group": 1, "moe_intermediate_size": 24, "first_k_dense_replace": 2, "index_head_dim": 16}
        | {"index_topk": 16},
    ),
    "tokens that see what follows": ("BertConfig", {**_WORDS, **_SIZES, "intermediate_size": 48}),
}
"""By what is special: the config class, and what is not its default."""


def build(kind: str, **settings: Any) -> transformers.PreTrainedModel:
    """A model of a kind; settings go before those of the table."""
    config_class, sizes = MODELS[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**{**sizes, **settings})).eval()
    if kind == "a bias on the head":
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    return model


class _Tokenizer:
    all_special_ids = (0, 1)

    def __len__(self) -> int:
        return 320


def scoring_of(model: transformers.PreTrainedModel, **wanted: Any) -> Scoring:
    """How a model is to be scored, found anew."""
    exactness._verdicts.clear()
    return exactness.exact_scoring([model], _Tokenizer(), exactness.Wanted(**wanted))


def save(model: transformers.PreTrainedModel, folder: Path, *, tokenizer: str) -> str:
    """Writes a model into a folder, with the tokenizer of another folder."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)

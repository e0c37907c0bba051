"""Random models of families that are another distribution in transformers' training mode than in evaluation mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 2}
_LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_OPT = {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_EXPERTS = {**_LLAMA, "num_key_value_heads": 1, "num_local_experts": 4, "num_experts_per_tok": 2}

# Dropout as the config class defaults to it, where nothing is said.
NOISY: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _GPT),
    "gpt_bigcode": ("GPTBigCodeConfig", _GPT),
    "gpt_neo": (
        "GPTNeoConfig",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]}
        | {"attention_dropout": 0.1, "resid_dropout": 0.1, "embed_dropout": 0.1},
    ),
    "opt, which skips layers": ("OPTConfig", {**_OPT, "word_embed_proj_dim": 32, "layerdrop": 0.5}),
    "biogpt": ("BioGptConfig", {**_LLAMA, "layerdrop": 0.2}),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.1}),
    "seed_oss": ("SeedOssConfig", {**_LLAMA, "num_key_value_heads": 1, "head_dim": 16}),
    "qwen3, attention only": (
        "Qwen3Config",
        {**_LLAMA, "num_key_value_heads": 1, "head_dim": 16, "attention_dropout": 0.2},
    ),
    "phimoe, which samples its routing": (
        "PhimoeConfig",
        {**_EXPERTS, "input_jitter_noise": 0.1, "router_jitter_noise": 0.1},
    ),
    "mixtral, with jitter": ("MixtralConfig", {**_EXPERTS, "router_jitter_noise": 0.2}),
    "granite_moe": ("GraniteMoeConfig", {**_EXPERTS, "attention_dropout": 0.2}),
}
"""By name: the config class and what is not its default."""


def build_noisy(family: str, folder: Path, *, tokenizer: str) -> str:
    """Builds one into a subfolder, with the tokenizer of another folder."""
    config_class, sizes = NOISY[family]
    config = getattr(transformers, config_class)(
        vocab_size=320, initializer_range=0.3, eos_token_id=1, bos_token_id=1, pad_token_id=0, **sizes
    )
    path = str(folder / family)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(path)
    return path

"""Tiny random models of any decoder family that transformers can build, for ``families.py``.

A family is shrunk by the names of its settings: widths, heads, experts, windows and the like mean the same in nearly
all of them. Of its layers one of each kind is kept. What does not fit these rules, and what a family leaves off by
default although its checkpoints use it (soft caps, multipliers), is in ``families.yaml``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gspo_rllib.model_folder import quiet_transformers
from gspo_rllib.warmstart.models import train_tokenizer

TABLE = Path(__file__).with_name("families.yaml")
CONTEXT = 512
WINDOW = 24
VOCABULARY = 336  # more than the tokenizer has: the rest stands for images and other things no text holds
LEAST_LAYERS, MOST_LAYERS = 2, 6
HEAD = 32  # vLLM's CPU kernels want a multiple of that

# Full matches of a setting's name, first one wins.
SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size(_per_layer_input)?|decoder_vocab_size", VOCABULARY),
    (r"max_position_embeddings|n_positions|n_ctx|max_seq_len|max_target_positions|context_length|model_max_length|"
     r"max_sequence_length", CONTEXT),
    (r"sliding_window(_size)?|window_size|attention_window_size|local_attention|attention_chunk_size|keep_window_size",
     WINDOW),
    (r"(num_)?(decoder|encoder)_layers|num_hidden_layers|n_layers?|num_layers|num_(decoder|encoder)_layers|num_blocks",
     LEAST_LAYERS),
    (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index|num_hash_layers|num_kv_shared_layers|"
     r"moe_layer_freq|decoder_sparse_step|interleave_moe_layer_step", 1),
    (r"num_key_value_heads|swa_num_key_value_heads|num_kv_heads|num_query_groups|linear_num_key_heads", 2),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),
    (r"index_n_heads", 16),  # of fewer, all scores of many a key are 0, and which of them are taken is anybody's guess
    (r"(.*_)?(num_)?attention_heads|n_heads?|num_heads|linear_num(_value)?_heads|encoder_heads", 4),
    (r"(.*_)?head_dim|kv_channels|d_head|dim_head|mamba_d_head|mamba_headdim|head_size|attention_head_size", HEAD),
    (r"n_routed_experts|(moe_)?num_(local_)?experts", 8),
    (r"num_experts_per_to(k|ken)|moe_k|moe_topk|n_group|n_groups|mamba_n_groups|moe_num_active", 2),
    (r"topk_group|n_shared_experts|num_shared_experts|zero_expert_num", 1),
    (r"mamba_dt_rank|time_step_rank|pad_size", 8),
    (r"(.*_)?rank|hidden_size_per_layer_input|router_hidden_size|moe_latent_size", 32),
    (r"mamba_d_state|ssm_state_size|state_size|(mamba_|.*attn_)?chunk_(size|length)|index_topk|d_rel", 16),
    (r"(.*_)?hidden_size|n_embd|d_model|emb_dim|(.*_)?embedding_(size|dim)|embedding_dim|word_embed_proj_dim|lru_width|"
     r"dim_model_base|ngram_embed_dim|ple_embed_dim", 128),
    (r"(.*_)?intermediate_size(_mlp)?|(.*_)?ffn_dim|(expert_)?ffn_hidden_size|dff|dim_ff|d_inner|n_inner|mamba_d_ssm|"
     r"feed_forward_size", 256),
)  # fmt: skip
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1}


def families() -> list[str]:
    """All that can be swept: every model type with a causal head, and the variants of the table."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *_table()})


def build(family: str, folder: Path) -> PreTrainedModel:
    """Writes a model with its tokenizer to a folder.

    Args:
        family: One of ``families()``.
        folder: Where to; made if missing.

    Returns:
        The model, in float32 and evaluation mode.
    """
    overrides = dict(_table().get(family) or {})
    if "not_built" in overrides:
        raise NotImplementedError(overrides["not_built"])
    config = shrunk(CONFIG_MAPPING[family.partition("/")[0]], overrides)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    randomise(model)
    tokenizer = train_tokenizer(["What is 17 + 25? The answer is 42."], vocab_size=320)
    tokenizer.model_max_length = CONTEXT
    with quiet_transformers():
        model.save_pretrained(folder)
        if type(model.config) is not type(config):  # a part that loads by the name of the whole only
            config.architectures = [type(model).__name__]
            config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model


def shrunk(config_class: type[PretrainedConfig], overrides: Mapping[str, Any]) -> PretrainedConfig:
    """A small configuration of a class.

    Args:
        config_class: The class.
        overrides: What is set to something else than the rules say; of a part, in a mapping of its own.
    """
    default = config_class()
    settings: dict[str, Any] = {"dtype": "float32"}
    fields = dataclasses.fields(config_class) if dataclasses.is_dataclass(config_class) else ()
    names = {field.name for field in fields}
    for name, part in getattr(config_class, "sub_configs", {}).items():
        if getattr(default, name, None) is not None and hasattr(part, "sub_configs"):
            own = type(getattr(default, name))
            settings[name] = shrunk(own, overrides.get(name, {}))
    unused = iter(range(VOCABULARY - 1, 0, -1))
    for name, value in default.to_dict().items():
        if name == "head_dim" and value is None:
            settings[name] = HEAD
        if isinstance(value, bool) or not isinstance(value, (int, list)):
            continue
        if name in SPECIAL:
            settings[name] = SPECIAL[name]
        elif re.fullmatch(r".*_token_(id|index)", name) and isinstance(value, int):
            settings[name] = value if value < 3 else next(unused)
        elif isinstance(value, int) and (size := _size(name)) is not None:
            settings[name] = size if value > 0 else value
    if "is_decoder" in names:
        settings["is_decoder"] = True
    if "qk_rope_head_dim" in names:  # latent attention has no fewer heads of keys than of queries
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    settings.update({name: token for name, token in SPECIAL.items() if name in names})
    settings.update(_one_layer_of_each_kind(default))
    settings.update({k: v for k, v in overrides.items() if not (isinstance(v, Mapping) and k in settings)})
    return config_class(**settings)


def _size(name: str) -> int | None:
    return next((size for pattern, size in SIZES if re.fullmatch(pattern, name)), None)


def _one_layer_of_each_kind(default: PretrainedConfig) -> dict[str, Any]:
    """Settings that give one value per layer, cut down to layers that differ."""
    count = getattr(default, "num_hidden_layers", None)
    lists = {
        name: value
        for name, value in default.to_dict().items()
        if isinstance(value, list) and count and len(value) == count and not isinstance(value[0], list)
    }
    if not lists:
        return {}
    kept: list[int] = []
    for layer, kind in enumerate(kinds := list(zip(*lists.values(), strict=True))):
        if kind not in [kinds[k] for k in kept] and len(kept) < MOST_LAYERS:
            kept.append(layer)
    kept += [kept[-1]] * (LEAST_LAYERS - len(kept))
    return {name: [value[layer] for layer in kept] for name, value in lists.items()} | {"num_hidden_layers": len(kept)}


@torch.no_grad()
def randomise(model: PreTrainedModel) -> None:
    """Gives weights that let every part be seen in the log-probabilities.

    Matrices keep the size of what passes through them; all else (norms, biases, sinks, decays, routers' corrections)
    moves away from its initial value, at which many a part has no effect.
    """
    generator = torch.Generator().manual_seed(1)
    ends = (model.get_output_embeddings(), model.get_input_embeddings())
    head, embedding = (getattr(part, "weight", None) for part in ends)
    # Where they are one tensor, the token that was just read would outweigh all others.
    tables = {id(head): 0.2, id(embedding): 0.1 if head is embedding else 0.2}
    for tensor in [*model.parameters(), *_saved_buffers(model)]:
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() >= 2 and min(tensor.shape[-2:]) > 4:
            tensor.copy_(noise * tables.get(id(tensor), min(tensor.shape[-2:]) ** -0.5))
        else:
            tensor.add_(0.2 * noise)


def _saved_buffers(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Numbers that are no parameters but belong to a checkpoint, such as a router's corrections."""
    saved = model.state_dict()
    yield from (tensor for name, tensor in model.named_buffers() if name in saved and tensor.is_floating_point())


def _table() -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text()) or {}
    return table

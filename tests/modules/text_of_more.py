"""Random models of which text reaches only a part: multimodal ones, and one whose tokens choose among experts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

_TEXT = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 512, "initializer_range": 0.3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14,
}  # fmt: skip
_EXPERTS = '''
import torch
from transformers import LlamaForCausalLM


class Experts(torch.nn.Module):
    """Every token goes to one of 24 experts, each a module of its own."""

    def __init__(self, width):
        super().__init__()
        self.router = torch.nn.Linear(width, 24, bias=False)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(24))

    def forward(self, hidden_states):
        rows = hidden_states.flatten(0, 1)
        weight, choice = self.router(rows).softmax(-1).max(-1)
        out = torch.zeros_like(rows)
        for number in choice.unique().tolist():
            mine = (choice == number).nonzero()[:, 0]
            out = out.index_add(0, mine, weight[mine, None] * self.experts[number](rows[mine]))
        return out.view_as(hidden_states)


class ExpertsForCausalLM(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Experts(config.hidden_size)
        self.tower = torch.nn.Linear(3, config.hidden_size)
        self.post_init()
'''


def build_gemma3(folder: Path, *, tokenizer: str) -> str:
    """Gemma-3 with its vision tower, and the tokenizer of another folder."""
    config = transformers.Gemma3Config(
        text_config=_TEXT, vision_config=_VISION | {"image_size": 28}, mm_tokens_per_image=4, image_token_index=5,
        boi_token_index=6, eoi_token_index=7, initializer_range=0.3,
    )  # fmt: skip
    return _build(config, folder, tokenizer)


def build_gemma4(folder: Path, *, tokenizer: str) -> str:
    """Gemma-4 with its vision tower; the last two of its layers share the keys and values of others."""
    text = _TEXT | {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size_per_layer_input": 320, "hidden_size_per_layer_input": 8, "global_head_dim": 16,
    }  # fmt: skip
    vision = _VISION | {"num_key_value_heads": 2, "head_dim": 8, "position_embedding_size": 64}
    config = transformers.Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, image_token_id=5, boi_token_id=6, eoi_token_id=7
    )
    return _build(config, folder, tokenizer)


def build_qwen3_5(folder: Path, *, tokenizer: str) -> str:
    """Qwen-3.5 as it is published: a multimodal config, of which transformers' causal language model is the text."""
    text = _TEXT | {"layer_types": ["linear_attention", "full_attention"]}
    text |= {f"linear_{of}_head_dim": 16 for of in ("key", "value")}
    text |= {f"linear_num_{of}_heads": 2 for of in ("key", "value")}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = transformers.Qwen3_5Config(text_config=text, vision_config=vision)
    config.architectures = ["Qwen3_5ForConditionalGeneration"]
    path = _build(config, folder, tokenizer)
    config.save_pretrained(path)
    return path


def build_experts(folder: Path, *, tokenizer: str) -> str:
    """A Llama of the folder's own code: 24 experts in each layer, and a tower beside the layers."""
    path = _build(transformers.LlamaConfig(**_TEXT), folder, tokenizer)
    (folder / "modeling_experts.py").write_text(_EXPERTS)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_experts.ExpertsForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return path


def _build(config: transformers.PretrainedConfig, folder: Path, tokenizer: str) -> str:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return str(folder)

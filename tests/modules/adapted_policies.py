"""Tiny policies of each kind, with an adapter too, and one that has been trained a while."""

from __future__ import annotations

from typing import Any

import torch

from gspo_rllib.envs import UnicodeText
from gspo_rllib.modules import CausalLMModule

ATTENTION = ["q_proj", "v_proj"]
LORA = {
    "tiny_dense": {"rank": 4},
    "tiny_tied": {"rank": 4},
    "tiny_moe": {
        "rank": 4,
        "target_modules": ATTENTION,
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    },
}

POLICIES: dict[str, tuple[str, dict[str, Any] | None, dict[str, Any]]] = {
    "dense": ("tiny_dense", None, {}),
    "tied": ("tiny_tied", None, {}),
    "mixture": ("tiny_moe", None, {}),
    "adapter": ("tiny_dense", LORA["tiny_dense"], {}),
    "critic": ("tiny_dense", None, {"use_critic": True}),
}
"""Fixture of the model, adapter and further settings of each kind of policy."""

IDS = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(1))


def build(path: str, lora: dict[str, Any] | None, **model: Any) -> CausalLMModule:
    text = UnicodeText(100)
    torch.manual_seed(0)
    settings = {"path": path, "lora": lora, **model}
    return CausalLMModule(observation_space=text, action_space=text, model_config=settings)


def move(module: CausalLMModule, seed: int = 0) -> None:
    """As far as a few hundred steps would, not a few."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.policy_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))

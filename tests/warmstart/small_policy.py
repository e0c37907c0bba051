"""The environment and the model size that warm starts are tested with."""

from __future__ import annotations

import gymnasium

CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"
SMALL = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 32,
    "intermediate_size": 128,
}


def make_calculator() -> gymnasium.Env[str, str]:
    return gymnasium.make(CALCULATOR, operations=2)

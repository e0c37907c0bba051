"""The config of a small env runner, and what two runs are compared by."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from gspo_rllib.types import turns
from tests.toy_envs import faulty_envs

Weights = dict[str, np.ndarray]


def runner_config(model: str, env: Any = faulty_envs.EchoEnv, **changes: Any) -> AlgorithmConfig:
    config = AlgorithmConfig()
    config.environment(env, env_config=changes.pop("env_config", {}))
    config.rl_module(model_config={"path": model})
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=4)
    settings: dict[str, Any] = {
        "engine": "transformers",
        "engine_dtype": "float32",
        "engine_device": "cpu",
        "engine_options": {},
        "temperature": 1.0,
        "max_tokens_per_turn": 6,
        "max_turns": None,
        "max_model_len": 256,
        "step_timeout_s": 20.0,
        "engine_timeout_s": None,
        "trajectory_retries": 1,
        "ragged_groups": False,
        "context_overflow": "truncate",
        "segment_share": 0.5,
        "max_summary_tokens": 32,
        "weight_update": "turn",
        "group_size": 2,
        "groups_per_iteration": 1,
        "seed": 0,
        "in_evaluation": False,
    }
    for name, value in (settings | changes).items():
        setattr(config, name, value)
    return config


def shifted(weights: Weights) -> Weights:
    """Other weights: every one a little larger, the head upside down."""
    return {name: -value if name == "lm_head.weight" else value * 1.1 for name, value in weights.items()}


def logp(episodes: list) -> np.ndarray:
    return np.concatenate([turn.action_logp for episode in episodes for turn in turns(episode)])


def same_samples(episodes: list, others: list) -> bool:
    """Same tokens; their log-probabilities up to the float noise of another batch or a cached prefix."""
    ids, other_ids = ([turn.action_token_ids.tolist() for e in es for turn in turns(e)] for es in (episodes, others))
    return ids == other_ids and np.allclose(logp(episodes), logp(others), rtol=0, atol=1e-4)

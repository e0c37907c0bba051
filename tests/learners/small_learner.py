"""A learner on a tiny model, and groups with something to learn from."""

from __future__ import annotations

from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.envs import UnicodeText
from gspo_rllib.types import group_episodes
from tests.episodes import make_group

BF16 = {"autocast_dtype": "bfloat16"}
SPACES = {DEFAULT_MODULE_ID: (UnicodeText(100), UnicodeText(100))}


def learner_config(path, *, model=None, num_learners=0, **training):
    return (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 1})
        .rl_module(model_config={"path": str(path), **(model or {})})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .learners(num_learners=num_learners)
        .training(**{"group_size": 4, "groups_per_iteration": 4, "num_minibatches": 1, "grad_clip": None, **training})
        .debugging(seed=0)
    )


def even_groups(count=4):
    return group_episodes([episode for i in range(count) for episode in make_group(f"g{i}", 4)])


def bf16_learner(path, *, lr=1e-6, **model):
    config = learner_config(path, model={**BF16, **model}, lr=lr, old_log_probs="learner")
    return config.build_learner(spaces=SPACES)

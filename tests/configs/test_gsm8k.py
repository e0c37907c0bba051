"""The recipe for GSM8K, on rows of its format and a small model: every setting but the sizes is the recipe's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gspo_rllib.configs import load_run

ROWS = Path(__file__).parents[1] / "data" / "gsm8k_format.jsonl"

SMALL = [
    f"environment.env_config.path={ROWS}",
    f"evaluation.evaluation_config.env_config.path={ROWS}",
    "env_runners.num_env_runners=0",
    "env_runners.num_gpus_per_env_runner=0",
    "env_runners.num_envs_per_env_runner=8",
    "learners.num_learners=0",
    "learners.num_gpus_per_learner=0",
    "training.groups_per_iteration=4",
    "training.group_size=2",
    "generation.engine=transformers",
    "generation.engine_dtype=float32",
    "generation.max_tokens_per_turn=8",
    "generation.max_model_len=384",
    "run.evaluate_every=1",
]


@pytest.mark.parametrize(
    ("algorithm", "scope", "clip"), [("GSPO", "sequence", (3e-4, 4e-4)), ("GRPO", "token", (0.2, 0.28))]
)
def test_one_switch_turns_the_recipe_from_one_algorithm_into_the_other(algorithm, scope, clip) -> None:
    config = load_run("gsm8k", [f"run.algorithm={algorithm}"]).config
    assert config.importance_sampling_level == scope
    assert (config.clip_low, config.clip_high) == clip


@pytest.mark.parametrize("algorithm", ["GSPO", "GRPO"])
def test_the_recipe_trains_and_evaluates_every_row(algorithm, ray_local, tiny_dense) -> None:
    overrides = [*SMALL, f"rl_module.model_config.path={tiny_dense}", f"run.algorithm={algorithm}"]
    algo = load_run("gsm8k", overrides).config.build_algo()
    try:
        result = algo.train()
    finally:
        algo.stop()
    evaluated = result["evaluation"]["env_runners"]
    assert evaluated["num_groups"] == len(ROWS.read_text().splitlines())
    assert evaluated["success_mean"] == 0.0, "a random model"
    assert "accuracy" in evaluated["estimates"]
    assert math.isfinite(result["env_runners"]["episode_return_mean"])

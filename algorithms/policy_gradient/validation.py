"""What is checked before the first actor starts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gspo_rllib.algorithms.policy_gradient.guards import cautions, refusals
from gspo_rllib.engines.registry import check_engine, default_engine
from gspo_rllib.env_pool.factory import check_language_env_spec
from gspo_rllib.env_runners.engine_spec import resolve_max_model_len
from gspo_rllib.env_runners.settings import TAKES_UP_WITHIN_TURNS, GenerationSettings
from gspo_rllib.errors import SettingError
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.modules.causal_lm import check_model_config

if TYPE_CHECKING:
    from gspo_rllib.algorithms.policy_gradient.config import PolicyGradientConfig

logger = logging.getLogger("gspo_rllib")


def validate(config: PolicyGradientConfig) -> None:
    """See ``PolicyGradientConfig.validate``."""
    if not config.in_evaluation:
        _check_training(config)
    _check_generation(config)
    model = check_model_config(config._model_config if isinstance(config._model_config, dict) else {})
    check_language_env_spec(config.env, config.env_config)
    path, trust = str(model["path"]), model["trust_remote_code"]
    _check_context(config)
    load_tokenizer(path, trust_remote_code=trust)
    check_engine(config.engine or default_engine())


def _check_training(config: PolicyGradientConfig) -> None:
    settings = config.settings(config.training_settings)
    unused = {
        "minibatch_size": config.minibatch_size,
        "train_batch_size_per_learner": config._train_batch_size_per_learner,
    }
    for name, value in unused.items():
        if value is not None:
            raise SettingError(
                f"training.{name} has no effect here: an iteration trains on groups_per_iteration x group_size "
                "trajectories, split into num_minibatches optimiser steps. Set those three instead."
            )
    betas = settings.adam_betas
    if len(betas) != 2 or not all(isinstance(beta, (int, float)) and 0.0 <= beta < 1.0 for beta in betas):
        raise SettingError(f"training.adam_betas is {betas!r}; allowed: two numbers, each >= 0 and < 1")
    if settings.num_minibatches > settings.groups_per_iteration:
        raise SettingError(
            f"training.num_minibatches is {settings.num_minibatches}, but there are only "
            f"{settings.groups_per_iteration} groups_per_iteration; a minibatch holds whole groups."
        )
    if TAKES_UP_WITHIN_TURNS[config.weight_uptake] and not settings.max_staleness:
        raise SettingError(
            f"generation.weight_uptake is {config.weight_uptake!r}, which has no effect with "
            "training.max_staleness=0: no turn is being sampled when weights change. Use 'turn', or max_staleness=1."
        )
    for problem in refusals(settings, recomputes_old_log_probs=config.recompute_old_log_probs):
        raise SettingError(f"training.{problem}")
    for problem in cautions(settings):
        logger.warning("training.%s", problem)


def _check_generation(config: PolicyGradientConfig) -> None:
    settings = config.settings(GenerationSettings)
    if settings.temperature == 0.0 and not config.in_evaluation:
        raise SettingError(
            "generation.temperature is 0: all trajectories of a group would be the same and their advantages 0. Use "
            "1.0 for training; evaluation can be greedy with explore=False."
        )
    if config.num_envs_per_env_runner < 1:
        raise SettingError(
            f"env_runners.num_envs_per_env_runner is {config.num_envs_per_env_runner}; it is the number of "
            "trajectories a runner plays at a time and must be >= 1"
        )


def _check_context(config: PolicyGradientConfig) -> None:
    room = resolve_max_model_len(config)
    if config.max_tokens_per_turn >= room:
        raise SettingError(
            f"generation.max_tokens_per_turn is {config.max_tokens_per_turn}, which leaves no room for a prompt in a "
            f"context of {room} tokens. Lower it or raise generation.max_model_len."
        )

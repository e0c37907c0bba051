"""From a config to the engine and tokenizer an env runner needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.model_folder import load_model_config, load_tokenizer
from gspo_rllib.seeds import derive_seed

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from transformers import PreTrainedTokenizerBase


def load_runner_tokenizer(config: AlgorithmConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the configured model.

    Raises:
        SettingError: No model path is set.
        ModelError: There is no tokenizer that can render a chat.
    """
    return load_tokenizer(_model_path(config), trust_remote_code=_trusts_remote_code(config))


def engine_spec(config: AlgorithmConfig, *, stop_token_ids: tuple[int, ...], worker_index: int) -> EngineSpec:
    """What to ask the engine registry for.

    A training and an evaluation runner in one process get equal specs, and so share one engine.

    Args:
        config: Holds ``engine``, ``engine_dtype``, ``engine_device``, ``engine_options``, ``max_model_len``,
            ``num_envs_per_env_runner``, ``seed`` and ``model_config``.
        stop_token_ids: Ids that end a turn.
        worker_index: Of the env runner; makes its engine's own seed differ from the others'.

    Raises:
        SettingError: No model path is set, or the context asked for is longer than the model's.
        ModelError: The model's config cannot be read, or does not say how long a context may be.
    """
    return EngineSpec(
        engine=config.engine or registry.default_engine(),
        model=_model_path(config),
        dtype=config.engine_dtype,
        max_model_len=resolve_max_model_len(config),
        max_num_seqs=config.num_envs_per_env_runner,
        stop_token_ids=stop_token_ids,
        seed=derive_seed(config.seed, "engine", worker_index, bits=31),
        device=config.engine_device or _default_device(),
        trust_remote_code=_trusts_remote_code(config),
        options=dict(config.engine_options or {}),
    )


def resolve_max_model_len(config: AlgorithmConfig) -> int:
    """``config.max_model_len`` or, without one, the longest context the model was made for.

    Raises:
        SettingError: The context asked for is longer than the model's.
        ModelError: The model's config cannot be read, or does not say how long a context may be.
    """
    path = _model_path(config)
    model_config = load_model_config(path, trust_remote_code=_trusts_remote_code(config))
    longest = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if config.max_model_len is None:
        if longest is None:
            raise ModelError(
                f"model path {path!r} does not say how long a context may be: set generation.max_model_len."
            )
        return longest
    if longest is not None and config.max_model_len > longest:
        raise SettingError(
            f"generation.max_model_len={config.max_model_len}: the model at {path!r} was made for contexts of at most "
            f"{longest} tokens (max_position_embeddings). Use at most that, or leave it out."
        )
    return config.max_model_len


def _model_path(config: AlgorithmConfig) -> str:
    path = _model_config(config).get("path")
    if not path:
        raise SettingError(
            "rl_module: no model is set. Use config.rl_module(model_config={'path': ...}) with a local Hugging Face "
            "folder or a hub name."
        )
    return str(path)


def _trusts_remote_code(config: AlgorithmConfig) -> bool:
    return bool(_model_config(config).get("trust_remote_code", False))


def _model_config(config: AlgorithmConfig) -> dict[str, Any]:
    return dict(config.model_config or {})


def _default_device() -> str:
    import torch

    # Ray hides the accelerators from an actor that asked for none, so what is visible here is what may be used.
    return "cuda" if torch.cuda.is_available() else "cpu"

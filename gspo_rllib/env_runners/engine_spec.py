"""From settings to the engine and tokenizer an env runner needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.replies import ToolParser
from gspo_rllib.engines.choice import Choice, choose
from gspo_rllib.engines.compute_threads import compute_threads
from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.model_folder import declared_end_ids, load_model_config, load_tokenizer, model_path
from gspo_rllib.modules.lora_settings import largest_rank
from gspo_rllib.precision import engine_dtype
from gspo_rllib.seeds import derive_seed
from gspo_rllib.types import ChatSpec

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
    from transformers import PreTrainedTokenizerBase


def load_runner_tokenizer(model_config: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of the configured model.

    Args:
        model_config: What ``rl_module`` was given.

    Raises:
        SettingError: No model path is set.
        ModelError: There is no tokenizer that can render a chat.
    """
    return load_tokenizer(_model_path(model_config), trust_remote_code=_trusts_remote_code(model_config))


def load_renderer(settings: GenerationSettings, model_config: Mapping[str, Any], chat: ChatSpec | None) -> ChatRenderer:
    """The renderer of the configured model's conversations.

    Args:
        settings: Say what the chat template is given.
        model_config: What ``rl_module`` was given.
        chat: An environment's framing.

    Raises:
        SettingError: No model path is set, or the chat template may not be given something.
        ModelError: There is no tokenizer that can render a chat, or the model's config cannot be read.
    """
    tokenizer, declared = _tokenizer_and_ends(model_config)
    return ChatRenderer(tokenizer, chat, end_token_ids=declared, template_kwargs=settings.template_kwargs)


def load_message_renderer(settings: GenerationSettings, model_config: Mapping[str, Any]) -> MessageRenderer:
    """The renderer of what agents say to the configured model, with a tokenizer of its own; see ``load_renderer``."""
    tokenizer, declared = _tokenizer_and_ends(model_config)
    return MessageRenderer(tokenizer, declared, settings.template_kwargs)


def load_tool_parser(name: str | None, model_config: Mapping[str, Any]) -> ToolParser | None:
    """vLLM's parser of calls of tools, for the configured model; None where none is named.

    Args:
        name: ``agent.tool_parser``.
        model_config: What ``rl_module`` was given.

    Raises:
        SettingError: There is none of this name, or it cannot read replies of this model.
        EngineError: vLLM is not installed.
        ModelError: The model has no tokenizer that can render a chat.
    """
    if name is None:
        return None
    from gspo_rllib.engines.vllm_tool_parsers import VLLMToolParser

    return VLLMToolParser(name, _tokenizer_and_ends(model_config)[0])


def check_vocabulary(renderer: ChatRenderer, model_config: Mapping[str, Any]) -> None:
    """Refuses a tokenizer whose conversations hold tokens that the model has no embedding for.

    Args:
        renderer: Renders conversations.
        model_config: What ``rl_module`` was given.

    Raises:
        ModelError: Such a token is in a prompt, or ends a reply.
    """
    path, size = _model_path(model_config), vocabulary_size(model_config)
    needed = max([*renderer.first_prompt("."), *renderer.format.end.ids])
    if size is not None and needed >= size:
        spelt = renderer.format.tokens.shown([needed])
        raise ModelError(
            f"model path {path!r}: its conversations hold the token {spelt!r} (id {needed}), but the model has only "
            f"{size} embeddings: the token was added to the tokenizer alone. Resize the model's embeddings "
            "(model.resize_token_embeddings) and save both together, or use the tokenizer that belongs to the model."
        )


def vocabulary_size(model_config: Mapping[str, Any]) -> int | None:
    """How many ids the configured model has embeddings for; None where its config does not say.

    Raises:
        SettingError: No model path is set.
        ModelError: The model's config cannot be read.
    """
    path = _model_path(model_config)
    text_config = load_model_config(path, trust_remote_code=_trusts_remote_code(model_config)).get_text_config()
    return getattr(text_config, "vocab_size", None)


def longest_context(model_config: Mapping[str, Any]) -> int | None:
    """How many tokens a context of the configured model may have; None where its config does not say.

    Raises:
        SettingError: No model path is set.
        ModelError: The model's config cannot be read.
    """
    path = _model_path(model_config)
    text_config = load_model_config(path, trust_remote_code=_trusts_remote_code(model_config)).get_text_config()
    return getattr(text_config, "max_position_embeddings", None)


def chosen_engine(config: AlgorithmConfig) -> Choice:
    """The engine that samples for a config's env runners: the one it names, or the one that suits device and model.

    It follows from the config alone, so that driver and runners agree; only for a runner in this process does it matter
    what this process sees.

    Args:
        config: Configures env runners, for training or evaluation.

    Raises:
        SettingError: No model path is set.
        ModelError: The model's config cannot be read.
    """
    settings, model_config = GenerationSettings.of(config), config.model_config
    if settings.engine is not None:
        return Choice(settings.engine, "generation.engine names it")
    if settings.adapter_sync == "swap":
        return Choice("vllm", "generation.adapter_sync is 'swap', which is vLLM's")
    return choose(
        _model_path(model_config),
        device=settings.engine_device or _asked_device(config),
        trust_remote_code=_trusts_remote_code(model_config),
        options=settings.engine_options,
    )


def threads_for(model_config: Mapping[str, Any], num_cpus: float) -> int | None:
    """Threads that torch is to compute with in this process; None where it has as many as it should.

    Args:
        model_config: What ``rl_module`` was given.
        num_cpus: CPUs that this process is given.

    Raises:
        SettingError: No model path is set.
    """
    if _default_device() != "cpu":
        return None
    trusted = _trusts_remote_code(model_config)
    return compute_threads(_model_path(model_config), num_cpus, trust_remote_code=trusted)


def _asked_device(config: AlgorithmConfig) -> str:
    if config.num_env_runners:
        return "cuda" if config.num_gpus_per_env_runner else "cpu"
    return _default_device()


def engine_spec(
    settings: GenerationSettings,
    model_config: Mapping[str, Any],
    *,
    max_num_seqs: int,
    run_seed: int | None,
    stop_token_ids: tuple[int, ...],
    worker_index: int,
    colocated_bytes: int | None = None,
) -> EngineSpec:
    """What to ask the engine registry for.

    A training and an evaluation runner in one process get equal specs, and so share one engine.

    Args:
        settings: How text is sampled. Where they name no engine, the one that suits device and model samples.
        model_config: What ``rl_module`` was given.
        max_num_seqs: Most replies that are sampled at a time.
        run_seed: Seed of the run; None for an engine whose own random numbers need not repeat.
        stop_token_ids: Ids that end a turn.
        worker_index: RLlib's index of the env runner; makes the seeds of different runners' engines differ.
        colocated_bytes: See ``EngineSpec``.

    Raises:
        SettingError: No model path is set, or the context asked for is longer than the model's.
        ModelError: The model's config cannot be read, or does not say how long a context may be.
    """
    path, device = _model_path(model_config), settings.engine_device or _default_device()
    trusted = _trusts_remote_code(model_config)
    named = (
        settings.engine or choose(path, device=device, trust_remote_code=trusted, options=settings.engine_options).name
    )
    return EngineSpec(
        engine=named,
        model=path,
        dtype=engine_dtype(settings, model_config),
        max_model_len=resolve_max_model_len(settings.max_model_len, model_config),
        max_num_seqs=max_num_seqs,
        stop_token_ids=stop_token_ids,
        seed=derive_seed(run_seed, "engine", worker_index, bits=31),
        device=device,
        trust_remote_code=trusted,
        options=dict(settings.engine_options),
        adapter_rank=largest_rank(model_config["lora"]) if settings.adapter_sync == "swap" else None,
        colocated_bytes=colocated_bytes,
    )


def resolve_max_model_len(max_model_len: int | None, model_config: Mapping[str, Any]) -> int:
    """The longest context: what was asked for or, without that, what the model was made for.

    Args:
        max_model_len: Tokens asked for; None for the model's own.
        model_config: What ``rl_module`` was given.

    Raises:
        SettingError: The context asked for is longer than the model's.
        ModelError: The model's config cannot be read, or does not say how long a context may be.
    """
    path, longest = _model_path(model_config), longest_context(model_config)
    if max_model_len is None:
        if longest is None:
            raise ModelError(
                f"model path {path!r} does not say how long a context may be: set generation.max_model_len."
            )
        return longest
    if longest is not None and max_model_len > longest:
        raise SettingError(
            f"generation.max_model_len={max_model_len}: the model at {path!r} was made for contexts of at most "
            f"{longest} tokens (max_position_embeddings). Use at most that, or leave it out."
        )
    return max_model_len


def _tokenizer_and_ends(model_config: Mapping[str, Any]) -> tuple[PreTrainedTokenizerBase, Sequence[int]]:
    trusted = _trusts_remote_code(model_config)
    # First, for what is wrong with it is wrong with the tokenizer, too, which says it less plainly.
    load_model_config(_model_path(model_config), trust_remote_code=trusted)
    tokenizer = load_runner_tokenizer(model_config)
    return tokenizer, declared_end_ids(_model_path(model_config), tokenizer, trust_remote_code=trusted)


def _model_path(model_config: Mapping[str, Any]) -> str:
    path = model_config.get("path")
    if not path:
        raise SettingError(
            "rl_module: no model is set. Use config.rl_module(model_config={'path': ...}) with a local Hugging Face "
            "folder or a hub name."
        )
    return model_path(model_config)


def _trusts_remote_code(model_config: Mapping[str, Any]) -> bool:
    return bool(model_config.get("trust_remote_code", False))


def _default_device() -> str:
    import torch

    # Ray hides the accelerators from an actor that asked for none, so what is visible here is what may be used.
    return "cuda" if torch.cuda.is_available() else "cpu"

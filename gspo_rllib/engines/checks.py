"""What every engine refuses, with the same words: a bad spec, a bad request, broken samples."""

from __future__ import annotations

import math
from collections.abc import Container
from typing import TYPE_CHECKING

import numpy as np
import torch

from gspo_rllib.engines.protocol import EngineSpec, GenerationRequest
from gspo_rllib.errors import EngineError, SettingError, described, did_you_mean
from gspo_rllib.model_folder import load_model_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DTYPES = ("float32", "bfloat16")


def load_config(spec: EngineSpec) -> PretrainedConfig:
    """Reads the model's configuration and checks the spec against it.

    Args:
        spec: How the engine is to be built.

    Returns:
        The configuration of the text model (of a multimodal model, its text part).

    Raises:
        ModelError: The folder or hub name holds no model configuration.
        SettingError: ``dtype``, ``max_model_len`` or ``max_num_seqs`` is illegal, or the context is longer than the
            model's.
    """
    if spec.dtype not in DTYPES:
        raise SettingError(f"engine dtype {spec.dtype!r} is not supported. {did_you_mean(spec.dtype, DTYPES)}")
    if spec.max_num_seqs < 1:
        raise SettingError(f"max_num_seqs is {spec.max_num_seqs}; it must be at least 1.")
    config = load_model_config(spec.model, trust_remote_code=spec.trust_remote_code)
    text_config = config.get_text_config()
    longest = getattr(text_config, "max_position_embeddings", None)
    if spec.max_model_len < 2 or (longest is not None and spec.max_model_len > longest):
        raise SettingError(
            f"max_model_len is {spec.max_model_len}; the model {spec.model!r} allows 2 to {longest}. Lower it, or use "
            "a model with a longer context."
        )
    return text_config


def usable_device(name: str) -> torch.device:
    """The torch device of a name.

    Raises:
        EngineError: Nothing can be computed on it here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise EngineError(
            f"engine device {name!r} cannot be used ({described(error, 200)}). Use 'cpu', or install a "
            "torch build for it."
        ) from error
    return device


def check_request(
    request: GenerationRequest, *, max_model_len: int, vocab_size: int, unfinished: Container[str]
) -> None:
    """Refuses a request that no engine can answer.

    Args:
        request: The request.
        max_model_len: Longest context in tokens, prompt and samples together.
        vocab_size: Ids run from 0 to ``vocab_size - 1``.
        unfinished: Ids of the requests the engine still works on.

    Raises:
        EngineError: The request is empty, too long, holds an unknown id, or has illegal sampling settings.
    """
    name, prompt = request.request_id, request.prompt_token_ids
    if not prompt:
        raise EngineError(f"request {name!r}: the prompt is empty; it needs at least one token id.")
    if request.max_tokens < 1:
        raise EngineError(f"request {name!r}: max_tokens is {request.max_tokens}; it must be at least 1.")
    if len(prompt) + request.max_tokens > max_model_len:
        raise EngineError(
            f"request {name!r}: {len(prompt)} prompt tokens + max_tokens {request.max_tokens} exceed max_model_len "
            f"{max_model_len}. Ask for at most {max(max_model_len - len(prompt), 0)} tokens, or end the trajectory."
        )
    if not (math.isfinite(request.temperature) and request.temperature >= 0):
        raise EngineError(f"request {name!r}: temperature is {request.temperature}; it must be finite and >= 0.")
    if not 0 <= min(prompt) <= max(prompt) < vocab_size:
        worst = min(prompt) if min(prompt) < 0 else max(prompt)
        raise EngineError(
            f"request {name!r}: token id {worst} is outside the model's vocabulary (0 to {vocab_size - 1}). The "
            "tokenizer and the model must belong together."
        )
    if request.stop and not all(request.stop):
        raise EngineError(f"request {name!r}: stop is {request.stop!r}; a stop string must not be empty.")
    if name in unfinished:
        raise EngineError(f"request {name!r} is already unfinished in this engine; request ids must be unique.")


def check_logp(request_id: str, logp: np.ndarray) -> None:
    """Refuses samples drawn from a broken distribution.

    Raises:
        EngineError: A log-probability is not finite, so the model's logits were NaN or infinite.
    """
    if not np.isfinite(logp).all():
        raise EngineError(
            f"request {request_id!r}: the model produced non-finite log-probabilities. Its weights have probably "
            "diverged: lower lr or grad_clip, or restore an earlier checkpoint."
        )

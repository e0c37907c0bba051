"""What an env runner needs from a generation engine: tokens in, tokens out.

Submit any number of requests, then call ``step`` until nothing is left: requests join and leave the running batch on
their own (continuous batching). An engine is driven by one thread and never runs unless ``step`` is called, so a
weight update needs no pause protocol: it happens between two steps, when no request is unfinished, or, where an engine
can, while some are: those are computed again under the new weights and go on sampling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from gspo_rllib.types import FinishReason


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One turn to sample.

    Attributes:
        request_id: Unique among the unfinished requests of the engine.
        prompt_token_ids: The whole context so far, at least one id.
        max_tokens: At most this many ids are sampled, >= 1; ``len(prompt_token_ids) + max_tokens`` must not exceed
            the engine's ``max_model_len``.
        temperature: Divides the logits, >= 0; 0 picks the most likely id.
        seed: Makes this request's samples reproducible whatever else is in the batch.
        stop: Strings that end the turn: sampling ends after the id that completes one of them in the decoded reply
            (special tokens left out). Needs a tokenizer in the model folder.
    """

    request_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    temperature: float
    seed: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished request.

    Attributes:
        request_id: Id of the request that is finished.
        token_ids: The sampled ids, the stop id, or the ids of the stop string, included when they were sampled.
        logp: One log-probability (nats) per sampled id, of the distribution it was drawn from (temperature
            included); at temperature 0, of the temperature-1 distribution.
        finish_reason: ``"stop"`` after a stop id or a stop string, ``"length"`` after ``max_tokens``.
        num_cached_tokens: Prompt ids whose keys and values were reused rather than computed when the request started.
        token_versions: int32, the weights version each id was sampled with; None when that was one version for all,
            the engine's ``weights_version`` at the step that finished the request.
    """

    request_id: str
    token_ids: list[int]
    logp: np.ndarray
    finish_reason: FinishReason
    num_cached_tokens: int = 0
    token_versions: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything that decides how an engine is built; equal specs in one process share one engine.

    Attributes:
        engine: Registered name, ``"vllm"`` or ``"transformers"``.
        model: Local Hugging Face folder or hub name.
        dtype: ``"float32"`` or ``"bfloat16"``: weights, activations and KV cache of the engine.
        max_model_len: Longest context in tokens, prompt and samples together.
        max_num_seqs: Most requests in one batch.
        stop_token_ids: Ids that end a turn.
        seed: Seeds the engine's own random state; must differ between env runners.
        device: Torch device for engines that take one (``"cpu"``, ``"cuda"``).
        trust_remote_code: Whether the model folder may run its own code.
        options: Passed to the engine's constructor as they are (vLLM: any ``EngineArgs`` field, e.g.
            ``tensor_parallel_size``, ``gpu_memory_utilization``, ``kv_cache_memory_bytes``).
        adapter_rank: Largest rank of the adapters that the engine is sent in place of whole weights; None for weights.
        colocated_bytes: What learners keep on the engine's device while it samples; the engine gives its own memory
            back (``Engine.sleep``) while they train. None where it never does.
    """

    engine: str
    model: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    stop_token_ids: tuple[int, ...]
    seed: int = 0
    device: str = "cpu"
    trust_remote_code: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    adapter_rank: int | None = None
    colocated_bytes: int | None = None


class Engine(Protocol):
    """A loaded model that samples turns.

    Attributes:
        max_model_len: Longest context in tokens.
        weights_version: Version of the weights it holds, as passed to ``load_weights``; None before the first.
        can_update_while_running: Whether ``load_weights`` may keep requests running.

    An engine may also have ``loads_tensors = True``: then a learner on a GPU in the same process hands it tensors on
    that device instead of arrays, which spares the way through host memory. One whose spec has ``colocated_bytes`` has
    ``sleep()``: it gives back the memory of weights and caches, holds no version, and takes memory again when weights
    are loaded. It raises ``WeightSyncError`` while requests are unfinished.
    """

    max_model_len: int
    weights_version: int | None
    can_update_while_running: bool

    def submit(self, request: GenerationRequest) -> None:
        """Queues a request; it joins the batch at the next ``step``.

        Raises:
            EngineError: The request is empty, longer than ``max_model_len``, or holds an id outside the vocabulary.
        """

    def step(self) -> list[Generation]:
        """Runs one forward pass for everything that is running; returns the requests that finished in it."""

    def has_work(self) -> bool:
        """Whether any submitted request is unfinished."""

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forgets unfinished requests; they never appear in a later ``step``."""

    def load_weights(
        self, named_weights: Mapping[str, np.ndarray], version: int, *, keep_running: bool = False
    ) -> None:
        """Replaces all weights and drops every cached key and value.

        With ``keep_running``, unfinished requests stay: their contexts, prompt and samples so far, are computed again
        under the new weights, and they go on sampling from the same random stream. What was sampled keeps its
        log-probabilities; ``Generation.token_versions`` says which weights those belong to.

        Args:
            named_weights: The *whole* ``state_dict`` under Hugging Face names (a tied head under both of its
                names); float32 arrays, possibly read-only.
            version: What ``weights_version`` is afterwards.
            keep_running: Whether unfinished requests go on; otherwise there may be none.

        Raises:
            WeightSyncError: A request is unfinished and ``keep_running`` is False or not possible here, a cache could
                not be dropped, or a name or shape is unknown.
        """

    def close(self) -> None:
        """Frees the model and its caches."""

"""Generation with transformers alone: continuous batching and a cache of earlier turns, on any device.

The embedded default where vLLM is not installed. It serves any ``AutoModelForCausalLM`` whose attention goes through
transformers' attention interface; at construction it compares its own forward pass with the model's and refuses a model
it would get wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import AttentionInterface
from transformers.utils import logging as transformers_logging

from gspo_rllib.engines import checks
from gspo_rllib.engines.device_room import colocated_room, weight_bytes
from gspo_rllib.engines.emptied import Emptied
from gspo_rllib.engines.expert_pass import TellsExperts
from gspo_rllib.engines.protocol import EngineSpec, Generation, GenerationRequest
from gspo_rllib.engines.sampling import sample_tokens
from gspo_rllib.engines.slot_attention import (
    ATTENTION_NAME,
    check_servable,
    flat_place,
    kernels_for_new_shapes,
    plan_attention,
    slot_attention,
)
from gspo_rllib.engines.slot_cache import ROWS, SlotCache, attended_length
from gspo_rllib.engines.slot_table import SlotChoice, SlotTable
from gspo_rllib.engines.stop_strings import StopStrings
from gspo_rllib.engines.trial import untried
from gspo_rllib.engines.weights import NamedWeights, TokenVersions, as_tensor, check_idle, check_weights, without_tied
from gspo_rllib.errors import EngineError, GSPOError, ModelError, SettingError, described, did_you_mean
from gspo_rllib.model_folder import load_model_config, load_tokenizer
from gspo_rllib.types import FinishReason

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OPTIONS = {"max_batch_tokens": 2048, "kv_cache_memory_bytes": None, "batch_invariant": True}
_CPU_CACHE_BYTES = 8 << 30  # an upper bound: the cache only grows to what the contexts need
_CUDA_CACHE_FRACTION = 0.3  # of the memory that is free once the model is loaded; a learner may share the device
_REMEDY = untried("vllm")


@dataclass(slots=True)
class _Running:
    """A request that has a slot."""

    request: GenerationRequest
    slot: int
    cached: int
    computed: int  # tokens whose keys and values are in the cache
    uniform: list[float]  # one per sample
    tokens: list[int]  # prompt and samples
    logp: list[float] = field(default_factory=list)


class TransformersEngine(TellsExperts):
    """Samples turns with a transformers model; see ``Engine`` for the contract.

    Args:
        spec: ``options`` may hold ``max_batch_tokens`` (new tokens computed in one step at most; a longer prompt takes
            several), ``kv_cache_memory_bytes`` (bound of the cache; default 8 GiB on CPU, 30 % of the free memory on
            CUDA; bounds how many requests run at once) and ``batch_invariant`` (on a CPU a sample is the same to the
            bit in any company, since what is too small is filled up; the default).

    Raises:
        EngineError: The model cannot be served, or the device is missing.
        ModelError: The model folder cannot be loaded.
        SettingError: A setting or option is illegal.
    """

    can_update_while_running = True
    loads_tensors = True

    def __init__(self, spec: EngineSpec) -> None:
        options = _checked_options(spec)
        config = checks.load_config(spec)
        check_servable(spec, config)
        self.max_model_len = spec.max_model_len
        self.weights_version: int | None = None
        self._spec = spec
        self._stop = frozenset(spec.stop_token_ids)
        self._stop_strings: StopStrings | None = None
        self._max_num_seqs = spec.max_num_seqs
        self._max_batch_tokens: int = options["max_batch_tokens"]
        self._device = checks.usable_device(spec.device)
        self._rows = ROWS if options["batch_invariant"] and self._device.type == "cpu" else 1
        self._model: PreTrainedModel | None = _load_model(spec, self._device)
        self._vocab_size: int = self._model.get_input_embeddings().num_embeddings
        num_slots = self._affordable_slots(self._check_exact(), options["kv_cache_memory_bytes"])
        self._cache = SlotCache(self._device, self._model.dtype, num_slots, spec.max_model_len, self._rows)
        self._table = SlotTable(num_slots, spec.max_model_len)
        self._slots_in_use = 0
        self._waiting: deque[tuple[GenerationRequest, np.ndarray]] = deque()
        self._running: dict[str, _Running] = {}
        self._unfinished: set[str] = set()
        self._versions = TokenVersions()
        self._emptied: Emptied | None = None

    def submit(self, request: GenerationRequest) -> None:
        """Queues a request; see ``Engine.submit``."""
        if self._model is None:
            raise EngineError("the engine is closed; acquire a new one.")
        if self.weights_version is None:
            raise EngineError("the engine holds no weights yet; call load_weights(named_weights, version) first.")
        checks.check_request(
            request, max_model_len=self.max_model_len, vocab_size=self._vocab_size, unfinished=self._unfinished
        )
        if request.stop and self._stop_strings is None:
            tokenizer = load_tokenizer(self._spec.model, trust_remote_code=self._spec.trust_remote_code)
            self._stop_strings = StopStrings(tokenizer)
        self._unfinished.add(request.request_id)
        self._waiting.append((request, np.asarray(request.prompt_token_ids, dtype=np.int32)))

    @torch.inference_mode()
    def step(self) -> list[Generation]:
        """Runs one forward pass for everything that is running; see ``Engine.step``."""
        self._admit()
        batch = self._schedule()
        if not batch:
            return []
        spans = [(r.slot, r.computed, stop) for r, stop in batch]
        logits, sampling = self._forward(batch, spans)
        for running, stop in batch:
            running.computed = stop
            self._table.advance(running.slot, stop)
        return self._sample(sampling, logits) if sampling else []

    def has_work(self) -> bool:
        """Whether any submitted request is unfinished."""
        return bool(self._unfinished)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forgets unfinished requests; unknown ids are ignored."""
        gone = set(request_ids) & self._unfinished
        self._unfinished -= gone
        self._waiting = deque(item for item in self._waiting if item[0].request_id not in gone)
        for request_id in gone & self._running.keys():
            self._table.release(self._running.pop(request_id).slot)
            self._versions.forget(request_id)

    def load_weights(self, named_weights: NamedWeights, version: int, *, keep_running: bool = False) -> None:
        """Replaces all weights and drops every cached key and value; see ``Engine.load_weights``."""
        if self._model is None:
            raise EngineError("the engine is closed; acquire a new one.")
        if not keep_running:
            check_idle(len(self._unfinished))
        if self._emptied is not None:
            self._emptied.fill()
        own = self._model.state_dict()
        check_weights(named_weights, {name: tuple(tensor.shape) for name, tensor in own.items()})
        single = without_tied(named_weights, self._model.all_tied_weights_keys)
        with torch.no_grad():
            for name, array in single.items():
                own[name].copy_(as_tensor(array))
        self._cache.drop()
        self._table.forget()
        if self.weights_version is not None:
            sampled = {name: len(running.logp) for name, running in self._running.items()}
            self._versions.weights_change(sampled, self.weights_version)
        for running in self._running.values():
            running.computed = 0
        self.weights_version, self._emptied = version, None

    def sleep(self) -> None:
        """Gives the memory of weights and cache back until weights are loaded; see ``Engine``."""
        check_idle(len(self._unfinished))
        if self._model is not None and self._emptied is None:
            self.weights_version, self._emptied = None, Emptied(self._model)
            self._cache.drop()
            self._table.forget()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def close(self) -> None:
        """Frees the model and its caches; unfinished requests are lost."""
        self.abort(list(self._unfinished))
        self._model = None
        self._cache.drop()

    def _admit(self) -> None:
        """Gives slots to waiting requests, in order, except those that gain by waiting for a prefix."""
        postponed = []
        while self._waiting and len(self._running) < self._max_num_seqs and not self._table.full:
            request, prompt = self._waiting.popleft()
            choice = self._table.choose(prompt)
            if choice is None:
                postponed.append((request, prompt))
                continue
            self._start(request, prompt, choice)
        self._waiting.extendleft(reversed(postponed))

    def _start(self, request: GenerationRequest, prompt: np.ndarray, choice: SlotChoice) -> None:
        self._slots_in_use = max(self._slots_in_use, choice.slot + 1)
        self._cache.reserve(self._slots_in_use, len(prompt) + request.max_tokens)
        if choice.copy_from is not None:
            self._cache.copy_prefix(choice.copy_from, choice.slot, choice.cached)
        self._table.take(choice, prompt)
        generator = torch.Generator().manual_seed(request.seed)
        uniform = torch.rand(request.max_tokens, generator=generator, dtype=torch.float64).tolist()
        self._running[request.request_id] = _Running(
            request, choice.slot, choice.cached, choice.cached, uniform, list(request.prompt_token_ids)
        )

    def _schedule(self) -> list[tuple[_Running, int]]:
        """Who computes up to which position in this step: everyone who decodes, then prompts while the budget lasts."""
        batch = []
        budget = self._max_batch_tokens
        for running in self._running.values():
            if len(running.tokens) - running.computed == 1:
                batch.append((running, running.computed + 1))
                budget -= 1
        for running in self._running.values():
            new = min(len(running.tokens) - running.computed, budget)
            if len(running.tokens) - running.computed > 1 and new > 0:
                batch.append((running, running.computed + new))
                budget -= new
        batch.sort(key=lambda item: flat_place((item[0].slot, item[0].computed, item[1]), self._device))
        return batch

    @torch.inference_mode()
    def _forward(
        self, batch: list[tuple[_Running, int]], spans: list[tuple[int, int, int]]
    ) -> tuple[torch.Tensor, list[_Running]]:
        ids, last, sampling = [], [], []
        for running, stop in batch:
            ids.extend(running.tokens[running.computed : stop])
            if stop == len(running.tokens):
                last.append(len(ids) - 1)
                sampling.append(running)
        return self._logits(self._cache, ids, last or [0], spans), sampling

    def _logits(
        self, cache: SlotCache, ids: list[int], last: list[int], spans: list[tuple[int, int, int]]
    ) -> torch.Tensor:
        """Logits [len(last), V] at the given places of the flat row."""
        assert self._model is not None
        plan = plan_attention(cache, self._device, spans)
        kept = last + last[-1:] * (self._rows - len(last))
        with kernels_for_new_shapes(self._device):
            output = self._model(
                input_ids=torch.tensor([ids + ids[-1:] * plan.filling], device=self._device),
                position_ids=plan.position_T.unsqueeze(0),
                logits_to_keep=torch.tensor(kept, device=self._device),
                use_cache=False,
                attention_plan=plan,
            )
        logits: torch.Tensor = output.logits[0, : len(last)]
        return logits

    @torch.inference_mode()
    def _sample(self, sampling: list[_Running], logits: torch.Tensor) -> list[Generation]:
        temperature = torch.tensor([r.request.temperature for r in sampling], dtype=torch.float32, device=self._device)
        uniform = torch.tensor([r.uniform[len(r.logp)] for r in sampling], dtype=torch.float64, device=self._device)
        tokens, logps = sample_tokens(logits, temperature, uniform)
        finished = []
        for running, token, logp in zip(sampling, tokens.tolist(), logps.tolist(), strict=True):
            running.tokens.append(token)
            running.logp.append(logp)
            stopped = token in self._stop or (bool(running.request.stop) and self._at_stop_string(running))
            if stopped or len(running.logp) == running.request.max_tokens:
                finished.append(self._finish(running, "stop" if stopped else "length"))
            else:
                self._table.append(running.slot, token)
        return finished

    def _at_stop_string(self, running: _Running) -> bool:
        assert self._stop_strings is not None
        prompt = len(running.request.prompt_token_ids)
        return self._stop_strings.reached(running.tokens, running.request.stop, start=prompt)

    def _finish(self, running: _Running, reason: FinishReason) -> Generation:
        request_id = running.request.request_id
        self._table.release(self._running.pop(request_id).slot)
        self._unfinished.remove(request_id)
        assert self.weights_version is not None
        logp = np.array(running.logp, dtype=np.float32)
        checks.check_logp(request_id, logp)
        return Generation(
            request_id,
            running.tokens[len(running.request.prompt_token_ids) :],
            logp,
            reason,
            running.cached,
            self._versions.take(request_id, len(logp), self.weights_version),
        )

    @torch.inference_mode()
    def _check_exact(self) -> int:
        """Compares this engine's forward pass (two chunks, then one token) with the model's own.

        Returns:
            Bytes of one cached token.
        """
        assert self._model is not None
        length = min(24, self.max_model_len)
        ids = torch.randint(self._vocab_size, (length,), generator=torch.Generator().manual_seed(0)).tolist()
        cache = SlotCache(self._device, self._model.dtype, 2, length, self._rows)
        cache.reserve(2, length)
        edges = [0, length // 2, length - 1, length]
        rows = []
        try:
            reference = self._model(torch.tensor([ids], device=self._device), use_cache=False).logits[0]
            self._model.set_attn_implementation(ATTENTION_NAME)
            for start, stop in pairwise(edges):
                if stop > start:
                    rows.append(self._logits(cache, ids[start:stop], list(range(stop - start)), [(1, start, stop)]))
        except GSPOError:
            raise
        except Exception as error:
            raise EngineError(
                f"the transformers engine cannot serve this model: with the engine's attention, its forward pass fails "
                f"({described(error)}). {_REMEDY}"
            ) from error
        difference = torch.log_softmax(torch.cat(rows).float(), -1) - torch.log_softmax(reference.float(), -1)
        bound = 1e-4 if self._model.dtype == torch.float32 else 0.3
        if not difference.abs().mean() < bound:
            raise EngineError(
                f"the transformers engine cannot serve this model: its log-probabilities differ by "
                f"{difference.abs().mean():.2g} from the model's own (at most {bound:g} is rounding). {_REMEDY}"
            )
        return cache.bytes_per_token

    def _affordable_slots(self, bytes_per_token: int, limit: int | None) -> int:
        """Slots that fit into the cache at full length; some more than run at once keep earlier turns longer."""
        wanted = self._max_num_seqs + max(2, self._max_num_seqs // 4)
        one = bytes_per_token * attended_length(self.max_model_len, self._rows)
        if limit is not None and limit < one:
            raise SettingError(
                f"kv_cache_memory_bytes is {limit}; one context of max_model_len {self.max_model_len} takes {one}. "
                "Raise it, or lower max_model_len."
            )
        if limit is None:
            limit = _CPU_CACHE_BYTES
            if self._device.type == "cuda":
                limit = int(torch.cuda.mem_get_info(self._device)[0] * _CUDA_CACHE_FRACTION)
                if self._spec.colocated_bytes is not None:
                    assert self._model is not None
                    limit = colocated_room(self._spec.colocated_bytes, weight_bytes(self._model, self._model.dtype))
        return max(1, min(wanted, limit // one))


def _checked_options(spec: EngineSpec) -> dict[str, Any]:
    for name in spec.options:
        if name not in _OPTIONS:
            raise SettingError(f"engine option {name!r} is unknown. {did_you_mean(name, _OPTIONS)}")
    options = {**_OPTIONS, **spec.options}
    for name, value in options.items():
        switch = isinstance(_OPTIONS[name], bool)
        if not (isinstance(value, bool) if switch else value is _OPTIONS[name] or (type(value) is int and value >= 1)):
            allowed = "True or False" if switch else "a positive integer"
            raise SettingError(f"engine option {name} is {value!r}; it must be {allowed}.")
    return options


def _load_model(spec: EngineSpec, device: torch.device) -> PreTrainedModel:
    AttentionInterface.register(ATTENTION_NAME, slot_attention)
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        config = load_model_config(spec.model, trust_remote_code=spec.trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            spec.model, config=config, dtype=getattr(torch, spec.dtype), trust_remote_code=spec.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"model path {spec.model!r}: no causal language model could be loaded ({described(error, 300)})."
        ) from error
    finally:
        if bar:
            transformers_logging.enable_progress_bar()
    if not (model.is_backend_compatible() and model._can_set_attn_implementation()):
        raise EngineError(
            f"the transformers engine cannot serve {spec.model!r}: {type(model).__name__} does not use transformers' "
            f"attention interface. {_REMEDY}"
        )
    return model.to(device).eval().requires_grad_(False)

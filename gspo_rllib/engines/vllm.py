"""Generation with vLLM, in this process: continuous batching, paged and prefix-cached, on CPU or GPU.

The only module that imports vllm. It drives vLLM's synchronous ``LLMEngine`` directly: nothing runs unless ``step`` is
called, so a weight update needs no pause protocol, and tokens are ids from end to end.

Supported: vllm >= 0.24, < 0.33 (tested on CPU with 0.27 and 0.32, on a GPU with 0.26).
"""

from __future__ import annotations

import gc
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read by vllm when it is imported; each of them costs seconds or correctness when it is left alone.
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # "auto" pins every engine of the machine to the same first core
    # Attention and experts of a float32 engine are Triton kernels, which round their inputs to TF32 unless told not to.
    "TRITON_F32_DEFAULT": "ieee",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

import numpy as np
import torch
from tokenizers.decoders import DecodeStream

from gspo_rllib.engines import checks
from gspo_rllib.engines.device_room import weight_bytes
from gspo_rllib.engines.process_state import process_state_kept, torch_random_state_kept
from gspo_rllib.engines.proof import names_in_order
from gspo_rllib.engines.protocol import EngineSpec, Generation, GenerationRequest
from gspo_rllib.engines.trial import untried
from gspo_rllib.engines.vllm_defaults import cpu_defaults, gpu_defaults
from gspo_rllib.engines.weights import NamedWeights, TokenVersions, as_tensor, check_idle, check_weights, without_tied
from gspo_rllib.errors import EngineError, EngineLostError, WeightSyncError, described
from gspo_rllib.model_check import without_storage
from gspo_rllib.model_folder import load_model_config, load_tokenizer

logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # "Triton not available", on every CPU
try:
    from vllm import EngineArgs, SamplingParams
    from vllm.model_executor.models.interfaces import has_inner_state
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.llm_engine import LLMEngine
except Exception as _error:  # a broken installation raises anything
    raise EngineError(
        f"engine='vllm' needs the package vllm, which cannot be imported ({_error}). Run "
        "`pip install 'gspo-rllib[vllm]'`, or use another engine."
    ) from _error
from gspo_rllib.engines.vllm_classes import classes_kept, inspect_here
from gspo_rllib.engines.vllm_core import WatchedCore, killed_at_start
from gspo_rllib.engines.vllm_options import DEFAULTS, FIXED, FROM_SPEC, checked_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_VLLM_ERRORS = (ValueError, RuntimeError, AssertionError, TypeError, AttributeError, LookupError, OSError, ImportError)
_MIN_TEMPERATURE = 0.01  # vLLM raises a smaller one to this, and the log-probabilities would be of another distribution


class VLLMEngine:
    """Samples turns with vLLM; see ``Engine`` for the contract.

    Args:
        spec: ``options`` may hold any ``EngineArgs`` field this class does not set itself, and
            ``enable_multiprocessing`` (run vLLM's core in a process of its own, so that it does not share this one's
            interpreter lock; weights then travel through a file, and only change between requests).

    Raises:
        EngineError: vLLM cannot start with this model or these options.
        SettingError: A setting or option is illegal.
    """

    loads_tensors = True

    def __init__(self, spec: EngineSpec) -> None:
        config = checks.load_config(spec)
        options = checked_options(spec)
        self._separate_core: bool = options.pop("enable_multiprocessing", False)
        self._on_cpu: bool = current_platform.is_cpu()
        if self._on_cpu and not spec.device.startswith("cpu"):
            raise EngineError(
                f"engine_device is {spec.device!r}, but the installed vllm is built for CPU. Install vllm's build for "
                "that device, or use engine_device='cpu'."
            )
        if not self._on_cpu and spec.device.startswith("cpu"):
            raise EngineError(
                "this process sees no GPU, and the installed vllm is built for one. Env runners get one with "
                ".env_runners(num_gpus_per_env_runner=1), or a part of one that they share with a learner (0.5). "
                "Without a GPU, install vllm's build for CPU or use engine='transformers'."
            )
        if self._on_cpu and spec.colocated_bytes is not None:
            raise EngineError(
                "generation.colocate: vllm's build for CPU keeps its memory whatever it is told. Use "
                "engine='transformers', or leave colocate out."
            )
        self.max_model_len = spec.max_model_len
        self.weights_version: int | None = None
        self.unchanged_tensors: tuple[str, ...] = ()
        # A core of its own runs on between two of our calls, and would mix new weights with old keys and values.
        self.can_update_while_running = not self._separate_core
        self._spec = spec
        self._stop_token_ids = list(spec.stop_token_ids)
        self._dtype = getattr(torch, spec.dtype)
        self._layout = without_storage(
            spec.model,
            load_model_config(spec.model, trust_remote_code=spec.trust_remote_code),
            trust_remote_code=spec.trust_remote_code,
        )
        self._vocab_size: int = self._layout.get_input_embeddings().num_embeddings
        num_bytes = weight_bytes(self._layout, self._dtype)
        arguments = {
            **{name: getattr(spec, name) for name in FROM_SPEC},
            **FIXED,
            **self._own_arguments(spec),
            **DEFAULTS,
            **(cpu_defaults(spec, config) if self._on_cpu else gpu_defaults(spec, config, num_bytes)),
            **options,
        }
        arguments["seed"] = spec.seed % 2**32  # numpy's generators take no more
        self._asleep = False
        self._engine: LLMEngine | None = self._start(spec, arguments)
        self._unfinished: set[str] = set()
        self._versions = TokenVersions()

    def submit(self, request: GenerationRequest) -> None:
        """Queues a request; see ``Engine.submit``."""
        engine = self._open()
        if self.weights_version is None:
            raise EngineError("the engine holds no weights yet; call load_weights(named_weights, version) first.")
        checks.check_request(
            request,
            max_model_len=self.max_model_len,
            vocab_size=self._vocab_size,
            unfinished=self._unfinished,
        )
        if 0 < request.temperature < _MIN_TEMPERATURE:
            raise EngineError(
                f"request {request.request_id!r}: temperature is {request.temperature}; vLLM takes 0 (greedy) or at "
                f"least {_MIN_TEMPERATURE}."
            )
        if request.stop:
            self._need_tokenizer(engine)
        parameters = SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            seed=request.seed % 2**63,
            stop_token_ids=self._stop_token_ids,
            ignore_eos=True,  # stop_token_ids decide alone, whatever the model folder says
            logprobs=0,
            flat_logprobs=True,
            # Text is made only to look for stop strings; ids and log-probabilities stay as sampled.
            detokenize=bool(request.stop),
            stop=list(request.stop),
            include_stop_str_in_output=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.add_request(
            request_id=request.request_id,
            prompt={"prompt_token_ids": request.prompt_token_ids},
            params=parameters,
            lora_request=self._adapter(),
        )
        if request.stop:
            _decode_the_reply_alone(engine)
        self._unfinished.add(request.request_id)

    def step(self) -> list[Generation]:
        """Runs one forward pass for everything that is running; see ``Engine.step``."""
        if not self._unfinished:
            return []
        # The sampler draws from the global generator too, although every request brings its own.
        try:
            with self._eager(), torch_random_state_kept():
                outputs = self._open().step()
        except EngineLostError:
            raise
        except _VLLM_ERRORS as error:
            raise EngineError(
                f"vLLM failed while it generated: {described(error, 600)}. Close this engine before another is made."
            ) from error
        return [self._generation(output) for output in outputs if output.finished]

    def has_work(self) -> bool:
        """Whether any submitted request is unfinished."""
        return bool(self._unfinished)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forgets unfinished requests; unknown ids are ignored."""
        gone = set(request_ids) & self._unfinished
        if gone:
            self._unfinished -= gone
            self._open().abort_request(sorted(gone))
            for request_id in gone:
                self._versions.forget(request_id)

    def load_weights(self, named_weights: NamedWeights, version: int, *, keep_running: bool = False) -> None:
        """Replaces all weights and drops every cached key and value; see ``Engine.load_weights``."""
        engine = self._open()
        if not (keep_running and self.can_update_while_running):
            check_idle(len(self._unfinished))
        check_weights(named_weights, {n: tuple(t.shape) for n, t in self._layout.state_dict().items()})
        tensors = _checkpoint_format(self._layout, named_weights)
        old_version, self.weights_version = self.weights_version, None  # no answers from a half-loaded model
        try:
            with self._eager(), self._awake(engine):
                self._send(engine, tensors)
        except (EngineLostError, WeightSyncError):
            raise
        except _VLLM_ERRORS as error:
            raise WeightSyncError(
                f"vLLM could not load the weight update: {described(error, 600)}. The engine answers no request until "
                "an update succeeds."
            ) from error
        # Whatever is running is put back among the waiting, its samples kept, and computed again from its first token.
        if not engine.reset_prefix_cache(reset_running_requests=bool(self._unfinished)):
            raise WeightSyncError(
                "vLLM kept its prefix cache after a weight update, so old keys and values could be reused. Abort all "
                "requests and load the weights again."
            )
        if hasattr(engine, "set_weight_version"):
            engine.set_weight_version(str(version))
        if old_version is not None and self._unfinished:
            self._versions.weights_change(_num_sampled(engine), old_version)
        self.weights_version = version

    def sleep(self) -> None:
        """Gives the memory of weights and cache back until weights are loaded; see ``Engine``."""
        check_idle(len(self._unfinished))
        if not self._asleep:
            self._asleep, self.weights_version = True, None
            self._open().sleep(level=2)  # weights are not kept anywhere: all of them are sent before the next request

    @contextmanager
    def _awake(self, engine: LLMEngine) -> Iterator[None]:
        """Around a load of weights: memory for them first, and for the cache once they are there."""
        if self._asleep:
            engine.wake_up(tags=["weights"])
        yield
        if self._asleep:
            engine.wake_up(tags=["kv_cache"])
            self._asleep = False

    def close(self) -> None:
        """Stops vLLM and frees the model and its caches; a later engine may then start in this process."""
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        self._unfinished.clear()
        with process_state_kept("VLLM_"):
            engine.engine_core.shutdown()
        del engine
        gc.collect()

    def _own_arguments(self, spec: EngineSpec) -> dict[str, Any]:
        """What vLLM is started with beside what is the same for every engine; a subclass adds its own."""
        return {} if spec.colocated_bytes is None else {"enable_sleep_mode": True}

    def _adapter(self) -> Any:
        """vLLM's adapter that requests from now on are sampled with; None for none."""
        return None

    def _open(self) -> LLMEngine:
        if self._engine is None:
            raise EngineError("the engine is closed; acquire a new one.")
        return self._engine

    def _need_tokenizer(self, engine: LLMEngine) -> None:
        # vLLM starts without one, because ids are all that most environments need. It looks for stop strings in the
        # process of the caller, with the tokenizer of its output processor.
        if engine.output_processor.tokenizer is None:
            engine.output_processor.tokenizer = load_tokenizer(
                self._spec.model, trust_remote_code=self._spec.trust_remote_code
            )

    def _eager(self) -> Any:
        # vLLM compiles small helpers even with enforce_eager; on CPU that costs up to 25 s of C++ compiler on the first
        # batch and gains nothing. Scoped, so that a learner in this process can still compile.
        return torch.compiler.set_stance("force_eager") if self._on_cpu else nullcontext()

    def _start(self, spec: EngineSpec, arguments: dict[str, Any]) -> LLMEngine:
        # The environment variable, not the argument, decides whether vLLM's CPU backend starts workers of its own.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            with self._eager(), process_state_kept("VLLM_"), classes_kept() as claim, warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # vLLM's own, about torch.distributed
                if self._on_cpu:
                    model_class = inspect_here(type(self._layout).__name__)
                    if model_class is not None and has_inner_state(model_class):
                        # A cache of prefixes would also hold states, and vLLM then insists on partial prompts.
                        arguments["enable_prefix_caching"] = spec.options.get("enable_prefix_caching", False)
                engine = LLMEngine.from_engine_args(EngineArgs(**arguments), enable_multiprocessing=self._separate_core)
                if self._separate_core:
                    engine.engine_core = WatchedCore(engine.engine_core)
                if not self._weights_travel_by_file(engine):
                    engine.apply_model(claim)
                return engine
        except _VLLM_ERRORS as error:
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()
            if (killed := killed_at_start(error)) is not None:
                raise killed from error
            raise EngineError(
                f"vLLM could not start with model {spec.model!r}, dtype {spec.dtype!r} and options "
                f"{dict(spec.options)!r}: {described(error, 600)}. Correct the options. {untried('transformers')}"
            ) from error

    def _generation(self, output: Any) -> Generation:
        self._unfinished.discard(output.request_id)
        completion = output.outputs[0]
        logp = np.asarray(completion.logprobs.logprobs, dtype=np.float32)
        if len(logp) != len(completion.token_ids) or completion.finish_reason not in ("stop", "length"):
            raise EngineError(
                f"request {output.request_id!r}: vLLM returned {len(completion.token_ids)} tokens, {len(logp)} "
                f"log-probabilities and finish reason {completion.finish_reason!r}. This vllm version is not supported."
            )
        checks.check_logp(output.request_id, logp)
        assert self.weights_version is not None
        return Generation(
            output.request_id,
            list(completion.token_ids),
            logp,
            completion.finish_reason,
            output.num_cached_tokens or 0,
            self._versions.take(output.request_id, len(logp), self.weights_version),
        )

    def _weights_travel_by_file(self, engine: LLMEngine) -> bool:
        return self._separate_core or engine.vllm_config.parallel_config.world_size > 1

    def _send(self, engine: LLMEngine, tensors: dict[str, torch.Tensor]) -> None:
        if not self._weights_travel_by_file(engine):
            self._note(engine.collective_rpc("gspo_load_tensors", args=(tensors,)))
            return
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory(prefix="gspo_rllib_weights_") as folder:
            path = Path(folder) / "model.safetensors"
            save_file({name: tensor.to(self._dtype).contiguous() for name, tensor in tensors.items()}, path)
            self._note(engine.collective_rpc("gspo_load_file", args=(str(path),)))

    def _note(self, unchanged: list[list[str]]) -> None:
        self.unchanged_tensors = names_in_order(name for worker in unchanged for name in worker)


def _decode_the_reply_alone(engine: LLMEngine) -> None:
    """Has the newest request's stop strings looked for in its reply alone.

    vLLM begins to decode at the prompt. Where that ends within a character, all of it counts as the first token's text,
    and a stop string in it ended the turn there.
    """
    newest = next(reversed(engine.output_processor.request_states.values()))
    if hasattr(newest.detokenizer, "stream"):  # not where the tokenizer is one of Python's, which begins at the reply
        newest.detokenizer.stream = DecodeStream(skip_special_tokens=True)


def _num_sampled(engine: LLMEngine) -> dict[str, int]:
    """Tokens sampled so far by each unfinished request; vLLM's own spans of versions exist only from 0.32 on."""
    states = engine.output_processor.request_states.values()
    return {s.external_req_id: len(s.detokenizer.output_token_ids) for s in states if s.detokenizer is not None}


def _checkpoint_format(layout: PreTrainedModel, named_weights: NamedWeights) -> dict[str, torch.Tensor]:
    """What ``save_pretrained`` would write: the names and shapes vLLM's loaders are made for.

    In memory, transformers fuses experts and renames modules of some architectures, which not every loader knows.
    """
    from transformers.core_model_loading import revert_weight_conversion

    single = without_tied(named_weights, layout.all_tied_weights_keys)
    saved: dict[str, torch.Tensor] = revert_weight_conversion(
        layout, {name: as_tensor(array) for name, array in single.items()}
    )
    return saved

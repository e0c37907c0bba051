"""What only the vLLM engine has: its options, weights by file, and a process left as it was."""

from __future__ import annotations

import importlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import EngineSpec, Generation, GenerationRequest
from gspo_rllib.errors import EngineError, SettingError

if "vllm" not in registry.available_engines():
    pytest.skip("vllm is not installed", allow_module_level=True)

pytestmark = pytest.mark.vllm


def spec(path: str, **options: Any) -> EngineSpec:
    return EngineSpec("vllm", path, "float32", 128, 4, (), seed=5, options=options)


def process_state() -> list[Any]:
    numpy_state: Any = np.random.get_state(legacy=False)
    return [
        random.getstate(),
        numpy_state["state"]["key"].tolist(),
        torch.get_rng_state().tolist(),
        torch.set_num_threads,
        torch.get_num_threads(),
        os.environ.get("LD_PRELOAD"),
        os.environ.get("NUMEXPR_MAX_THREADS"),
    ]


@dataclass(frozen=True)
class Started:
    """A running engine, and what the process looked like before and after its start."""

    engine: Any
    state_before: list[Any]
    state_after: list[Any]
    cache: Path


def load_own_weights(engine: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(engine._engine.vllm_config.model_config.model, dtype=torch.float32)
    engine.load_weights({name: tensor.numpy() for name, tensor in model.state_dict().items()}, 1)


def drain(engine: Any) -> list[Generation]:
    done = []
    while engine.has_work():
        done += engine.step()
    return done


@pytest.fixture(scope="module")
def started(tiny_moe: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    importlib.import_module("gspo_rllib.engines.vllm")  # may change the process; starting an engine may not
    cache = tmp_path_factory.mktemp("vllm_cache")
    before = process_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CACHE_ROOT", str(cache))
        engine = registry.acquire(spec(tiny_moe, max_num_batched_tokens=160))
    after = process_state()
    yield Started(engine, before, after, cache)
    registry.release(engine)


def test_starting_leaves_random_states_threads_and_environment_alone(started: Started) -> None:
    assert started.state_after == started.state_before


def test_a_first_start_imports_vllm_in_no_second_process(started: Started) -> None:
    # vLLM keeps there what another Python, which takes 10 s to import it, found out about a model's class.
    assert not (started.cache / "modelinfos").exists()


@pytest.mark.parametrize("by_file", [False, True])
def test_weights_arrive_exactly_in_memory_and_by_file(
    started: Started, tiny_moe: str, by_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started.engine
    monkeypatch.setattr(engine, "_weights_travel_by_file", lambda _: by_file)
    reference = AutoModelForCausalLM.from_pretrained(tiny_moe, dtype=torch.float32)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.1 if by_file else 0.9)

    engine.load_weights({name: tensor.numpy() for name, tensor in reference.state_dict().items()}, 1)
    prompt = list(range(40, 90))
    engine.submit(GenerationRequest("0", prompt, 10, 0.7, 0))
    generation = drain(engine)[0]

    ids = torch.tensor([prompt + generation.token_ids])
    with torch.no_grad():
        logp = torch.log_softmax(reference(ids).logits[0, len(prompt) - 1 : -1] / 0.7, dim=-1)
    expected = logp.gather(1, torch.tensor(generation.token_ids).unsqueeze(1)).squeeze(1).numpy()
    assert np.abs(expected - generation.logp).max() < 1e-4


def test_prompts_that_together_exceed_a_step_keep_their_seeds(started: Started) -> None:
    engine = started.engine
    load_own_weights(engine)
    prompts = [list(range(start, start + 100)) for start in (10, 60, 110)]  # 300 tokens, 160 at a time
    alone = []
    for index, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(str(index), prompt, 5, 1.0, index))
        alone.append(drain(engine)[0].token_ids)
    load_own_weights(engine)

    for index, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(str(index), prompt, 5, 1.0, index))
    together = {generation.request_id: generation.token_ids for generation in drain(engine)}

    assert [together[str(index)] for index in range(3)] == alone


def test_a_temperature_vllm_would_change_is_refused(started: Started) -> None:
    load_own_weights(started.engine)

    with pytest.raises(EngineError, match=r"at least 0\.01"):
        started.engine.submit(GenerationRequest("0", [1], 5, 0.001, 0))


def test_a_second_vllm_engine_is_refused_and_the_first_keeps_working(started: Started, tiny_dense: str) -> None:
    engine = started.engine
    load_own_weights(engine)

    with pytest.raises(EngineError, match="two cannot coexist"):
        registry.acquire(spec(tiny_dense))

    engine.submit(GenerationRequest("0", [1, 2, 3], 3, 1.0, 0))
    assert len(drain(engine)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_memory_utilisation": 0.5}, "Did you mean 'gpu_memory_utilization'"),
        ({"max_model_len": 64}, "set EngineSpec.max_model_len instead"),
        ({"logprobs_mode": "raw_logprobs"}, "set by the engine itself"),
        ({"enable_chunked_prefill": True}, "CPU backend"),
    ],
)
def test_an_illegal_option_is_refused_before_anything_starts(
    tiny_dense: str, options: dict[str, Any], message: str
) -> None:
    from gspo_rllib.engines.vllm import VLLMEngine

    with pytest.raises(SettingError, match=message):
        VLLMEngine(spec(tiny_dense, **options))


def test_experts_count_as_loaded_under_a_name_without_their_wrapper() -> None:
    from gspo_rllib.engines.vllm_worker import _not_among

    expected = {"mlp.experts.routed_experts.w13_weight", "mlp.experts.routed_experts.w2_weight", "norm.weight"}

    assert _not_among({"mlp.experts.w13_weight", "norm.weight"}, expected) == {"mlp.experts.routed_experts.w2_weight"}


def test_a_build_for_gpus_in_a_process_without_one_says_who_hands_them_out(
    tiny_dense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.platforms import current_platform

    from gspo_rllib.engines.vllm import VLLMEngine

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    with pytest.raises(EngineError, match=r"sees no GPU.*num_gpus_per_env_runner"):
        VLLMEngine(spec(tiny_dense))


def test_a_device_this_build_cannot_use_is_refused(tiny_dense: str) -> None:
    from vllm.platforms import current_platform

    from gspo_rllib.engines.vllm import VLLMEngine

    if not current_platform.is_cpu():
        pytest.skip("a vllm build for CPU")
    with pytest.raises(EngineError, match="built for CPU"):
        VLLMEngine(replace(spec(tiny_dense), device="cuda"))


# Last: it ends the module's engine, and the next one must still be able to start.
@pytest.mark.slow
def test_closing_twice_is_fine_and_a_new_engine_can_start(started: Started, tiny_dense: str) -> None:
    engine = started.engine
    before = process_state()
    engine.close()
    engine.close()
    assert process_state() == before
    with pytest.raises(EngineError, match="closed"):
        engine.submit(GenerationRequest("0", [1], 5, 1.0, 0))
    registry.release(engine)

    with pytest.raises(EngineError, match=r"could not start.*kv_cache_memory_bytes"):
        registry.acquire(spec(tiny_dense, kv_cache_memory_bytes=1000))
    second = registry.acquire(spec(tiny_dense))
    load_own_weights(second)
    second.submit(GenerationRequest("0", [1, 2, 3], 3, 1.0, 0))

    assert len(drain(second)) == 1
    registry.release(second)

"""The conversation that proves an engine: what is asked, what rounding may explain, and what a refusal says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, Qwen3Config

from gspo_rllib.engines import registry
from gspo_rllib.engines.proof import Conversation, EngineSample, Gap, check_gap, converse, model_log_probs
from gspo_rllib.engines.protocol import Engine, EngineSpec, Generation
from gspo_rllib.errors import WeightSyncError


class Loaded:
    """An engine that holds the weights of its folder, and the model."""

    def __init__(self, path: str, dtype: str = "float32", max_model_len: int = 256) -> None:
        self.spec = EngineSpec("transformers", path, dtype, max_model_len, 3, (), seed=1)
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.engine: Engine = registry.acquire(self.spec)
        self.load(lambda name, array: array)

    def load(self, change: Any) -> None:
        state = {name: tensor.numpy() for name, tensor in self.model.state_dict().items()}
        self.engine.load_weights({name: change(name, array) for name, array in state.items()}, 1)

    def conversation(self) -> Conversation:
        vocab_size = self.model.get_input_embeddings().num_embeddings
        return Conversation.of(self.model.config, vocab_size, temperature=0.7, learner_dtype="float32")

    def gap(self) -> tuple[EngineSample, Gap]:
        sample = converse(self.engine, self.spec, self.conversation())
        return sample, Gap.between(sample, model_log_probs(self.model, sample), "float32")


@pytest.fixture
def loaded(tiny_moe: str) -> Iterator[Loaded]:
    held = Loaded(tiny_moe)
    yield held
    registry.release(held.engine)


def test_an_engine_with_the_right_weights_passes_batched_and_cached(loaded: Loaded) -> None:
    sample, gap = loaded.gap()

    check_gap(sample, gap)
    assert gap.largest < 2e-5
    assert sample.answers[-1].num_cached_tokens > 40, "the second turn is to run on the first one's cache"
    assert sample.prompts[-1][: len(sample.prompts[0])] == sample.prompts[0]
    assert set(sample.temperatures) == {0.7, 1.4}
    assert not loaded.engine.has_work()


@pytest.mark.parametrize("part", ["experts.down_proj", "lm_head.weight", "layers.1.self_attn.v_proj", "norm.weight"])
def test_one_wrong_tensor_is_found_whatever_it_is(loaded: Loaded, part: str) -> None:
    loaded.load(lambda name, array: 0.9 * array if part in name else array)

    sample, gap = loaded.gap()

    with pytest.raises(WeightSyncError, match=r"differ from the learner's by up to"):
        check_gap(sample, gap)


def test_the_refusal_names_gap_bound_engine_model_and_tensors(loaded: Loaded) -> None:
    loaded.load(lambda name, array: np.zeros_like(array) if "experts" in name else array)
    sample, gap = loaded.gap()
    sample = replace(sample, unchanged=tuple(f"layers.*.experts.w{i}" for i in range(10)))

    with pytest.raises(WeightSyncError) as caught:
        check_gap(sample, gap)

    message = str(caught.value)
    for part in (f"{gap.largest:.2g} nats", "0.0001", "'transformers'", loaded.spec.model, "layers.*.experts.w0"):
        assert part in message
    assert "w7 and 2 more" in message


def test_not_a_number_is_no_rounding(loaded: Loaded) -> None:
    sample, _ = loaded.gap()
    scored = [np.full(len(answer.logp), np.nan, np.float32) for answer in sample.answers]
    with pytest.raises(WeightSyncError):
        check_gap(sample, Gap.between(sample, scored, "float32"))


@pytest.mark.parametrize(
    ("dtype", "learner", "options", "passes"),
    [
        ("float32", "float32", {}, False),
        ("bfloat16", "float32", {}, True),
        ("float32", "bfloat16", {}, True),
        ("float32", "float32", {"kv_cache_dtype": "fp8"}, True),
        ("bfloat16", "bfloat16", {"quantization": "fp8"}, True),
        ("float32", "float32", {"quantization": None}, False),
    ],
)
def test_what_rounding_explains_depends_on_the_precisions(
    dtype: str, learner: str, options: dict[str, Any], passes: bool
) -> None:
    spec = EngineSpec("vllm", "m", dtype, 64, 1, (), options=options)
    logp = np.float32([-1.0, -2.0])
    sample = EngineSample(spec, 1, [[1]], [Generation("0", [1, 2], logp, "length")], [1.0])
    assert Gap.between(sample, [logp + np.float32([0.02, 0.0])], learner).is_rounding == passes
    assert not Gap.between(sample, [logp + np.float32([4.0, 4.0])], learner).is_rounding


def test_no_prompt_holds_an_id_that_the_config_reserves() -> None:
    config = Qwen3Config(vocab_size=40, pad_token_id=11, eos_token_id=[12, 13])
    config.image_token_id = 14
    asked = Conversation.of(config, 40, temperature=1.0, learner_dtype="float32")
    used = {*asked.first, *asked.observed, *(i for prompt in asked.short for i in prompt)}
    assert used == set(range(10, 20)) - {11, 12, 13, 14}


def test_the_long_prompt_leaves_a_short_window_and_stays_short_of_a_long_one() -> None:
    def length(**sizes: Any) -> int:
        config = MistralConfig(vocab_size=320, **sizes)
        return len(Conversation.of(config, 320, temperature=1.0, learner_dtype="float32").first)

    assert length(sliding_window=None) == length(sliding_window=4096) == length(sliding_window=8) == 48
    assert length(sliding_window=128) > 128
    longrope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
    assert length(sliding_window=None, rope_parameters=longrope) > 64


@pytest.mark.parametrize("max_model_len", [2, 7, 20, 64])
def test_a_short_context_gets_what_fits(tiny_dense: str, max_model_len: int) -> None:
    held = Loaded(tiny_dense, max_model_len=max_model_len)
    try:
        sample, gap = held.gap()
    finally:
        registry.release(held.engine)
    check_gap(sample, gap)
    assert all(len(p) + len(a.token_ids) <= max_model_len for p, a in zip(sample.prompts, sample.answers, strict=True))


def test_an_engine_that_can_tell_says_which_tensors_a_load_left_alone() -> None:
    class Engine:
        max_model_len, weights_version, unchanged_tensors = 64, 3, ("sinks",)

        def __init__(self) -> None:
            self.asked: list[Any] = []

        def submit(self, request: Any) -> None:
            self.asked.append(request)

        def has_work(self) -> bool:
            return bool(self.asked)

        def step(self) -> list[Generation]:
            return [Generation(self.asked.pop().request_id, [5], np.float32([-1.0]), "stop")]

    config = SimpleNamespace(to_dict=dict)
    asked = Conversation.of(config, 320, temperature=1.0, learner_dtype="float32")
    sample = converse(Engine(), EngineSpec("x", "m", "float32", 64, 1, ()), asked)  # type: ignore[arg-type]
    assert sample.unchanged == ("sinks",) and sample.version == 3
    (first, *_) = sample.trajectories()
    assert first.segments[0].tolist() == [*asked.first, 5] and first.loss_masks[0].nonzero()[0].tolist() == [48]

"""What only the transformers engine has: slots, chunked prompts, and models it must refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    MambaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
    RecurrentGemmaConfig,
)

from gspo_rllib.engines import slot_attention as slot_attention_module
from gspo_rllib.engines.protocol import EngineSpec, Generation, GenerationRequest
from gspo_rllib.engines.transformers import TransformersEngine
from gspo_rllib.errors import EngineError, ModelError, SettingError, WeightSyncError

SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}


def save(config: PretrainedConfig, folder: Path) -> str:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def spec(path: str, **options: Any) -> EngineSpec:
    return EngineSpec("transformers", path, "float32", 64, 4, (), options=options)


def loaded(engine_spec: EngineSpec) -> tuple[TransformersEngine, Any]:
    """An engine that holds the weights of its folder, and the model itself."""
    reference = AutoModelForCausalLM.from_pretrained(engine_spec.model, dtype=torch.float32)
    engine = TransformersEngine(engine_spec)
    engine.load_weights({name: tensor.numpy() for name, tensor in reference.state_dict().items()}, 1)
    return engine, reference


def answer(engine: TransformersEngine, prompts: list[list[int]], max_tokens: int = 6) -> list[Generation]:
    for index, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(str(index), prompt, max_tokens, 1.0, index))
    done: dict[str, Generation] = {}
    while engine.has_work():
        done.update((generation.request_id, generation) for generation in engine.step())
    return [done[str(index)] for index in range(len(prompts))]


def error(reference: Any, prompts: list[list[int]], generations: list[Generation]) -> float:
    worst = 0.0
    for prompt, generation in zip(prompts, generations, strict=True):
        ids = torch.tensor([prompt + generation.token_ids])
        with torch.no_grad():
            logp = torch.log_softmax(reference(ids).logits[0, len(prompt) - 1 : -1], dim=-1)
        expected = logp.gather(1, torch.tensor(generation.token_ids).unsqueeze(1)).squeeze(1)
        worst = max(worst, float(np.abs(expected.numpy() - generation.logp).max()))
    return worst


def prompts_of(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(sum(lengths))
    return [rng.integers(0, 90, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(Qwen3Config(**SIZES), tmp_path_factory.mktemp("plain"))


def test_prompts_longer_than_a_step_are_computed_in_parts(plain: str) -> None:
    engine, reference = loaded(spec(plain, max_batch_tokens=7))
    prompts = prompts_of(50, 3, 20, 8)

    assert error(reference, prompts, answer(engine, prompts)) < 1e-4


def test_more_requests_than_slots_wait_their_turn(plain: str) -> None:
    one_context = 3 * 2 * 2 * 8 * 4 * 64  # layers, keys and values, heads, head size, bytes, tokens
    engine, reference = loaded(spec(plain, kv_cache_memory_bytes=2 * one_context))
    prompts = prompts_of(5, 40, 9, 22, 13, 30, 2)

    assert error(reference, prompts, answer(engine, prompts)) < 1e-4


def test_a_group_computes_its_common_prompt_once(plain: str) -> None:
    engine, reference = loaded(spec(plain))
    prompts = prompts_of(40) * 4

    generations = answer(engine, prompts)

    assert sorted(generation.num_cached_tokens for generation in generations) == [0, 39, 39, 39]
    assert error(reference, prompts, generations) < 1e-4
    assert len({tuple(generation.token_ids) for generation in generations}) == 4


def test_trajectories_survive_many_turns_in_changing_company(plain: str) -> None:
    engine, reference = loaded(spec(plain, max_batch_tokens=16))
    rng = np.random.default_rng(0)
    contexts = prompts_of(3, 9, 17, 4, 12, 6, 25)
    for _ in range(4):
        chosen = rng.permutation(7)[:5]
        prompts = [contexts[i] for i in chosen]
        generations = answer(engine, prompts, max_tokens=int(rng.integers(1, 6)))
        assert error(reference, prompts, generations) < 1e-4
        for i, generation in zip(chosen, generations, strict=True):
            contexts[i] = contexts[i] + generation.token_ids + rng.integers(0, 90, 2).tolist()


@pytest.mark.parametrize("lengths", [(3, 3, 17, 30, 30, 41, 5), (180, 180, 220, 300, 300, 400, 190)])
def test_on_a_cpu_a_sample_is_the_same_to_the_bit_in_any_company(tiny_dense: str, lengths: tuple[int, ...]) -> None:
    """Alone, among others, after its earlier turn, or beside prompts that take several steps."""
    prompts = prompts_of(*lengths)
    prompts[1], prompts[4] = list(prompts[0]), list(prompts[3])

    def played(slots: int, order: list[int], **options: int) -> dict[int, list[tuple[int, float]]]:
        room = 64 if max(lengths) < 64 else 512
        engine, _ = loaded(replace(spec(tiny_dense, **options), max_num_seqs=slots, max_model_len=room))
        waiting, contexts = list(order), {i: list(prompts[i]) for i in order}
        found: dict[int, list[tuple[int, float]]] = {i: [] for i in order}

        def submit(i: int) -> None:
            turn = len(found[i])
            engine.submit(GenerationRequest(f"{i}", list(contexts[i]), 2 + i % 3, 1.0, 100 * i + turn))

        for i in [waiting.pop(0) for _ in range(min(slots, len(waiting)))]:
            submit(i)
        while engine.has_work():
            for generation in engine.step():
                i = int(generation.request_id)
                found[i] += zip(generation.token_ids, generation.logp.tolist(), strict=True)
                contexts[i] += [*generation.token_ids, *range(1, 2 + i % 4)]
                if len(found[i]) < 3 * (2 + i % 3):
                    submit(i)
                elif waiting:
                    submit(waiting.pop(0))
        return found

    expected = played(1, list(range(7)))
    assert played(4, list(range(7))) == expected
    assert played(7, list(range(7))[::-1]) == expected
    assert played(3, [5, 0, 6, 2, 1, 4, 3], max_batch_tokens=16) == expected


@pytest.mark.parametrize(("filled", "tokens"), [(True, 4), (False, 1)])
def test_who_does_not_need_equal_bits_pays_for_none(plain: str, filled: bool, tokens: int) -> None:
    """Alone, a request computes the one token it has to, or fills it up to the rows that make it independent."""
    engine, reference = loaded(spec(plain, batch_invariant=filled))
    prompts = prompts_of(6)
    lengths: list[int] = []
    assert engine._model is not None
    embedding = engine._model.get_input_embeddings()
    embedding.register_forward_hook(lambda _, inputs, __: lengths.append(inputs[0].shape[1]))
    assert error(reference, prompts, answer(engine, prompts, max_tokens=3)) < 1e-4
    assert lengths == [6, tokens, tokens]


def test_the_layout_that_the_attention_kernel_returns_does_not_matter(
    plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a GPU keep a token's heads together."""
    original = slot_attention_module.scaled_dot_product_attention

    def tokens_first(*args: Any, **kwargs: Any) -> torch.Tensor:
        return original(*args, **kwargs).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(slot_attention_module, "scaled_dot_product_attention", tokens_first)
    engine, reference = loaded(spec(plain))
    prompts = prompts_of(5, 17, 9)
    assert error(reference, prompts, answer(engine, prompts)) < 1e-4


def test_on_a_gpu_no_kernel_is_used_that_plans_every_new_shape() -> None:
    """cuDNN's; a step's context length is always new."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with slot_attention_module.kernels_for_new_shapes(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_a_sliding_window_longer_contexts_leave_is_respected(tmp_path: Path) -> None:
    engine, reference = loaded(spec(save(MistralConfig(**SIZES, sliding_window=8), tmp_path)))
    prompts = prompts_of(30, 5, 50)

    assert error(reference, prompts, answer(engine, prompts)) < 1e-4


RECURRENT = "differ" if not hasattr(RecurrentGemmaConfig(), "layer_types") else "linear_attention layers"
"""Newer releases of transformers say of these layers what they are."""


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(vocab_size=90, hidden_size=32, num_hidden_layers=2), "linear_attention layers"),
        (BloomConfig(vocab_size=90, hidden_size=32, n_layer=2, n_head=4), "attention interface"),
        (Gemma2Config(**SIZES, sliding_window=8), "softcap"),
        (RecurrentGemmaConfig(**SIZES), RECURRENT),
        (Qwen3Config(**SIZES, rope_scaling={"rope_type": "dynamic", "factor": 2.0}), "position embedding"),
    ],
    ids=["state space", "own attention", "softcap", "recurrent", "dynamic rope"],
)
def test_a_model_it_would_get_wrong_is_refused_with_the_remedy(
    config: PretrainedConfig, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=rf"{reason}.*engine='vllm'"):
        TransformersEngine(spec(save(config, tmp_path)))


def test_diverged_weights_are_an_error_and_leave_no_nan_behind(plain: str) -> None:
    engine, reference = loaded(spec(plain))
    good = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    engine.load_weights({name: np.full_like(array, np.nan) for name, array in good.items()}, 2)

    with pytest.raises(EngineError, match="diverged"):
        answer(engine, prompts_of(50, 50))
    engine.abort(["0", "1"])
    engine.load_weights(good, 3)

    # The short request's slot still has room where the long one's NaN was.
    prompts = prompts_of(20, 50)
    assert error(reference, prompts, answer(engine, prompts)) < 1e-4


def test_a_tied_head_that_came_untied_is_noticed(tmp_path: Path) -> None:
    engine, reference = loaded(spec(save(Qwen3Config(**SIZES, tie_word_embeddings=True), tmp_path)))
    weights = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1

    with pytest.raises(WeightSyncError, match="one tensor in the engine's model but differ"):
        engine.load_weights(weights, 2)


def test_bfloat16_is_close_to_float32(plain: str) -> None:
    engine, reference = loaded(replace(spec(plain), dtype="bfloat16"))
    prompts = prompts_of(20, 30)

    assert 1e-5 < error(reference, prompts, answer(engine, prompts)) < 0.5


def test_a_closed_engine_says_so_and_closes_twice(plain: str) -> None:
    engine, _ = loaded(spec(plain))
    engine.submit(GenerationRequest("0", [1, 2], 5, 1.0, 0))

    engine.close()
    engine.close()

    assert not engine.has_work() and engine.step() == []
    with pytest.raises(EngineError, match="closed"):
        engine.submit(GenerationRequest("1", [1, 2], 5, 1.0, 0))
    with pytest.raises(EngineError, match="closed"):
        engine.load_weights({}, 2)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"options": {"max_batch_token": 8}}, SettingError, "Did you mean 'max_batch_tokens'"),
        ({"options": {"max_batch_tokens": 0}}, SettingError, "max_batch_tokens is 0"),
        ({"options": {"max_batch_tokens": True}}, SettingError, "max_batch_tokens is True; it must be a positive int"),
        ({"options": {"max_batch_tokens": None}}, SettingError, "max_batch_tokens is None; it must be a positive int"),
        ({"options": {"batch_invariant": 1}}, SettingError, "batch_invariant is 1; it must be True or False"),
        ({"options": {"kv_cache_memory_bytes": 1000}}, SettingError, "one context of max_model_len 64 takes"),
        ({"dtype": "float16"}, SettingError, "float16"),
        ({"max_model_len": 65}, SettingError, "max_model_len is 65.*2 to 64"),
        ({"max_num_seqs": 0}, SettingError, "max_num_seqs is 0"),
        ({"device": "warp"}, EngineError, "engine device 'warp'"),
        ({"model": "no/such/folder"}, ModelError, "no/such/folder"),
    ],
)
def test_an_illegal_spec_is_refused(plain: str, change: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        TransformersEngine(replace(spec(plain), **change))

"""Models built from nothing: their tokenizer, their seed, their sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gspo_rllib.errors import SettingError
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.warmstart.demonstrations import tokenizer_texts
from gspo_rllib.warmstart.models import SPECIAL_TOKENS, build_model
from tests.warmstart.small_policy import SMALL, make_calculator


def test_the_tokenizer_knows_the_words_of_the_environment(tmp_path) -> None:
    texts = tokenizer_texts(make_calculator(), range(50))
    tokenizer = AutoTokenizer.from_pretrained(build_model(tmp_path, texts=texts, vocab_size=512, **SMALL))
    prompt = make_calculator().unwrapped.chat.system_prompt
    assert len(tokenizer.encode(prompt)) < 2 * len(prompt.split())
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("answer 42+137")) == [
        "answer", "\u0120", "4", "2", "+", "1", "3", "7"
    ]  # fmt: skip


def folder_state(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_a_seed_fixes_the_model_and_leaves_the_global_random_state_alone(tmp_path) -> None:
    before = torch.get_rng_state()
    first = folder_state(build_model(tmp_path / "a", seed=5, **SMALL))
    torch.rand(3)
    assert folder_state(build_model(tmp_path / "b", seed=5, **SMALL)) == first
    other = folder_state(build_model(tmp_path / "c", seed=6, **SMALL))
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}
    torch.set_rng_state(before)
    build_model(tmp_path / "d", seed=5, **SMALL)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("model", ["tiny_dense", "tiny_tied", "tiny_moe"])
def test_the_fixtures_load_and_prefer_some_tokens(model, request) -> None:
    path = request.getfixturevalue(model)
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(path), load_tokenizer(path)
    assert policy.dtype == torch.float32
    assert policy.config.vocab_size == len(tokenizer) == 320
    assert policy.config.tie_word_embeddings == (model == "tiny_tied")
    assert policy.config.model_type == ("qwen3_moe" if model == "tiny_moe" else "qwen3")
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == list(SPECIAL_TOKENS)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2) == (policy.config.pad_token_id, 2)
    logits = policy(torch.tensor([tokenizer.encode("What is 3+4?")])).logits
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert entropy < 0.85 * np.log(320)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ({"vocab_size": 100}, "at least 259"),
        ({"num_heads": 4, "num_kv_heads": 3}, "must divide num_heads=4"),
        ({"architecture": "qwen3_moe", "num_experts": 2, "num_experts_per_token": 3}, "1 to num_experts=2"),
        ({"architecture": "llama"}, "Allowed: qwen3, qwen3_moe"),
    ],
)
def test_an_illegal_size_is_refused(tmp_path, sizes, complaint) -> None:
    with pytest.raises(SettingError, match=complaint):
        build_model(tmp_path / "model", **sizes)
    assert not (tmp_path / "model").exists()

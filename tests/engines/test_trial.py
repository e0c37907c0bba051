"""What is recommended instead of an engine that cannot serve a model: only what was seen to work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, Gemma2Config

from gspo_rllib.engines import registry, trial
from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.engines.trial import untried, with_alternatives
from tests import toy_engines

REFUSAL = f"the vllm engine cannot serve 'm'. {untried('transformers')}"


def spec(path: str, engine: str = "vllm") -> EngineSpec:
    return EngineSpec(engine, path, "bfloat16", 64, 4, (3,), seed=2, options={"gpu_memory_utilization": 0.5})


@pytest.fixture
def only_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "available_engines", lambda: ["vllm", "transformers"])


def test_an_engine_that_is_exact_passes_its_trial_in_float32(tiny_moe: str) -> None:
    tried = replace(spec(tiny_moe, "transformers"), dtype="float32", options={})
    assert trial.run(tried) is None
    assert tried not in [held.spec for held in registry._held.values()], "it is closed again"


@pytest.mark.parametrize("fault", ["OneTensorStays", "CannotBeBuilt", "FailsToLoad"])
def test_an_engine_that_is_wrong_or_fails_does_not(tiny_dense: str, fault: str) -> None:
    assert hasattr(toy_engines, fault)
    error = trial.run(replace(spec(tiny_dense, fault), dtype="float32", options={}))
    said = {"OneTensorStays": "differ from", "CannotBeBuilt": "no kernel", "FailsToLoad": "router.bias"}
    assert error is not None and said[fault] in error


@pytest.mark.slow
def test_a_trial_runs_in_a_process_of_its_own_and_its_result_replaces_the_open_question(
    tiny_dense: str, tmp_path: Path, only_transformers: None
) -> None:
    good = with_alternatives(REFUSAL, spec(tiny_dense))
    assert "not tried" not in good
    assert good.startswith("the vllm engine cannot serve 'm'. engine='transformers' does: it was tried")

    config = Gemma2Config(
        vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    neither = with_alternatives(REFUSAL, spec(str(tmp_path)))
    assert "engine='transformers' was tried just now and cannot serve it either" in neither and "softcap" in neither


def test_a_model_that_is_too_large_to_try_is_not_tried(
    tiny_dense: str, only_transformers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_LARGEST_BYTES", 1000)
    assert with_alternatives(REFUSAL, spec(tiny_dense)) == REFUSAL


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "engine='transformers' does: it was tried with this model just now"),
        ("it samples something else.", "cannot serve it either: it samples something else."),
    ],
)
def test_the_message_says_what_came_of_it(
    tiny_dense: str, only_transformers: None, monkeypatch: pytest.MonkeyPatch, answer: Any, said: str
) -> None:
    monkeypatch.setattr(trial, "_try", lambda spec, engine: answer)
    assert said in with_alternatives("No.", spec(tiny_dense))


def test_without_another_engine_nothing_is_recommended(tiny_dense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "available_engines", lambda: ["transformers"])
    assert with_alternatives("No.", spec(tiny_dense, "transformers")) == "No. No other engine is installed."

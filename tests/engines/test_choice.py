"""Which engine is taken where none is named: by device and by the model's size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from gspo_rllib.engines import choice
from gspo_rllib.engines.choice import SMALL, choose, num_parameters
from gspo_rllib.errors import ModelError


@pytest.fixture(autouse=True)
def both_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "available_engines", lambda: ["vllm", "transformers"])


@pytest.fixture
def large(tiny_dense: str, tmp_path: Path) -> str:
    """A model above the border, of which only the config is there."""
    config = json.loads(Path(tiny_dense, "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": SMALL // config["hidden_size"]}))
    return str(tmp_path)


def test_a_small_model_on_a_cpu_takes_the_built_in_engine_and_vllm_where_that_one_cannot(tiny_dense: str) -> None:
    small = choose(tiny_dense, device="cpu")
    assert (small.name, small.otherwise) == ("transformers", "vllm")
    assert f"{num_parameters(tiny_dense, False) / 1e6:.3g} M parameters" in small.why


def test_a_gpu_a_large_model_and_options_take_vllm_and_say_so(tiny_dense: str, large: str) -> None:
    found = [
        choose(tiny_dense, device="cuda"),
        choose(large, device="cpu"),
        choose(tiny_dense, device="cpu", options={"kv_cache_memory_bytes": 1 << 20}),
    ]
    assert [one.name for one in found] == ["vllm"] * 3
    assert [one.otherwise for one in found] == [None] * 3
    for one, reason in zip(found, ("cuda", "above", "engine_options"), strict=True):
        assert reason in one.why


def test_without_vllm_there_is_no_choice(large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "available_engines", lambda: ["transformers"])
    only = choose(large, device="cuda")
    assert (only.name, only.otherwise) == ("transformers", None) and "not installed" in only.why


@pytest.mark.parametrize("fixture", ["tiny_dense", "tiny_tied", "tiny_moe"])
def test_parameters_are_those_of_the_loaded_model(fixture: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(fixture)
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert num_parameters(path, False) == sum(parameter.numel() for parameter in loaded.parameters())


def test_a_model_whose_size_is_not_known_is_vllms_and_one_without_a_config_is_refused(
    tiny_dense: str, tmp_path: Path
) -> None:
    config = json.loads(Path(tiny_dense, "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))  # no causal language model
    unknown = choose(str(tmp_path), device="cpu")
    assert unknown.name == "vllm" and "not known" in unknown.why
    with pytest.raises(ModelError, match="no such folder"):
        choose(str(tmp_path / "none"), device="cpu")

"""What an env runner asks of its engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gspo_rllib.engines import choice, registry
from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.env_pool.factory import check_language_env_spec
from gspo_rllib.env_runners.engine_spec import (
    check_vocabulary,
    chosen_engine,
    engine_spec,
    load_renderer,
    resolve_max_model_len,
)
from gspo_rllib.env_runners.engine_user import acquire
from gspo_rllib.env_runners.rollout_parts import RolloutParts
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.model_folder import declared_end_ids, load_tokenizer
from gspo_rllib.types import ChatSpec
from gspo_rllib.warmstart.models import build_model
from tests.env_runners.chat_families import FAMILIES
from tests.env_runners.chat_tokenizers import make_tokenizer
from tests.env_runners.small_runner import runner_config


def test_the_context_defaults_to_the_models_and_may_not_exceed_it(tiny_dense: str) -> None:
    assert resolve_max_model_len(None, {"path": tiny_dense}) == 512
    assert resolve_max_model_len(100, {"path": tiny_dense}) == 100
    with pytest.raises(SettingError, match=r"max_model_len=513.*512"):
        resolve_max_model_len(513, {"path": tiny_dense})
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_max_model_len(256, {"path": "/no/such/model"})
    with pytest.raises(SettingError, match="path"):
        resolve_max_model_len(256, {"path": ""})


@pytest.fixture
def phi(tmp_path) -> str:
    """A model whose turns end with a token that only its generation config and its template know."""
    family = next(family for family in FAMILIES if family.name == "Phi-3, Phi-3.5")
    tokenizer = family.tokenizer()
    build_model(tmp_path, tokenizer=tokenizer, num_layers=1)
    ends = [tokenizer.convert_tokens_to_ids(name) for name in ("<|endoftext|>", "<|assistant|>")]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return str(tmp_path)


def declare(folder: str, **changes: object) -> None:
    path = Path(folder, "config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_engine_stops_at_the_templates_end_and_at_all_that_is_declared(phi: str) -> None:
    settings = GenerationSettings(max_model_len=64, engine="transformers")
    renderer = load_renderer(settings, {"path": phi}, None)
    names = [renderer.format.tokens.shown([i]) for i in renderer.stop_token_ids]
    assert names == ["<|end|>", "<|endoftext|>", "<|assistant|>"]
    spec = engine_spec(
        settings,
        {"path": phi},
        max_num_seqs=1,
        run_seed=0,
        stop_token_ids=renderer.stop_token_ids,
        worker_index=0,
    )
    assert spec.stop_token_ids == renderer.stop_token_ids


def test_every_place_that_declares_an_end_is_read_and_what_is_no_declaration_is_not(phi: str) -> None:
    tokenizer = load_tokenizer(phi)
    user, word = tokenizer.convert_tokens_to_ids("<|user|>"), tokenizer.convert_tokens_to_ids("user")
    assistant, eos = tokenizer.convert_tokens_to_ids("<|assistant|>"), tokenizer.eos_token_id
    declare(phi, eos_token_id=[user, word])
    assert declared_end_ids(phi, tokenizer) == (eos, assistant, user, word)
    declare(phi, eos_token_id=10**6)  # beyond the vocabulary
    assert declared_end_ids(phi, tokenizer) == (eos, assistant)
    Path(phi, "generation_config.json").write_text("{")  # cannot be read
    assert declared_end_ids(phi, tokenizer) == (eos,)
    Path(phi, "generation_config.json").unlink()
    assert declared_end_ids(phi, tokenizer) == (eos,)


def test_a_default_of_a_config_class_is_an_end_only_where_it_is_a_token(phi: str) -> None:
    """Llama's class says 2; a tokenizer of one's own may have any word there."""
    tokenizer = load_tokenizer(phi)
    path = Path(phi, "config.json")
    sizes = {key: json.loads(path.read_text())[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")}
    path.write_text(json.dumps({"model_type": "llama", "eos_token_id": 2, **sizes}))
    assert tokenizer.convert_ids_to_tokens(2) == "</s>"  # a token here
    assert declared_end_ids(phi, tokenizer)[-1] == 2
    plain = make_tokenizer("bytes", "{{ messages }}", eos="</s>")
    assert declared_end_ids(phi, plain) == (plain.eos_token_id,)  # a word of this one has the number 2


def test_tokens_that_the_model_has_no_embedding_for_are_refused(phi: str) -> None:
    declare(phi, vocab_size=100)
    renderer = load_renderer(GenerationSettings(), {"path": phi}, None)
    with pytest.raises(
        ModelError, match=r"the token '<\|\w+\|>' \(id \d+\), but the model has only 100 embeddings: .*Resize"
    ):
        check_vocabulary(renderer, {"path": phi})


def test_renderers_of_framings_are_bounded_and_share_what_is_known(tiny_dense: str) -> None:
    config = runner_config(tiny_dense)
    parts = RolloutParts(config, check_language_env_spec(config.env, config.env_config), run_seed=0)
    kept = parts.renderer_for(ChatSpec(system_prompt="kept"))
    for number in range(200):
        assert parts.renderer_for(ChatSpec(system_prompt=str(number))).format is kept.format
        assert parts.renderer_for(ChatSpec(system_prompt="kept")) is kept  # the latest used are kept
    assert len(parts._renderers) <= 64


def test_the_engine_follows_from_the_config_alone(tiny_dense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "available_engines", lambda: ["vllm", "transformers"])
    free = {"engine": None, "engine_device": None}

    def chosen(**changes: Any) -> str:
        config = runner_config(tiny_dense, **{**free, **changes})
        config.env_runners(num_env_runners=changes.get("runners", 0), num_gpus_per_env_runner=changes.get("gpus", 0))
        return chosen_engine(config).name

    assert chosen(runners=1) == chosen(engine_device="cpu") == "transformers"
    assert chosen(runners=1, gpus=0.5) == chosen(engine_device="cuda:1") == "vllm"
    assert chosen(runners=1, adapter_sync="swap") == "vllm"  # only that one does
    assert chosen(engine="vllm") == "vllm" and chosen(engine="transformers", gpus=1, runners=1) == "transformers"


def test_an_engine_nobody_asked_for_gives_way_to_one_that_serves_the_model(
    tiny_dense: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry.register_engine("cannot", "gspo_rllib.engines.protocol:NoSuchEngine")
    try:
        spec = replace(_spec(tiny_dense), engine="cannot")
        engine = acquire(spec, otherwise="transformers")
        assert registry.spec_of(engine) == replace(spec, engine="transformers")
        assert "'transformers' is taken in place of 'cannot'" in caplog.text and "NoSuchEngine" in caplog.text
        registry.release(engine)
    finally:
        del registry._entries["cannot"]


def _spec(path: str) -> EngineSpec:
    settings = GenerationSettings(max_model_len=64, engine="transformers")
    return engine_spec(settings, {"path": path}, max_num_seqs=1, run_seed=0, stop_token_ids=(0,), worker_index=0)

"""What is looked through to find differences: untrained, large and far-seeing models, left as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, PreTrainedModel

from gspo_rllib.connectors import token_trajectory
from gspo_rllib.modules import lens
from gspo_rllib.modules.attention import PACKED
from gspo_rllib.modules.scoring import Head, Rows, Scoring, score
from gspo_rllib.packing import pack
from tests.episodes import make_episode
from tests.modules.foreign_models import build, scoring_of


@pytest.mark.parametrize(
    ("kind", "rows", "head"),
    [
        ("a soft cap in the text config of a multimodal model", Rows.PACKED, Head.KEPT),
        ("sinks", Rows.PADDED, Head.SPLIT),
        ("a head of several layers", Rows.PACKED, Head.KEPT),
    ],
)
def test_an_untrained_model_whose_words_are_all_as_likely_is_seen_through(kind: str, rows: Rows, head: Head) -> None:
    small = {"initializer_range": 1e-3}
    text = {
        "text_config": {**build(kind).config.to_dict().get("text_config", {}), "final_logit_softcapping": 30.0, **small}
    }
    model = build(kind, **small, **(text if "text" in kind else {}))
    row = pack([token_trajectory(make_episode("g", 0, [(11, 30), (4, 9)], 1.0), advantage=1.0)])
    with torch.no_grad():
        plain = Scoring(rows=Rows.PADDED, head=Head.SPLIT)
        exact = Scoring(rows=Rows.PADDED, head=Head.ALL)
        split, own = (score(model, row, scoring)[0] for scoring in (plain, exact))
    if kind != "a head of several layers":
        torch.testing.assert_close(split, own, atol=1e-4, rtol=0)  # as yet
    scoring = scoring_of(model)
    assert (scoring.rows, scoring.head) == (rows, head)


def _tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return dict([*model.named_parameters(), *model.named_buffers(remove_duplicate=False)])


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("kind", ["ordinary", "positions that go with the length", "a mask of its own"])
def test_asking_leaves_model_and_random_state_as_they_were(kind: str, recomputes: bool) -> None:
    model = build(kind, initializer_range=0.02)
    kept = {name: tensor.clone() for name, tensor in _tensors(model).items()}
    parts, random = [name for name, _ in model.named_modules()], torch.random.get_rng_state()
    scoring = scoring_of(model, recomputes=recomputes)
    assert torch.equal(random, torch.random.get_rng_state())
    assert parts == [name for name, _ in model.named_modules()]
    now = _tensors(model)
    assert now.keys() == kept.keys()
    assert all(torch.equal(now[name], tensor) for name, tensor in kept.items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks
    assert model.config._attn_implementation == (PACKED if scoring.rows is Rows.PACKED else "sdpa")


def test_a_large_model_is_looked_at_by_its_first_layers_of_every_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = Gemma3TextConfig(
        vocab_size=320, head_dim=8, sliding_window=512, num_hidden_layers=5, layer_types=kinds, **sizes
    )
    model = AutoModelForCausalLM.from_config(config)
    called = [0] * 5
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda *_, i=i: called.__setitem__(i, called[i] + 1))
    monkeypatch.setattr(lens, "_MANY_PARAMETERS", 0)
    scoring = scoring_of(model.eval())
    assert (scoring.rows, scoring.shares_prefixes, scoring.window) == (Rows.PACKED, True, 512)
    assert called[3] == called[4] == 1  # its own forward pass, once
    assert called[0] == called[1] == called[2] > 10
    assert len(model.model.layers) == model.config.num_hidden_layers == 5


def test_a_large_model_whose_layers_cannot_be_left_out_is_looked_at_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lens, "_MANY_PARAMETERS", 0)
    model, called = build("ordinary"), 0

    def count(*_: Any) -> None:
        nonlocal called
        called += 1

    model.model.layers[1].register_forward_pre_hook(count)
    model.model.norm.register_forward_pre_hook(lambda *_: model.model.layers[1] and None)  # not there where it is cut
    assert scoring_of(model).rows is Rows.PACKED
    assert called > 10


def test_a_window_longer_than_a_probe_is_shortened_to_be_seen() -> None:
    model = build("chunks and a trunk without a name", attention_chunk_size=8192)
    assert scoring_of(model).rows is Rows.PADDED
    assert model.config.attention_chunk_size == 8192

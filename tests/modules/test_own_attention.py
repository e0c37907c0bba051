"""What a model's own attention computes with and transformers' others leave out is not left out here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from gspo_rllib.engines.proof import EngineSample, model_log_probs
from gspo_rllib.engines.protocol import EngineSpec, Generation
from gspo_rllib.envs import UnicodeText
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.modules.own_attention import OWN, own_attention, with_attention
from gspo_rllib.modules.probe import own_logits
from gspo_rllib.modules.scoring import Head, Rows
from tests.modules.foreign_models import build, save, scoring_of

IDS = torch.randint(10, 300, (40,), generator=torch.Generator().manual_seed(3))
CAPPED = "soft-capped attention scores"


@torch.no_grad()
def _logp(model: PreTrainedModel) -> torch.Tensor:
    return own_logits(model, IDS).log_softmax(-1)


def test_a_soft_cap_on_attention_scores_is_trained_with(tiny_dense: str, tmp_path: Path) -> None:
    folder = save(build(CAPPED), tmp_path, tokenizer=tiny_dense)
    text = UnicodeText(100)
    module = CausalLMModule(observation_space=text, action_space=text, model_config={"path": folder})
    assert (module.scoring.rows, module.scoring.head) == (Rows.PADDED, Head.KEPT)
    assert str(module.scoring).endswith(", attention 'eager'")
    eager, sdpa = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=name)
        for name in ("eager", "sdpa")
    )
    assert float((_logp(sdpa) - _logp(eager)).abs().max()) > 0.1
    torch.testing.assert_close(_logp(module.model), _logp(eager), atol=1e-5, rtol=0)


def test_naming_an_attention_that_drops_it_is_refused() -> None:
    with pytest.raises(
        SettingError, match=r"attn_implementation'\] is 'sdpa', which is not exact for Gemma2ForCausalLM"
    ):
        scoring_of(build(CAPPED), attention="sdpa")
    assert scoring_of(build(CAPPED), attention="eager").attention == "eager"


def test_engines_are_compared_with_it_too() -> None:
    model, spec = build(CAPPED), EngineSpec("transformers", "capped", "float32", 64, 1, ())
    prompt, answer = IDS[:30].tolist(), IDS[30:]
    generation = Generation("0", answer.tolist(), np.zeros(10, np.float32), "length")
    sample = EngineSample(spec, 1, [prompt], [generation], [1.0])
    (scored,) = model_log_probs(model, sample)
    with own_attention(model):
        expected = _logp(model)[29:-1].gather(1, answer[:, None]).squeeze(1)
    torch.testing.assert_close(torch.as_tensor(scored), expected, atol=1e-5, rtol=0)


def test_a_model_is_left_with_the_attention_it_had() -> None:
    model = build("ordinary")
    before = model.config._attn_implementation
    with own_attention(model):
        assert model.config._attn_implementation == OWN != before
    assert model.config._attn_implementation == before
    with pytest.raises(ZeroDivisionError), own_attention(model):
        _ = 1 / 0
    assert model.config._attn_implementation == before


def test_an_attention_that_cannot_be_replaced_is_the_models_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("ordinary")
    monkeypatch.setattr(model, "_can_set_attn_implementation", lambda: False)
    before = model.config._attn_implementation
    with own_attention(model):
        assert model.config._attn_implementation == before
    with pytest.raises(ModelError, match="does not let its attention be replaced"), with_attention(model, "sdpa"):
        pass


def test_sparse_attention_that_picks_among_ties_is_refused() -> None:
    # Where all of its few heads say 0, which keys are taken goes by how many there are, from 80 tokens on here.
    with pytest.raises(ModelError, match=r"scores a token by what comes after it.*index_n_heads"):
        scoring_of(build("sparse attention", index_n_heads=2))
    assert scoring_of(build("sparse attention", index_n_heads=24)).rows is Rows.PADDED

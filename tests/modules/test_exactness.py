"""Whatever the model, its tokens are scored as it scores them itself, or it is refused."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel

from gspo_rllib import columns
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.envs import UnicodeText
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.modules import CausalLMModule, exactness
from gspo_rllib.modules.attention import packed_attention
from gspo_rllib.modules.critic import Critic
from gspo_rllib.modules.probe import ordinary_ids
from gspo_rllib.modules.scoring import Head, Rows, Scoring, score
from gspo_rllib.packing import pack
from tests.episodes import make_episode
from tests.learners.small_learner import SPACES, even_groups, learner_config
from tests.modules.foreign_models import build, save, scoring_of

# What each kind falls back to: rows, the head, and whether prompts are shared.
VERDICTS = {
    "ordinary": (Rows.PACKED, Head.SPLIT, True),
    "a bias on the head": (Rows.PACKED, Head.SPLIT, True),
    "a soft cap in the text config of a multimodal model": (Rows.PACKED, Head.KEPT, True),
    "a head of several layers": (Rows.PACKED, Head.KEPT, True),
    "a bias on attention scores": (Rows.PADDED, Head.KEPT, False),
    "a soft cap behind xLSTM": (Rows.PADDED, Head.ALL, False),
    "recurrent layers and a soft cap": (Rows.PADDED, Head.KEPT, False),
    "a mask of its own": (Rows.PADDED, Head.SPLIT, False),
    "sinks": (Rows.PADDED, Head.SPLIT, False),
    "attention by its class": (Rows.PADDED, Head.SPLIT, False),
    "chunks and a trunk without a name": (Rows.PADDED, Head.SPLIT, False),
    "values narrower than keys": (Rows.PACKED, Head.SPLIT, False),
    "positions that change beyond 64 tokens": (Rows.PACKED, Head.SPLIT, True),
    "positions that go with the length": (Rows.PACKED, Head.SPLIT, True),
}


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """No verdict of another test."""
    monkeypatch.setattr(exactness, "_verdicts", {})


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, tiny_dense: str) -> Callable[[str], str]:
    """The folder of a model of a kind, built once."""
    return functools.cache(
        lambda kind: save(build(kind), tmp_path_factory.mktemp("foreign"), tokenizer=tiny_dense)
    )  # fmt: skip


def _module(path: str, **model_config: Any) -> CausalLMModule:
    text, settings = UnicodeText(100), {"path": path, "temperature": 0.9, **model_config}
    spec = RLModuleSpec(CausalLMModule, observation_space=text, action_space=text, model_config=settings)
    module: CausalLMModule = spec.build()
    return module


def _trajectories(longest: int = 40) -> list[Any]:
    """Of lengths that no check tried."""
    turns = [[(8, 5), (3, 2)], [(11, longest - 11)], [(2, 1), (4, 5)]]
    return [token_trajectory(make_episode("g", i, lengths, 1.0), advantage=1.0) for i, lengths in enumerate(turns)]


def _own_logp(model: PreTrainedModel, trajectories: list[Any], temperature: float) -> torch.Tensor:
    """[L] by the model alone, which gets one trajectory at a time."""
    found = []
    for trajectory in trajectories:
        ids = torch.as_tensor(trajectory.segments[0]).long()
        sampled = torch.as_tensor(np.flatnonzero(trajectory.loss_masks[0]))
        logp_TV = (model(input_ids=ids[None], use_cache=False).logits[0] / temperature).log_softmax(-1)
        found.append(logp_TV[sampled - 1, ids[sampled]])
    return torch.cat(found)


def _embedding_gradient(model: PreTrainedModel, loss: torch.Tensor) -> torch.Tensor:
    weight = model.get_input_embeddings().weight
    (gradient,) = torch.autograd.grad(loss, [weight])
    return gradient


@pytest.mark.parametrize("kind", VERDICTS)
def test_tokens_are_scored_as_the_model_scores_them_and_the_fastest_exact_way_is_taken(
    kind: str, folder_of: Callable[[str], str]
) -> None:
    module, trajectories = _module(folder_of(kind)), _trajectories()
    rows, head, shares = VERDICTS[kind]
    assert (module.scoring.rows, module.scoring.head, module.scoring.shares_prefixes) == (rows, head, shares)
    assert (module.prefix_sharing() is not None) is shares
    model = AutoModelForCausalLM.from_pretrained(folder_of(kind), dtype=torch.float32)
    own, got = _own_logp(model, trajectories, 0.9), module.forward_train(pack(trajectories))[columns.LOGP]
    assert own.std() > 0.05
    torch.testing.assert_close(got, own, atol=1e-4, rtol=0)
    own_gradient, gradient = _embedding_gradient(model, own.sum()), _embedding_gradient(module.model, got.sum())
    torch.testing.assert_close(gradient, own_gradient, rtol=0, atol=1e-4 * float(own_gradient.abs().max()))


@pytest.mark.parametrize("kind", ["a mask of its own", "chunks and a trunk without a name", "a soft cap behind xLSTM"])
def test_a_critic_reads_states_the_same_way(kind: str, folder_of: Callable[[str], str]) -> None:
    for shared in (False, True):
        module = _module(folder_of(kind), use_critic=True, vf_share_layers=shared)
        torch.nn.init.normal_(module.critic.value_head.weight)
        trajectories = _trajectories()
        together = module.forward_train(pack(trajectories))[columns.VALUES]
        alone = [module.forward_train(pack([trajectory]))[columns.VALUES] for trajectory in trajectories]
        assert together.std() > 0.1
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


class _Mates(torch.nn.Module):
    """An embedding that tells every row of a call about the others."""

    def __init__(self, embedding: torch.nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.weight = embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        embedded = self.embedding(ids)
        return embedded + (ids.shape[0] - 1) * self.weight[7]


def _with_mates() -> PreTrainedModel:
    """Neither padded rows nor packed ones are exact; where there is one row, it is what it was."""
    model = build("attention by its class")
    model.set_input_embeddings(_Mates(model.get_input_embeddings()))
    return model


def test_a_model_in_which_rows_of_a_call_are_not_independent_gets_one_segment_at_a_time(tiny_dense: str) -> None:
    model = _with_mates()
    scoring = scoring_of(model)
    assert scoring == Scoring(rows=Rows.SINGLE, head=Head.SPLIT)
    assert (scoring.rows_level, scoring.head_level) == (3, 0)
    trajectories = _trajectories()
    got, entropy, _ = score(model, pack(trajectories), scoring, temperature=0.9)
    torch.testing.assert_close(got, _own_logp(model, trajectories, 0.9), atol=1e-5, rtol=0)
    assert entropy.shape == got.shape
    with pytest.raises(
        SettingError, match=r"packing'\] is True, but packed rows are not exact for NemotronForCausalLM"
    ):
        scoring_of(model, packing=True)
    # Rows that are not packed are what packing=False asks for, padded or not.
    assert scoring_of(model, packing=False).rows is Rows.SINGLE


def test_a_model_that_no_way_scores_as_it_does_itself_is_refused_with_the_difference() -> None:
    model = build("ordinary")
    passes = iter(range(10**6))
    model.get_output_embeddings().register_forward_hook(lambda _m, _i, logits: logits * (1 + 0.1 * next(passes)))
    with pytest.raises(ModelError) as refusal:
        scoring_of(model)
    assert "LlamaForCausalLM scores the same tokens differently each time, by " in str(refusal.value)
    model = build("ordinary")
    model.model.layers[0].register_full_backward_hook(lambda _m, grads, _o: (grads[0] * (1 + next(passes)),))
    with pytest.raises(ModelError) as refusal:
        scoring_of(model)
    assert "LlamaForCausalLM cannot be trained: no way to score its tokens gives what its own forward pass does" in str(
        refusal.value
    )
    assert "nats (gradient " in str(refusal.value)


def test_a_forward_pass_that_raises_is_refused_with_what_it_raised() -> None:
    model = build("ordinary")
    model.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot be trained: its own forward pass on token ids alone "
                       r"raised ZeroDivisionError: division by zero\. Use a model that continues text\."):  # fmt: skip
        scoring_of(model)


def test_a_model_whose_tokens_see_what_follows_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"BertLMHeadModel scores a token by what comes after it.*\"is_decoder\": true"
    ):
        scoring_of(build("tokens that see what follows"))
    causal = build("tokens that see what follows", is_decoder=True)
    assert scoring_of(causal).head is Head.KEPT


@pytest.mark.parametrize("kind", ["positions that change beyond 64 tokens", "positions that go with the length"])
def test_positions_that_change_with_the_length_limit_it(kind: str, folder_of: Callable[[str], str]) -> None:
    module = _module(folder_of(kind))
    assert module.scoring.max_tokens == 64
    assert str(module.scoring).endswith(", up to 64 tokens")
    model = AutoModelForCausalLM.from_pretrained(folder_of(kind), dtype=torch.float32)
    at_the_limit = _trajectories(64)
    got = module.forward_train(pack(at_the_limit))[columns.LOGP]
    torch.testing.assert_close(got, _own_logp(model, at_the_limit, 0.9), atol=1e-4, rtol=0)
    with pytest.raises(ModelError, match=r"at more than 64 tokens its positions are others.*a trajectory has 65\. "
                       r"Sample with generation\(max_model_len=64\)"):  # fmt: skip
        module.forward_train(pack(_trajectories(65)))
    assert _module(folder_of(kind), max_model_len=64).scoring.max_tokens is None
    with pytest.raises(ModelError, match=r"and max_model_len is 65\. A reply.*Set generation\(max_model_len=64\)"):
        _module(folder_of(kind), max_model_len=65)


def test_a_run_is_refused_where_its_contexts_would_be_too_long(folder_of: Callable[[str], str]) -> None:
    config = learner_config(folder_of("positions that change beyond 64 tokens"))
    with pytest.raises(ModelError, match=r"max_model_len is 256.*Set generation\(max_model_len=64\)"):
        config.build_learner(spaces=SPACES)
    config.generation(max_model_len=64).build_learner(spaces=SPACES)


def test_a_longrope_shorter_than_any_probe_is_understood() -> None:
    rope = {**build("positions that change beyond 64 tokens").config.rope_parameters}
    model = build(
        "positions that change beyond 64 tokens",
        original_max_position_embeddings=16,
        rope_parameters={**rope, "original_max_position_embeddings": 16},
    )
    assert scoring_of(model).max_tokens == 16


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        ("a mask of its own", {"packing": True},
         r"packing'\] is True, but packed rows are not exact for DogeForCausalLM: packed rows \(ModelError: "
         r"DogeAttention asks attention for a mask of its own, which packed rows are computed without\)\. Set it to N"),
        ("recurrent layers and a soft cap", {"packing": True},
         r"packing'\] is True, but .* RecurrentGemmaForCausalLM: packed rows \([\d.]+ nats \(gradient [\d.e+]+ %"),
        ("values narrower than keys", {"shared_prefixes": True},
         r"shared_prefixes'\] is True, but DeepseekV3ForCausalLM cannot share prompts as it is configured: packed rows "
         r"with shared prompts \(RuntimeError: .*same head size.*\)\. Set it to None or False\."),
        ("a mask of its own", {"shared_prefixes": True}, r"shared_prefixes'\] is True, but DogeForC.* cannot share"),
        ("a head of several layers", {"exact_head": True},
         r"head_dtype'\] is 'float32', but the head of ModernBertDecoderForCausalLM is more than one matrix "
         r"multiplication; as one, it is off by [\d.]+ nats"),
        ("ordinary", {"attention": "sees_all"},
         r"attn_implementation'\] is 'sees_all', which is not exact for LlamaForCausalLM: [\d.]+ nats .*Set it to No"),
        ("ordinary", {"attention": "on_a_gpu"},
         r"attn_implementation'\] is 'on_a_gpu', which is not exact for LlamaForCausalLM: RuntimeError: no kernel"),
    ],
)  # fmt: skip
def test_a_setting_that_is_not_exact_is_refused_with_the_difference(
    kind: str, wanted: dict[str, Any], message: str, foreign_attention: None
) -> None:
    with pytest.raises(SettingError, match=message):
        scoring_of(build(kind), **wanted)


@pytest.fixture
def foreign_attention() -> Iterator[None]:
    """Two of a user's own: one without a mask, and one that runs elsewhere only."""

    def sees_all(
        module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float | None = None, **_: Any
    ) -> Any:
        out = scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None

    def on_a_gpu(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel for this device")

    for function in (sees_all, on_a_gpu):
        AttentionInterface.register(function.__name__, function)
    yield
    for function in (sees_all, on_a_gpu):
        AttentionInterface._global_mapping.pop(function.__name__)


def test_an_attention_that_is_exact_may_be_named() -> None:
    for name in ("eager", "sdpa"):
        scoring = scoring_of(model := build("ordinary"), attention=name)
        assert scoring == Scoring(rows=Rows.PACKED, head=Head.SPLIT, attention=name)
        assert model.config._attn_implementation == name


def test_an_attention_for_gpus_is_taken_on_trust_where_there_is_one(
    foreign_attention: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    scoring = scoring_of(build("ordinary"), attention="on_a_gpu")
    assert scoring == Scoring(rows=Rows.PACKED, head=Head.SPLIT, attention="on_a_gpu")
    assert "Attention 'on_a_gpu' is taken on trust, not compared: RuntimeError: no kernel" in caplog.text


def test_a_process_asks_once_for_a_class_a_config_and_settings(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tiny_dense: str, folder_of: Callable[[str], str]
) -> None:
    runs: list[str] = []
    run = exactness._Search.run

    def counted(self: Any) -> Scoring:
        runs.append(self._name)
        return run(self)

    monkeypatch.setattr(exactness._Search, "run", counted)
    first, again = (_module(folder_of("a mask of its own")) for _ in range(2))
    assert first.scoring == again.scoring
    assert runs == ["DogeForCausalLM"]
    assert [record.getMessage() for record in caplog.records if record.name == "gspo_rllib.modules.exactness"] == [
        "DogeForCausalLM is scored by: padded rows, the head in blocks, on sampled tokens. Not exact for it: packed "
        "rows (ModelError: DogeAttention asks attention for a mask of its own, which packed rows are computed without)."
    ]
    _module(folder_of("a mask of its own"), packing=False)
    _module(tiny_dense)
    assert runs == ["DogeForCausalLM", "DogeForCausalLM", "Qwen3ForCausalLM"]


def test_what_is_exact_as_it_is_says_nothing(tiny_dense: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="gspo_rllib"):
        _module(tiny_dense)
    assert not [record for record in caplog.records if record.name.startswith("gspo_rllib")]


def test_a_module_that_only_samples_asks_nothing(tiny_dense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = UnicodeText(100)
    spec = RLModuleSpec(
        CausalLMModule,
        observation_space=text,
        action_space=text,
        model_config={"path": tiny_dense},
        inference_only=True,
    )
    module = spec.build()
    assert not exactness._verdicts
    assert module.scoring.rows is Rows.PACKED


def test_packed_attention_refuses_what_it_does_not_compute() -> None:
    tensor, layer = torch.zeros(1, 1, 4, 8), torch.nn.Linear(1, 1)
    attend = functools.partial(packed_attention, layer, tensor, tensor, tensor, segment_lengths=[4])
    with pytest.raises(ModelError, match="Linear asks attention for softcap, s_aux, which packed rows are"):
        attend(None, softcap=50.0, s_aux=torch.zeros(1), dropout=0.1)
    with pytest.raises(ModelError, match="asks attention for a mask of its own"):
        attend(torch.ones(1, 1, 4, 4))
    assert attend(None, softcap=None, position_ids=torch.arange(4), dropout=0.1)[0].shape == (1, 4, 1, 8)


def test_a_head_that_the_model_does_not_name_is_left_to_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("ordinary")
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    scoring = scoring_of(model)
    assert (scoring.rows, scoring.head, scoring.shares_prefixes) == (Rows.PACKED, Head.KEPT, True)
    assert Critic(model, share_layers=False).value_head.in_features == 32


def test_results_say_how_tokens_were_scored(folder_of: Callable[[str], str]) -> None:
    for kind, rows, head in [("a mask of its own", 2, 0), ("a head of several layers", 0, 1)]:
        learner = learner_config(folder_of(kind)).build_learner(spaces=SPACES)
        data = GroupTrainingData.from_groups(even_groups(2), num_minibatches=1, seed=0)
        result = learner.update(training_data=data, num_epochs=1)[DEFAULT_MODULE_ID]
        assert (result["scoring_rows"].peek(), result["scoring_head"].peek()) == (rows, head)


def test_special_ids_are_never_asked_about(tiny_dense: str) -> None:
    model = build("a soft cap in the text config of a multimodal model")
    model.config.image_token_id = 77
    ids = ordinary_ids(model, load_tokenizer(tiny_dense))
    assert 77 not in ids
    assert not set(load_tokenizer(tiny_dense).all_special_ids) & set(ids)
    assert len(ids) > 200

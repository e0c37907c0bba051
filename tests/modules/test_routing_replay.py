"""Experts that are held, against what was noted, against weights by hand, and through whole updates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from ray.rllib.core import DEFAULT_MODULE_ID
from transformers import AutoModelForCausalLM

from gspo_rllib import columns
from gspo_rllib.algorithms import LanguagePPOConfig
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.modules.causal_lm import CausalLMModule
from gspo_rllib.modules.routing import experts_noted, experts_of
from gspo_rllib.modules.routing_replay import RoutingReplay
from gspo_rllib.modules.scoring import Rows
from gspo_rllib.packing import empty_row, pack
from tests.episodes import make_episode
from tests.learners.objectives import SPACES, even_groups, objective_config
from tests.learners.shared_learners import EXPERTS
from tests.modules.foreign_models import MODELS, save

_SIZES = {"vocab_size": 320, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.3}
_SIZES |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
_SIZES |= {"intermediate_size": 48, "moe_intermediate_size": 24, "max_position_embeddings": 256}
_SIZES |= {"num_experts_per_tok": 2, "head_dim": 8}
_GROUPED = {**MODELS["values narrower than keys"][1], "n_routed_experts": 8, "n_group": 4, "topk_group": 2}

ROUTED: dict[str, tuple[str, dict[str, Any], Rows]] = {
    "a share of the softmax of all": (
        "Qwen3MoeConfig",
        {**_SIZES, "num_experts": 4, "norm_topk_prob": True},
        Rows.PACKED,
    ),
    "a softmax of the largest, with a bias": ("GptOssConfig", {**_SIZES, "num_local_experts": 4}, Rows.PADDED),
    "a method of the scores": ("GraniteMoeConfig", {**_SIZES, "num_local_experts": 4}, Rows.PACKED),
    "groups, and scores that are not what is chosen by": ("DeepseekV3Config", _GROUPED, Rows.PACKED),
    "groups, and no score outside": (
        "DeepseekV2Config",
        {**_GROUPED, "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.0},
        Rows.PACKED,
    ),
    "rows that are padded": (
        "Lfm2MoeConfig",
        {**_SIZES, "num_experts": 4, "layer_types": ["conv", "full_attention"], "num_dense_layers": 0},
        Rows.PADDED,
    ),
}
"""By how experts are chosen: the config class, what is not its default, and what a forward pass holds."""


@pytest.fixture(scope="module")
def module_of(tiny_dense, tmp_path_factory):
    """Makes a policy whose router is like that."""

    def make(kind: str) -> CausalLMModule:
        config_class, sizes, _ = ROUTED[kind]
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(getattr(transformers, config_class)(**sizes)).eval()
        path = save(model, tmp_path_factory.mktemp("routed"), tokenizer=tiny_dense)
        return CausalLMModule(model_config={"path": path})

    return make


def _row() -> dict[str, Any]:
    trajectories = [
        token_trajectory(make_episode("g", i, turns, 1.0), advantage=1.0)
        for i, turns in enumerate([[(5, 6), (3, 7)], [(9, 4), (2, 2)]])
    ]
    return pack(trajectories)


def _scored(module: CausalLMModule, row: dict[str, Any]) -> list[torch.Tensor]:
    """Log-probabilities, and every gradient of their sum."""
    module.zero_grad(set_to_none=True)
    logp_L = module.forward_train(row)[columns.LOGP]
    logp_L.sum().backward()
    return [logp_L.detach(), *(p.grad.clone() for p in module.model.parameters() if p.grad is not None)]


def _moved(module: CausalLMModule, replay: RoutingReplay) -> None:
    """Has each router prefer what it liked least."""
    with torch.no_grad():
        for router in replay.routers:
            for parameter in router.parameters():
                parameter.neg_()


@pytest.mark.parametrize("kind", ROUTED)
def test_experts_stay_where_they_were_noted_and_all_else_is_what_it_was(kind, module_of):
    module = module_of(kind)
    assert module.scoring.rows is ROUTED[kind][2]
    row = _row()
    free = _scored(module, row)
    replay = RoutingReplay(module, empty_row())
    with replay.noted(row), torch.no_grad():
        module.forward_train(row)
    before = experts_of(module, row)
    with replay.held(row):
        held = _scored(module, row)
    assert len(held) == len(free) > 10
    assert all(torch.equal(one, other) for one, other in zip(held, free, strict=True))
    _moved(module, replay)
    moved = experts_of(module, row)
    assert any(not torch.equal(one, other) for one, other in zip(before, moved, strict=True))
    with replay.held(row), torch.no_grad():
        assert all(torch.equal(one, other) for one, other in zip(experts_of(module, row), before, strict=True))
        # Twice: a pass that is longer than any before is.
        assert all(torch.equal(one, other) for one, other in zip(experts_of(module, row), before, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(experts_of(module, row), moved, strict=True))


def test_the_weights_of_held_experts_are_the_routers_and_have_its_gradient(module_of):
    """By hand, in transformers' own model: the softmax of all scores, gathered where it was the largest before."""
    module = module_of("a share of the softmax of all")
    replay, row = RoutingReplay(module, empty_row()), _row()
    with replay.noted(row), torch.no_grad():
        module.forward_train(row)
    _moved(module, replay)
    with replay.held(row):
        held = _scored(module, row)
    plain = AutoModelForCausalLM.from_pretrained(module.settings["path"], dtype=torch.float32).eval()
    plain.load_state_dict(module.model.state_dict())

    def routed(gate, places_CK):
        def forward(states):
            logits_CE = torch.nn.functional.linear(states.reshape(-1, states.shape[-1]), gate.weight)
            weights_CK = logits_CE.softmax(dim=-1).gather(1, places_CK)
            return logits_CE, weights_CK / weights_CK.sum(dim=-1, keepdim=True), places_CK

        return forward

    # Of a row without shared prompts: its segments one by one.
    lengths, total = row[columns.SEGMENT_LENGTHS], []
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    for start, length in zip(starts, lengths, strict=True):
        for layer, ((choice,),) in zip(plain.model.layers, row[columns.ROUTING], strict=True):
            layer.mlp.gate.forward = routed(layer.mlp.gate, choice.places.long()[start : start + length])
        positions = row[columns.LOSS_POSITIONS]
        inside = (positions >= start) & (positions < start + length)
        logits_TV = plain(row[columns.TOKEN_IDS][None, start : start + length]).logits[0]
        logp_TV = logits_TV.log_softmax(dim=-1)
        total.append(logp_TV[positions[inside] - start].gather(1, row[columns.LOSS_TOKEN_IDS][inside][:, None])[:, 0])
    by_hand_L = torch.cat(total)
    by_hand_L.sum().backward()
    torch.testing.assert_close(held[0], by_hand_L.detach(), atol=1e-5, rtol=0)
    gates = [layer.mlp.gate.weight for layer in plain.model.layers]
    found = [layer.mlp.gate.weight for layer in module.model.model.layers]
    for expected, got in zip(gates, found, strict=True):
        assert expected.grad.abs().max() > 1e-3
        torch.testing.assert_close(got.grad, expected.grad, atol=1e-4, rtol=1e-4)


def _updated(path: str, config: Any = None, *, model: Any = None, watched: bool = False, **training: Any) -> Any:
    """A learner after an update of several steps; watched, the experts of its passes over each row."""
    training = {"lr": 3e-2, "num_minibatches": 2, "num_epochs": 2, **training}
    learner = objective_config(path, config, model=model, **training).build_learner(spaces=SPACES)
    data = GroupTrainingData.from_groups(even_groups(), num_minibatches=2, seed=0)
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    if not watched:
        learner.update(training_data=data, num_epochs=training["num_epochs"])
        return module.model.state_dict(), learner
    passes: dict[Any, list[list[torch.Tensor]]] = {}
    forward = module.forward_train

    def watching(row: dict[str, Any]) -> dict[str, torch.Tensor]:
        with experts_noted(module.model) as noted:
            out = forward(row)
        if torch.is_grad_enabled():
            passes.setdefault(tuple(row[columns.TOKEN_IDS].tolist()), []).append([layer[-1] for layer in noted])
        return out

    module.forward_train = watching
    learner.update(training_data=data, num_epochs=training["num_epochs"])
    return list(passes.values())


@pytest.mark.parametrize("old_log_probs", ["engine", "learner"])
def test_every_step_of_an_update_has_the_experts_of_the_policy_before_it(old_log_probs, tiny_moe):
    def changed(passes):
        assert len(passes) == 2 and all(len(of_row) == 2 for of_row in passes)  # two minibatches, two epochs
        return [not torch.equal(a, b) for first, second in passes for a, b in zip(first, second, strict=True)]

    asked = {"watched": True, "old_log_probs": old_log_probs}
    assert any(changed(_updated(tiny_moe, **asked)))
    assert not any(changed(_updated(tiny_moe, routing_replay=True, **asked)))
    # The second minibatch's, too, are those of before the first step, which moved them.
    free, held = (_updated(tiny_moe, routing_replay=replay, **asked) for replay in (False, True))
    assert any(not torch.equal(a, b) for a, b in zip(free[1][0], held[1][0], strict=True))


def test_after_an_update_the_policy_is_free_again(tiny_moe):
    state, learner = _updated(tiny_moe, routing_replay=True)
    row = _row()
    with torch.no_grad():
        logp_L = learner.module[DEFAULT_MODULE_ID].unwrapped().forward_train(row)[columns.LOGP]
        fresh = CausalLMModule(model_config={"path": tiny_moe})
        fresh.model.load_state_dict(state)
        assert torch.equal(logp_L, fresh.forward_train(row)[columns.LOGP])


@pytest.mark.parametrize(
    ("config", "model", "training"),
    [
        (None, {}, {}),
        (None, {}, {"target_kl": 1.0, "undo_overshoot": True, "lr": 1e-3, "old_log_probs": "learner"}),
        (LanguagePPOConfig, {}, {}),
        (None, {}, {"kl_coeff": 0.1}),
        (None, {"lora": {"rank": 4, "alpha": 8, "target_modules": ["q_proj"], "target_parameters": EXPERTS}}, {}),
    ],
    ids=["gspo", "undone steps", "critic", "reference", "adapter on experts"],
)
def test_activations_that_are_computed_again_have_the_experts_of_the_first_time(config, model, training, tiny_moe):
    def weights(**more):
        return _updated(tiny_moe, config and config(), model={**model, **more}, routing_replay=True, **training)[0]

    kept, recomputed = weights(), weights(activation_checkpointing=True)
    start = CausalLMModule(model_config={"path": tiny_moe, **model}).model.state_dict()
    assert any(not torch.equal(kept[name], start[name]) for name in kept)
    assert all(torch.equal(kept[name], recomputed[name]) for name in kept)


def test_a_pass_that_is_split_otherwise_is_no_silent_one(module_of):
    module = module_of("a share of the softmax of all")
    replay, row = RoutingReplay(module, empty_row()), _row()
    with replay.noted(row), torch.no_grad():
        module.forward_train(row)
    other = {**empty_row(), columns.ROUTING: row[columns.ROUTING]}
    with replay.held(other), pytest.raises(ModelError, match="this pass is split otherwise"):
        module.forward_train(other)


def test_what_cannot_be_held_is_refused_before_it_is_trained(tiny_dense, tmp_path):
    def replay(path):
        return objective_config(path, num_minibatches=2, routing_replay=True).build_learner(spaces=SPACES)

    with pytest.raises(SettingError, match=r"training\.routing_replay: Qwen3ForCausalLM has no layer that tells"):
        replay(tiny_dense)
    torch.manual_seed(0)
    config = transformers.PhimoeConfig(**_SIZES, num_local_experts=4)
    path = save(AutoModelForCausalLM.from_config(config), tmp_path / "phimoe", tokenizer=tiny_dense)
    with pytest.raises(SettingError, match=r"routing_replay: PhimoeForCausalLM chooses experts in a way that cannot"):
        replay(path)

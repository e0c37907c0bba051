"""Experts of tokens, against the router's own logits, and against a change of experts that is known by hand."""

from __future__ import annotations

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from transformers import AutoModelForCausalLM

from gspo_rllib import columns
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.errors import SettingError
from gspo_rllib.learners.router_drift import RouterDrift
from gspo_rllib.learners.statistics import ROUTER_DRIFT, UpdateStatistics
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.modules.routing import expert_layers, experts_of
from gspo_rllib.packing import pack
from tests.episodes import make_episode
from tests.learners.small_learner import SPACES, even_groups, learner_config


def _learner(path, **training):
    return learner_config(path, **training).build_learner(spaces=SPACES)


def _rows():
    lengths = [[(5, 6), (3, 7)], [(9, 4)]]
    return [
        pack([token_trajectory(make_episode("g", i, turns, 1.0), advantage=1.0)]) for i, turns in enumerate(lengths)
    ]


def _renamed(layer) -> None:
    """Calls each expert by the next one's number, router and weights alike: the layer's output is what it was."""
    for parameter in layer.parameters():
        if parameter.shape[0] == 4:
            parameter.data = parameter.data.roll(1, dims=0)


def test_experts_are_those_with_the_largest_router_logits(tiny_moe):
    module = _learner(tiny_moe).module[DEFAULT_MODULE_ID].unwrapped()
    plain = AutoModelForCausalLM.from_pretrained(tiny_moe, dtype=torch.float32).eval()
    for row in _rows():
        found = experts_of(module, row)
        with torch.no_grad():
            out = plain(row[columns.TOKEN_IDS][None], output_router_logits=True)
        assert len(found) == len(out.router_logits) == 2
        for experts_LK, logits_TE in zip(found, out.router_logits, strict=True):
            chosen_TK = logits_TE.topk(2, dim=-1).indices.sort(dim=-1).values
            assert torch.equal(experts_LK, chosen_TK[row[columns.LOSS_POSITIONS]])


def test_the_drift_is_the_share_that_changed_by_hand(tiny_moe):
    """Of two layers one has its four experts renamed: no pair of them is then the same pair, and the other layer sees
    what it saw, so one half of all tokens and layers has changed; the placeholder of a rank counts nowhere."""
    module = _learner(tiny_moe).module[DEFAULT_MODULE_ID].unwrapped()
    assert len(expert_layers(module.model)) == 2
    rows = [*_rows(), {**_rows()[0], columns.EMPTY: True}]
    minibatch = type("Minibatch", (), {"policy_batches": {DEFAULT_MODULE_ID: {"micro_batches": rows}}})
    drift, still = (RouterDrift(module, DEFAULT_MODULE_ID, minibatch) for _ in range(2))
    measured = UpdateStatistics()
    still.add_to(measured)
    assert measured.compute(distributed=False, device="cpu")[ROUTER_DRIFT] == 0.0
    _renamed(module.model.model.layers[0].mlp)
    measured = UpdateStatistics()
    drift.add_to(measured)
    assert measured.compute(distributed=False, device="cpu")[ROUTER_DRIFT] == 0.5


@pytest.mark.parametrize(("lr", "moves"), [(1e-12, False), (3e-2, True)])
def test_an_update_reports_it_where_it_is_asked_for(lr, moves, tiny_moe):
    for asked in (True, False):
        learner = _learner(tiny_moe, lr=lr, router_drift=asked, num_minibatches=2)
        data = GroupTrainingData.from_groups(even_groups(), num_minibatches=2, seed=0)
        learner.update(training_data=data, num_epochs=1)
        values = learner.statistics.compute(distributed=False, device="cpu")
        assert (ROUTER_DRIFT in values) == asked
        if asked:
            assert (values[ROUTER_DRIFT] > 0) == moves


def test_a_model_without_experts_is_refused_before_it_is_trained(tiny_dense):
    with pytest.raises(SettingError, match=r"training\.router_drift: Qwen3ForCausalLM has no layer that tells"):
        _learner(tiny_dense, router_drift=True)

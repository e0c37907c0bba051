"""Mixed precision: what stays float32, and that it matters."""

from __future__ import annotations

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import columns
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.errors import SettingError
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.packing import pack
from tests.episodes import make_episode
from tests.test_learner import SPACES, _config, _groups

BF16 = {"autocast_dtype": "bfloat16"}


def _learner(path, *, lr=1e-6, **model):
    config = _config(path, model={**BF16, **model}, lr=lr, old_log_probs="learner")
    return config.build_learner(spaces=SPACES)


def test_weights_gradients_and_optimiser_state_are_float32_and_take_steps_bf16_would_lose(tiny_dense):
    learner = _learner(tiny_dense)
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    data = GroupTrainingData.from_groups(_groups(), num_minibatches=1, seed=0)
    learner.update(training_data=data, num_epochs=1)
    optimizer = learner.get_optimizer(DEFAULT_MODULE_ID)
    for name, p in module.named_parameters():
        assert p.dtype == p.grad.dtype == torch.float32
        assert {optimizer.state[p][key].dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.float32}
        moved = (p - before[name]).abs().max().item()
        assert 0 < moved < 2e-6
    weight = module.model.get_input_embeddings().weight
    same_in_bf16 = weight.bfloat16() == before["model.model.embed_tokens.weight"].bfloat16()
    assert same_in_bf16.float().mean() > 0.9


@pytest.mark.parametrize("head_dtype", [None, "float32"])
def test_log_probs_are_float32_and_a_float32_head_is_exact_for_the_states_it_reads(head_dtype, tiny_dense):
    module = _learner(tiny_dense, head_dtype=head_dtype).module[DEFAULT_MODULE_ID].unwrapped()
    row = pack([token_trajectory(make_episode("g", 0, [(5, 6), (3, 7)], 1.0), advantage=1.0)])
    states = []
    handle = module.model.base_model.register_forward_hook(lambda m, i, out: states.append(out.last_hidden_state[0]))
    out = module._forward(row)
    handle.remove()
    assert out[columns.LOGP].dtype == out[columns.ENTROPY].dtype == torch.float32
    head = module.model.get_output_embeddings().weight.double()
    exact = (states[0][row[columns.LOSS_POSITIONS]].double() @ head.t()).log_softmax(-1)
    exact = exact.gather(1, row[columns.LOSS_TOKEN_IDS][:, None]).squeeze(1)
    error = (out[columns.LOGP].double() - exact).abs().max().item()
    assert error < 1e-5 if head_dtype else 1e-4 < error < 0.1


def test_another_head_precision_is_refused(tiny_dense):
    with pytest.raises(SettingError, match=r"head_dtype.*'bfloat16'; allowed: None, 'float32'"):
        _learner(tiny_dense, head_dtype="bfloat16")

"""The language model as an RLModule: scores of the plain model, and a folder that anybody loads."""

from __future__ import annotations

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import columns
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.errors import SettingError
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.packing import pack
from tests.episodes import make_episode
from tests.learners.small_learner import SPACES, bf16_learner, learner_config


def test_the_module_saves_a_folder_that_transformers_loads(tiny_moe, tmp_path):
    from transformers import AutoModelForCausalLM

    module = learner_config(tiny_moe).build_learner(spaces=SPACES).module[DEFAULT_MODULE_ID].unwrapped()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.01)
    module.save_to_path(str(tmp_path / "policy"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32)
    expected = module.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert load_tokenizer(str(tmp_path / "policy")).chat_template
    other = learner_config(tiny_moe).build_learner(spaces=SPACES).module[DEFAULT_MODULE_ID].unwrapped()
    other.restore_from_path(str(tmp_path / "policy"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.model.state_dict().items())


@pytest.mark.parametrize("head_dtype", [None, "float32"])
def test_log_probs_are_float32_and_a_float32_head_is_exact_for_the_states_it_reads(head_dtype, tiny_dense):
    module = bf16_learner(tiny_dense, head_dtype=head_dtype).module[DEFAULT_MODULE_ID].unwrapped()
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
        bf16_learner(tiny_dense, head_dtype="bfloat16")

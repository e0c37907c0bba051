"""The language model as an RLModule: scores of the plain model, and a folder that anybody loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from safetensors.torch import load_file, save_file

from gspo_rllib import columns
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.modules import loading
from gspo_rllib.modules.loading import load_causal_lm
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


def _with_weights(source: str, folder: Path, **more: torch.Tensor) -> str:
    """A copy of a model folder that holds more weights, named with __ for each dot."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    weights |= {name.replace("__", "."): tensor for name, tensor in more.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    "name",
    ["model__layers__0__self_attn__q_proj__bias", "model__layers__1__mlp__up_norm__weight", "model__norm__bias"],
)
def test_weights_of_a_part_at_work_that_the_config_has_no_place_for_are_refused(name, tiny_dense, tmp_path):
    path = _with_weights(tiny_dense, tmp_path / "model", **{name: torch.ones(8)})
    with pytest.raises(ModelError, match=f"1 weights of the folder have no place .*{name.replace('__', '[.]')}"):
        load_causal_lm(path, trust_remote_code=False)


def test_parts_beside_the_model_are_told_and_what_is_computed_is_passed_over(tiny_dense, tmp_path, caplog):
    computed = {"model__layers__0__self_attn__rotary_emb__inv_freq": torch.ones(4)}
    load_causal_lm(_with_weights(tiny_dense, tmp_path / "old", **computed), trust_remote_code=False)
    assert not [record for record in caplog.records if record.name == loading.__name__]
    further = {"v_head__summary__weight": torch.ones(4), "model__layers__9__mlp__up_proj__weight": torch.ones(4)}
    load_causal_lm(_with_weights(tiny_dense, tmp_path / "more", **further), trust_remote_code=False)
    [told] = [record.message for record in caplog.records if record.name == loading.__name__]
    assert "2 weights of the folder, model.layers.9.mlp.up_proj.weight for one" in told


def test_a_head_of_its_own_where_the_config_says_that_it_is_the_embeddings_is_refused(tiny_tied, tmp_path):
    embeddings = load_causal_lm(tiny_tied, trust_remote_code=False)[0].get_input_embeddings().weight.detach().clone()
    load_causal_lm(_with_weights(tiny_tied, tmp_path / "same", lm_head__weight=embeddings), trust_remote_code=False)
    path = _with_weights(tiny_tied, tmp_path / "other", lm_head__weight=2 * embeddings)
    with pytest.raises(ModelError, match=r"lm_head\.weight and model\.embed_tokens\.weight are one weight by"):
        load_causal_lm(path, trust_remote_code=False)

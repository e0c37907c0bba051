"""A policy scores as it samples: no dropout, no skipped layer and no router noise, whatever the model's config says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from transformers import AutoModelForCausalLM, AutoTokenizer

from gspo_rllib import columns
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.connectors.reference_log_probs import ReferenceLogProbs
from gspo_rllib.envs import UnicodeText
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.modules.recomputation import Recomputation
from gspo_rllib.modules.sampling_mode import checked_pass
from gspo_rllib.packing import pack
from tests.episodes import make_episode
from tests.modules.noisy_models import NOISY, build_noisy

FAMILY = pytest.mark.parametrize("family", NOISY)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory, tiny_dense: str) -> Callable[[str], str]:
    """The folder of a random model of a family, built once."""
    folder = tmp_path_factory.mktemp("families")
    return functools.cache(lambda family: build_noisy(family, folder, tokenizer=tiny_dense))


def _module(path: str, **model_config: Any) -> CausalLMModule:
    text = UnicodeText(100)
    spec = RLModuleSpec(
        CausalLMModule, observation_space=text, action_space=text, model_config={"path": path, **model_config}
    )
    return spec.build()


def _trajectories() -> list[Any]:
    turns = [[(5, 4), (3, 2)], [(7, 3)], [(2, 1), (4, 5)]]
    return [token_trajectory(make_episode("g", i, lengths, 1.0), advantage=1.0) for i, lengths in enumerate(turns)]


def _gradient(module: CausalLMModule) -> torch.Tensor:
    out = module.forward_train(pack(_trajectories()))
    sum(value.square().sum() for value in out.values()).backward()
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    assert len(gradients) > 10
    return torch.cat(gradients)


@FAMILY
def test_in_transformers_training_mode_the_family_disagrees_with_itself(family, folder_of):
    model = AutoModelForCausalLM.from_pretrained(folder_of(family)).train()
    ids = torch.arange(20)[None] + 40
    torch.manual_seed(1)
    passes = [model(input_ids=ids).logits.log_softmax(-1) for _ in range(4)]
    assert max((a - passes[0]).abs().max() for a in passes) > 1e-2


@FAMILY
@pytest.mark.parametrize("packing", [None, False], ids=["as loaded", "padded"])
def test_two_passes_of_the_learner_are_equal_bit_for_bit_and_score_as_the_model_samples(family, packing, folder_of):
    module = _module(folder_of(family), packing=packing, use_critic=True)
    torch.nn.init.normal_(module.critic.value_head.weight)
    row = pack(_trajectories())
    first, again = module.forward_train(row), module.forward_train(row)
    assert first.keys() == again.keys() == {columns.LOGP, columns.ENTROPY, columns.VALUES}
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first[columns.VALUES].std() > 0.0
    model = AutoModelForCausalLM.from_pretrained(folder_of(family), dtype=torch.float32)
    expected = []
    with torch.no_grad():
        for trajectory in _trajectories():
            ids = torch.as_tensor(trajectory.segments[0]).long()
            sampled = torch.as_tensor(trajectory.loss_masks[0]).nonzero()[:, 0]
            expected.append(model(input_ids=ids[None]).logits[0].log_softmax(-1)[sampled - 1, ids[sampled]])
    torch.testing.assert_close(first[columns.LOGP], torch.cat(expected), atol=1e-4, rtol=1e-4)


@FAMILY
def test_a_gradient_is_the_same_with_activations_kept_and_recomputed(family, folder_of):
    kept = _gradient(_module(folder_of(family), use_critic=True))
    module = _module(folder_of(family), use_critic=True, activation_checkpointing=True)
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    for model in (module.model, module.critic.trunk):
        next(m for m in model.modules() if "attention" in type(m).__name__.lower()).register_forward_hook(count)
    got = _gradient(module)
    assert calls == 4  # policy and critic, forwards and again backwards
    torch.testing.assert_close(got, kept, atol=1e-5 * float(kept.abs().max()), rtol=1e-5)


@FAMILY
def test_the_reference_scores_a_policy_that_is_it_as_the_policy_does(family, folder_of):
    module = _module(folder_of(family))
    piece = ReferenceLogProbs(None, None, model_config={"path": folder_of(family)}, max_tokens=10**6)
    batch = {DEFAULT_MODULE_ID: {columns.TRAJECTORIES: _trajectories()}}
    scored = piece(rl_module={DEFAULT_MODULE_ID: module}, batch=batch, episodes=[])[DEFAULT_MODULE_ID]
    reference = [torch.as_tensor(t.reference_logp) for t in scored[columns.TRAJECTORIES]]
    logp = module.forward_train(pack(_trajectories()))[columns.LOGP]
    torch.testing.assert_close(logp.detach(), torch.cat(reference), atol=1e-5, rtol=1e-5)


def test_no_call_puts_the_language_models_into_training_mode(tiny_dense):
    module = _module(tiny_dense, use_critic=True)
    for mode in (module.train(), module.eval(), module.train(True)):
        assert mode is module
        assert not any(part.training for model in (module.model, module.critic.trunk) for part in model.modules())
    assert module.training
    assert not module.eval().training


def test_dropout_cannot_be_asked_for(tiny_dense):
    with pytest.raises(SettingError, match=r"model_config\['dropout'\] is unknown"):
        _module(tiny_dense, dropout=True)


class _Shortcuts(torch.nn.Module):
    """A model that takes a shortcut in evaluation mode, as such models do in transformers and on the hub."""

    def __init__(self, shortcut: str) -> None:
        super().__init__()
        self.expert = torch.nn.Linear(4, 4)
        self.norm = torch.nn.LayerNorm(4)
        self.shortcut = shortcut
        self.eval()

    def forward(self) -> torch.Tensor:
        x = torch.ones(1, 4)
        if self.shortcut == "written weights" and not self.training:
            with torch.no_grad():
                self.expert.weight.div_(2)
        if self.shortcut == "no training mode":
            assert not self.training
        with torch.set_grad_enabled(self.shortcut == "none" or (self.training and self.shortcut != "by design")):
            x = self.expert(x)
        return self.norm(x)


@pytest.mark.parametrize(
    ("shortcut", "message"),
    [
        ("no gradient", r"_Shortcuts runs 'expert' without a gradient in evaluation mode.*would never learn"),
        ("no training mode", r"_Shortcuts runs 'expert' without a gradient in evaluation mode"),
        ("written weights", r"_Shortcuts rewrites its own weights in evaluation mode, 'expert.weight' first"),
    ],
)
def test_a_model_whose_evaluation_mode_cannot_be_trained_is_refused(shortcut, message):
    module = _Shortcuts(shortcut)
    with pytest.raises(ModelError, match=message):
        checked_pass([module], module)
    assert not module.training
    assert not module.expert._forward_pre_hooks


@pytest.mark.parametrize("shortcut", ["none", "by design"])
def test_a_part_without_a_gradient_in_either_mode_is_meant_to_be(shortcut):
    module = _Shortcuts(shortcut)
    assert checked_pass([module], module).shape == (1, 4)
    assert not any(part.training for part in module.modules())


def test_a_model_that_only_scores_may_do_so_without_a_gradient():
    module = _Shortcuts("no gradient")
    with torch.no_grad():
        assert checked_pass([module], module).shape == (1, 4)


def test_rwkv_which_rescales_its_weights_to_sample_is_refused_until_told_not_to(tiny_dense, tmp_path):
    sizes = {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2}
    config = transformers.RwkvConfig(vocab_size=320, context_length=64, rescale_every=1, **sizes)
    for rescale_every in (1, 0):
        config.rescale_every = rescale_every
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        AutoTokenizer.from_pretrained(tiny_dense).save_pretrained(tmp_path)
        if rescale_every:
            with pytest.raises(ModelError, match=r"RwkvForCausalLM rewrites its own weights.*\"rescale_every\": 0"):
                _module(str(tmp_path)).forward_train(pack(_trajectories()))
        else:
            assert _gradient(_module(str(tmp_path))).abs().max() > 0.0


def test_layers_are_found_by_what_transformers_would_not_split_where_none_can_checkpoint():
    class Layer(torch.nn.Linear):
        pass

    class Model(torch.nn.Module):
        _no_split_modules = ("Layer",)

        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(Layer(3, 3), Layer(3, 3))

    model, plain = Model(), Model()
    plain.load_state_dict(model.state_dict())
    Recomputation([model])
    x = torch.randn(2, 3)
    for each in (model, plain):
        each.layers(x).square().sum().backward()
    for got, expected in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)
    assert all("forward" in vars(layer) for layer in model.layers)
    with pytest.raises(SettingError, match=r"activation_checkpointing'\] is True, but Linear does not say"):
        Recomputation([torch.nn.Linear(2, 2)])

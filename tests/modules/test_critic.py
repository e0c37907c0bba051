"""The critic: values of the right states, gradients where they belong, and nothing of it where only the policy is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.actor_manager import ResultOrError
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GraniteConfig

from gspo_rllib import checkpoints, columns
from gspo_rllib.connectors.episodes_to_tokens import token_trajectory
from gspo_rllib.engines.protocol import EngineSpec, GenerationRequest
from gspo_rllib.engines.transformers import TransformersEngine
from gspo_rllib.envs import UnicodeText
from gspo_rllib.errors import CheckpointError, ModelError, SettingError
from gspo_rllib.modules.causal_lm import CausalLMModule
from gspo_rllib.modules.scoring import Head
from gspo_rllib.packing import pack
from gspo_rllib.types import TokenTrajectory
from gspo_rllib.weight_sync import Weights
from tests.episodes import make_episode

SHARING = pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
LAYOUTS = pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])


def _spec(path: str, **model_config: Any) -> RLModuleSpec:
    text, model_config = UnicodeText(100), {"path": path, **model_config}
    return RLModuleSpec(CausalLMModule, observation_space=text, action_space=text, model_config=model_config)


def _module(path: str, *, shared: bool = False, trained: bool = True, **model_config: Any) -> CausalLMModule:
    """A module with a critic; a trained one's value head is no longer zero."""
    module = _spec(path, use_critic=True, vf_share_layers=shared, **model_config).build()
    if trained:
        with torch.no_grad():
            weight, bias = module.critic.value_head.parameters()
            weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
            bias.fill_(0.25)
    return module


def _trajectory(name: str = "g", turns: tuple[tuple[int, int], ...] = ((5, 4), (3, 2))) -> TokenTrajectory:
    return token_trajectory(make_episode(name, 0, list(turns), 1.0), advantage=1.0)


def _row() -> dict[str, Any]:
    return pack([_trajectory("a"), _trajectory("b", ((7, 3),)), _trajectory("c", ((2, 1), (4, 5)))])


@torch.no_grad()
def _values(module: CausalLMModule, row: dict[str, Any]) -> torch.Tensor:
    return module._forward_train(row)[columns.VALUES]


@pytest.fixture(scope="module")
def tiny_scaled(tmp_path_factory: pytest.TempPathFactory, tiny_dense: str) -> str:
    """Folder of a random Granite: its logits are scaled behind the head, so the head cannot be run by chunks."""
    folder = str(tmp_path_factory.mktemp("granite"))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = GraniteConfig(vocab_size=320, logits_scaling=4.0, initializer_range=0.3, **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_dense).save_pretrained(folder)
    return folder


@SHARING
def test_an_untrained_critic_says_zero_for_every_sampled_token(tiny_dense: str, shared: bool) -> None:
    module = _module(tiny_dense, shared=shared, trained=False)
    row = _row()
    out = module._forward_train(row)
    assert out[columns.VALUES].dtype == torch.float32
    assert out[columns.VALUES].shape == out[columns.LOGP].shape == row[columns.LOSS_TOKEN_IDS].shape
    assert torch.equal(out[columns.VALUES], torch.zeros(len(row[columns.LOSS_TOKEN_IDS])))


@SHARING
@LAYOUTS
@pytest.mark.parametrize("model", ["tiny_dense", "tiny_tied", "tiny_moe", "tiny_scaled"])
def test_a_value_is_read_from_the_state_before_its_token(
    model: str, packing: bool, shared: bool, request: pytest.FixtureRequest
) -> None:
    """Against Hugging Face's own base model, one trajectory at a time, with its own attention."""
    path = request.getfixturevalue(model)
    module = _module(path, shared=shared, packing=packing)
    weight, bias = module.critic.value_head.parameters()
    base = AutoModel.from_pretrained(path, dtype=torch.float32)
    trajectories = [_trajectory("a"), _trajectory("b", ((7, 3),)), _trajectory("c", ((2, 1), (4, 5)))]
    expected = []
    with torch.no_grad():
        for trajectory in trajectories:
            hidden = base(torch.as_tensor(trajectory.segments[0]).long()[None]).last_hidden_state[0]
            expected.append(hidden[np.flatnonzero(trajectory.loss_masks[0]) - 1] @ weight[0] + bias)
    got = _values(module, pack(trajectories))
    assert got.std() > 0.1
    torch.testing.assert_close(got, torch.cat(expected), atol=2e-4, rtol=1e-4)


@SHARING
@LAYOUTS
@pytest.mark.parametrize("model", ["tiny_dense", "tiny_scaled"])
def test_values_asked_for_alone_are_those_of_the_forward_pass(
    model: str, packing: bool, shared: bool, request: pytest.FixtureRequest
) -> None:
    module = _module(request.getfixturevalue(model), shared=shared, packing=packing)
    assert (module.scoring.head is Head.SPLIT) is (model == "tiny_dense")
    row = _row()
    called: list[str] = []
    module.model.get_output_embeddings().register_forward_hook(lambda *_: called.append("head"))
    module.model.base_model.register_forward_hook(lambda *_: called.append("trunk"))
    with torch.no_grad():
        alone = module.compute_values(row)
    assert called == (["trunk"] if shared else [])
    torch.testing.assert_close(alone, _values(module, row), atol=1e-6, rtol=1e-6)
    known = torch.randn(3, module.critic.value_head.in_features)
    assert module.compute_values(row, embeddings=known).shape == (3,)


@pytest.mark.parametrize("model", ["tiny_dense", "tiny_scaled"])
@SHARING
def test_a_critic_changes_no_score(model: str, shared: bool, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    row = _row()
    with torch.no_grad():
        plain = _spec(path).build()._forward_train(row)
        out = _module(path, shared=shared)._forward_train(row)
    assert set(out) == {*plain, columns.VALUES}
    assert torch.equal(out[columns.LOGP], plain[columns.LOGP])
    assert torch.equal(out[columns.ENTROPY], plain[columns.ENTROPY])


@SHARING
@LAYOUTS
def test_values_do_not_move_when_the_neighbours_in_a_row_change(tiny_dense: str, packing: bool, shared: bool) -> None:
    module = _module(tiny_dense, shared=shared, packing=packing)
    mine = _trajectory("mine")
    alone = _values(module, pack([mine]))
    together = _values(module, pack([_trajectory("x", ((9, 2),)), mine, _trajectory("y", ((1, 6),))]))
    torch.testing.assert_close(together[2 : 2 + len(alone)], alone, atol=1e-5, rtol=1e-5)


@SHARING
@LAYOUTS
def test_a_value_sees_neither_its_token_nor_what_follows(tiny_dense: str, packing: bool, shared: bool) -> None:
    module = _module(tiny_dense, shared=shared, packing=packing)
    row = pack([_trajectory()])
    before = _values(module, row)
    changed = 2
    place = int(row[columns.LOSS_POSITIONS][changed]) + 1
    row[columns.TOKEN_IDS][place] = (row[columns.TOKEN_IDS][place] + 1) % 256
    after = _values(module, row)
    torch.testing.assert_close(after[: changed + 1], before[: changed + 1], atol=1e-6, rtol=1e-6)
    assert ((after - before)[changed + 1 :].abs() > 1e-3).all()


def test_value_gradients_stay_out_of_a_policy_with_its_own_layers(tiny_dense: str) -> None:
    module = _module(tiny_dense)
    module._forward_train(_row())[columns.VALUES].sum().backward()
    assert all(p.grad is None for p in module.policy_parameters())
    assert all(p.grad.abs().max() > 0 for p in module.critic_parameters())


def test_value_gradients_reach_the_layers_that_are_shared(tiny_dense: str) -> None:
    module = _module(tiny_dense, shared=True)
    module._forward_train(_row())[columns.VALUES].sum().backward()
    assert all(p.grad.abs().max() > 0 for p in module.model.base_model.parameters())
    assert module.model.lm_head.weight.grad is None
    assert all(p.grad.abs().max() > 0 for p in module.critic_parameters())


@SHARING
@pytest.mark.parametrize("model", ["tiny_dense", "tiny_tied", "tiny_scaled"])
def test_one_forward_pass_gives_every_parameter_a_gradient(
    model: str, shared: bool, request: pytest.FixtureRequest
) -> None:
    """Else gradients could not be exchanged between learners; true from the first step on, when all values are 0."""
    module = _module(request.getfixturevalue(model), shared=shared, trained=False)
    out = module._forward_train(_row())
    (out[columns.LOGP].sum() + out[columns.VALUES].sum()).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


@LAYOUTS
@pytest.mark.parametrize("model", ["tiny_dense", "tiny_scaled"])
def test_the_entropy_beside_the_values_has_its_gradient_whatever_the_head(
    model: str, packing: bool, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(model)
    module = _module(path, shared=True, packing=packing, temperature=0.7)
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    trajectory = _trajectory()
    module._forward_train(pack([trajectory]))[columns.ENTROPY].sum().backward()
    logits = plain(torch.as_tensor(trajectory.segments[0]).long()[None]).logits[0] / 0.7
    states = np.flatnonzero(trajectory.loss_masks[0]) - 1
    torch.distributions.Categorical(logits=logits[states]).entropy().sum().backward()
    for got, expected in zip(module.policy_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, atol=1e-3, rtol=1e-3)


@SHARING
def test_every_parameter_is_the_policys_or_the_critics(tiny_tied: str, shared: bool) -> None:
    module = _module(tiny_tied, shared=shared)
    mine = {id(p) for p in module.policy_parameters()}
    critics = {id(p) for p in module.critic_parameters()}
    assert not mine & critics
    assert mine | critics == {id(p) for p in module.parameters()}
    assert mine == {id(p) for p in module.model.parameters()}
    assert (len(critics) == 2) is shared


@SHARING
def test_activation_checkpointing_gives_the_critic_the_same_gradient(tiny_dense: str, shared: bool) -> None:
    def gradient(**model_config: Any) -> list[torch.Tensor]:
        module = _module(tiny_dense, shared=shared, **model_config)
        trunk, calls = module.model.base_model if shared else module.critic.trunk, []
        trunk.layers[0].self_attn.register_forward_hook(lambda *_: calls.append("layer"))
        module.compute_values(_row()).square().sum().backward()
        assert len(calls) == (2 if model_config else 1)
        return [p.grad for p in [*trunk.parameters(), *module.critic.value_head.parameters()]]

    for got, expected in zip(gradient(activation_checkpointing=True), gradient(), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@SHARING
@pytest.mark.parametrize("model", ["tiny_dense", "tiny_scaled"])
def test_values_are_float32_and_nearly_the_same_under_bfloat16(
    model: str, shared: bool, request: pytest.FixtureRequest
) -> None:
    path, row = request.getfixturevalue(model), _row()
    exact = _values(_module(path, shared=shared), row)
    module = _module(path, shared=shared, autocast_dtype="bfloat16")
    half = _values(module, row)
    assert half.dtype == module.compute_values(row).dtype == torch.float32
    assert not torch.equal(half, exact)
    assert torch.corrcoef(torch.stack([half, exact]))[0, 1] > 0.99


@SHARING
def test_what_engines_are_sent_is_the_policy_and_nothing_else(tiny_dense: str, shared: bool) -> None:
    spec = _spec(tiny_dense, use_critic=True, vf_share_layers=shared)
    modules = MultiRLModuleSpec(rl_module_specs={DEFAULT_MODULE_ID: spec}).build()
    module = modules[DEFAULT_MODULE_ID]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)

    learner = SimpleNamespace(
        module=modules, config=SimpleNamespace(num_learners=0, num_env_runners=0), _weights_seq_no=3
    )
    learners = SimpleNamespace(
        is_local=True, foreach_learner=lambda take, remote_actor_ids: [ResultOrError(result=take(learner))]
    )
    received: list[dict[str, np.ndarray]] = []
    runner = SimpleNamespace(
        worker_index=0,
        set_weights=lambda named, version, force: received.append(named) or version,
        converse=lambda conversation: None,
    )
    runners = SimpleNamespace(
        num_remote_env_runners=lambda: 0, foreach_env_runner=lambda load, local_env_runner: [load(runner)]
    )
    Weights(learners).push(runners)
    assert received[0].keys() == AutoModelForCausalLM.from_pretrained(tiny_dense).state_dict().keys()

    engine = TransformersEngine(EngineSpec("transformers", tiny_dense, "float32", 64, 4, ()))
    engine.load_weights(received[0], 3)
    prompt = [5, 9, 200, 31]
    engine.submit(GenerationRequest("0", prompt, 5, 1.0, 0))
    done = []
    while engine.has_work():
        done += engine.step()
    ids = torch.tensor(prompt + done[0].token_ids)
    with torch.no_grad():
        logits = module.model(ids[None], segment_lengths=[len(ids)]).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, ids[len(prompt) :, None]).squeeze(1)
    np.testing.assert_allclose(done[0].logp, expected.numpy(), atol=1e-4)


@SHARING
def test_the_inference_only_state_has_the_names_of_a_module_without_a_critic(tiny_dense: str, shared: bool) -> None:
    module, plain = _module(tiny_dense, shared=shared), _spec(tiny_dense).build()
    assert isinstance(module, InferenceOnlyAPI)
    assert isinstance(module, ValueFunctionAPI)
    assert module.get_state(inference_only=True).keys() == plain.get_state().keys()
    assert any(name.startswith("critic.") for name in module.get_state())
    spec = _spec(tiny_dense, use_critic=True, vf_share_layers=shared)
    spec.inference_only = True
    sampler = spec.build()
    assert sampler.state_dict().keys() == plain.state_dict().keys()
    sampler.set_state(module.get_state(inference_only=True))
    assert set(sampler._forward_train(_row())) == {columns.LOGP, columns.ENTROPY}


def test_without_a_critic_a_module_is_its_language_model(tiny_dense: str) -> None:
    module = _spec(tiny_dense, vf_share_layers=True).build()
    expected = AutoModelForCausalLM.from_pretrained(tiny_dense, dtype=torch.float32).state_dict()
    assert module.state_dict().keys() == {f"model.{name}" for name in expected}
    assert module.get_state().keys() == module.get_state(inference_only=True).keys() == module.state_dict().keys()
    assert module.get_non_inference_attributes() == module.critic_parameters() == []
    assert columns.VALUES not in module._forward_train(_row())
    with pytest.raises(SettingError, match="this algorithm has no critic"):
        module.compute_values(_row())


def test_what_the_algorithm_decides_is_no_setting_of_the_model(tiny_dense: str) -> None:
    from gspo_rllib.modules.model_config import check_model_config

    with pytest.raises(SettingError, match=r"use_critic.*unknown"):
        check_model_config({"path": tiny_dense, "use_critic": True})
    with pytest.raises(SettingError, match=r"vf_share_layers'\] is 'yes'; allowed: True, False"):
        check_model_config({"path": tiny_dense, "vf_share_layers": "yes"})


def _shaken(module: CausalLMModule) -> CausalLMModule:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module


@SHARING
@pytest.mark.parametrize("model", ["tiny_tied", "tiny_moe"])
def test_a_saved_critic_comes_back(model: str, shared: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    module = _shaken(_module(path, shared=shared))
    folder = module.save_to_path(str(tmp_path / "policy"))
    other = _module(path, shared=shared, trained=False)
    other.restore_from_path(folder)
    expected = module.state_dict()
    assert other.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())
    assert torch.equal(_values(other, _row()), _values(module, _row()))


@SHARING
def test_the_saved_folder_is_still_the_policys(tiny_dense: str, shared: bool, tmp_path: Path) -> None:
    module = _shaken(_module(tiny_dense, shared=shared))
    folder = module.save_to_path(str(tmp_path / "policy"))
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert loaded.keys() == module.model.state_dict().keys()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in module.model.state_dict().items())
    # vLLM takes every such file in the folder for a part of the model.
    names: set[str] = set()
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names.update(tensors.keys())
    assert names == loaded.keys()
    assert not [file for file in Path(folder, "critic").iterdir() if file.suffix != ".safetensors"]
    plain = _spec(tiny_dense).build()
    plain.restore_from_path(folder)
    assert torch.equal(plain.model.lm_head.weight, module.model.lm_head.weight)
    # A new run on the trained policy starts its critic afresh.
    assert torch.equal(_values(_module(folder, shared=shared, trained=False), _row()), torch.zeros(15))


def test_a_checkpoint_with_a_critic_but_no_policy_is_refused(tiny_dense: str, tmp_path: Path) -> None:
    folder = Path(_module(tiny_dense).save_to_path(str(tmp_path / checkpoints.POLICY)))
    checkpoints.write_manifest(tmp_path)
    assert "critic/critic.safetensors" in (tmp_path / checkpoints.MANIFEST).read_text()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="did not write the policy's weights"):
        checkpoints.write_manifest(tmp_path)


def test_restoring_a_critic_that_was_never_saved_says_so_and_changes_nothing(tiny_dense: str, tmp_path: Path) -> None:
    folder = _shaken(_spec(tiny_dense).build()).save_to_path(str(tmp_path / "policy"))
    module = _module(tiny_dense)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ModelError, match=r"no critic/critic\.safetensors.*model_config\['path'\]"):
        module.restore_from_path(folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@SHARING
def test_restoring_another_kind_of_critic_names_the_setting(tiny_dense: str, shared: bool, tmp_path: Path) -> None:
    folder = _module(tiny_dense, shared=not shared).save_to_path(str(tmp_path / "policy"))
    with pytest.raises(ModelError, match="vf_share_layers"):
        _module(tiny_dense, shared=shared).restore_from_path(folder)


def test_restoring_a_damaged_critic_names_the_file(tiny_dense: str, tmp_path: Path) -> None:
    folder = _module(tiny_dense).save_to_path(str(tmp_path / "policy"))
    (Path(folder) / "critic" / "critic.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(ModelError, match=r"critic\.safetensors.*damaged"):
        _module(tiny_dense).restore_from_path(folder)

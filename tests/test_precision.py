"""bfloat16 as one setting: who computes in it, how exact it is, and what stays float32."""

from __future__ import annotations

import copy
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from transformers import AutoModelForCausalLM

from gspo_rllib import columns, precision
from gspo_rllib.checkpoints.components import restore_component, save_component
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.env_runners.engine_spec import engine_spec
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import ArgumentError, SettingError
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.modules.own_attention import own_attention
from gspo_rllib.packing import pack
from tests.learners.small_learner import SPACES, even_groups, learner_config
from tests.modules.adapted_policies import LORA, build, move

BF16 = {"precision": "bfloat16"}


# -- one setting


@pytest.mark.parametrize(
    ("model", "generation", "learner", "engine", "sync"),
    [
        ({}, {}, "float32", "float32", "float32"),
        (BF16, {}, "bfloat16", "bfloat16", "bfloat16"),
        (BF16, {"engine_dtype": "float32"}, "bfloat16", "float32", "float32"),
        ({"autocast_dtype": "bfloat16"}, {}, "bfloat16", "float32", "float32"),
        ({}, {"engine_dtype": "bfloat16"}, "float32", "bfloat16", "bfloat16"),
        ({}, {"sync_dtype": "bfloat16"}, "float32", "float32", "bfloat16"),
        (BF16, {"sync_dtype": "float32"}, "bfloat16", "bfloat16", "float32"),
    ],
)
def test_one_setting_decides_and_each_side_may_differ(
    model: dict[str, Any], generation: dict[str, Any], learner: str, engine: str, sync: str, tiny_dense: str
) -> None:
    config = learner_config(tiny_dense, model=model).generation(**generation)
    config.validate()
    settings, given = GenerationSettings.of(config), config.model_config
    spec = engine_spec(settings, given, max_num_seqs=2, run_seed=0, stop_token_ids=(0,), worker_index=0)
    assert (precision.learner_dtype(given), spec.dtype, precision.sync_dtype(config, given)) == (learner, engine, sync)
    assert config.recompute_old_log_probs == ("bfloat16" in (learner, engine, sync))


@pytest.mark.parametrize("value", ["bf16", "float16", "mixed", torch.bfloat16, True, 16, None])
def test_what_is_no_precision_is_refused(value: Any, tiny_dense: str) -> None:
    with pytest.raises(SettingError, match=r"'precision'\] is .*allowed: 'float32', 'bfloat16'"):
        learner_config(tiny_dense, model={"precision": value}).validate()


def test_it_is_found_where_others_look_for_it(tiny_dense: str) -> None:
    config = learner_config(tiny_dense)
    for builder, word in ((config.generation, "dtype"), (config.training, "bf16"), (config.generation, "precision")):
        with pytest.raises(ArgumentError, match=r"Use rl_module\(model_config=\{'precision': 'bfloat16'\}\)"):
            builder(**{word: "bfloat16"})
    with pytest.raises(SettingError, match=r"generation.sync_dtype is 'fp8'; allowed: 'float32', 'bfloat16'"):
        learner_config(tiny_dense).generation(sync_dtype="fp8").validate()


# -- forward and gradient


POLICIES: dict[str, tuple[str, Any]] = {
    "dense": ("tiny_dense", None),
    "tied": ("tiny_tied", None),
    "mixture": ("tiny_moe", None),
    "adapter": ("tiny_dense", LORA["tiny_dense"]),
}


LEEWAY = {"dense": 1.0, "tied": 1.0, "mixture": 2.0, "adapter": 1.2}
"""By policy, how many times the error of transformers' model. A router in a mixture may pick another expert."""


def _trajectories() -> list[Any]:
    return [token_trajectory(e, advantage=1.0) for group in even_groups(2) for e in group.episodes]


def _weights(trajectory: Any) -> torch.Tensor:
    return torch.linspace(0.5, 1.5, trajectory.num_loss_tokens)


def _ours(module: CausalLMModule, rows: list[list[Any]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities, and the gradient of their weighted sum."""
    module.zero_grad()
    logp_L = torch.cat([module.forward_train(pack(row))[columns.LOGP] for row in rows])
    (logp_L * torch.cat([_weights(t) for row in rows for t in row])).sum().backward()
    return logp_L.detach(), _gradient(module.model)


def _plain(module: CausalLMModule, dtype: torch.dtype, *, autocast: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Likewise from transformers' own model: one trajectory at a time, its own attention, all of its logits."""
    model = copy.deepcopy(module.model).to(dtype)
    model.zero_grad()
    scored = []
    with own_attention(model):
        for trajectory in _trajectories():
            ids = torch.as_tensor(trajectory.segments[0]).long()
            sampled = np.flatnonzero(trajectory.loss_masks[0])
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = model(input_ids=ids[None], use_cache=False).logits[0, sampled - 1]
            logp_L = logits.float().log_softmax(-1).gather(1, ids[sampled][:, None]).squeeze(1)
            (logp_L * _weights(trajectory)).sum().backward()
            scored.append(logp_L.detach())
    return torch.cat(scored), _gradient(model)


def _gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_pass_in_bfloat16_is_as_near_to_float32_as_transformers_own(
    policy: str, request: pytest.FixtureRequest
) -> None:
    """Forward and backward, packed or not: within what the casts of transformers' own model in bfloat16 cost."""
    name, lora = POLICIES[policy]
    module = build(request.getfixturevalue(name), lora, **BF16)
    if lora:
        move(module)
    exact, short = _plain(module, torch.float32), _plain(module, torch.bfloat16)
    same = _plain(module, torch.float32, autocast=True)
    for rows in ([[t] for t in _trajectories()], [_trajectories()]):
        for got, right, casts, rounded in zip(_ours(module, rows), exact, same, short, strict=True):
            assert got.dtype == torch.float32
            bound = _error(rounded, right)
            assert bound > 1e-4 and 1e-4 < _error(got, right) <= LEEWAY[policy] * bound
            # The same casts but for the head's, and sums in another order.
            assert _error(got, casts) <= LEEWAY[policy] * bound


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_recomputed_in_bfloat16_is_bit_for_bit_what_was_computed(
    policy: str, request: pytest.FixtureRequest
) -> None:
    name, lora = POLICIES[policy]
    path, rows = request.getfixturevalue(name), [_trajectories()]
    made = [build(path, lora, **BF16, **settings) for settings in ({}, {"activation_checkpointing": True})]
    limited = build(path, lora, **BF16, max_activation_gb=1e-9)
    for module in (*made, limited):
        move(module)
    (logp_L, gradient), (again_L, recomputed) = (_ours(module, rows) for module in made)
    assert torch.equal(logp_L, again_L) and torch.equal(gradient, recomputed)
    # Some tokens at a time: a matrix's gradient is added up in another order.
    assert _error(_ours(limited, rows)[1], gradient) < 0.01


# -- float32 master weights


def _learner(path: str, **training: Any) -> Any:
    config = learner_config(path, model=BF16, old_log_probs="learner", **training)
    return config.build_learner(spaces=SPACES)


def _update(learner: Any, seed: int = 0) -> None:
    data = GroupTrainingData.from_groups(even_groups(), num_minibatches=1, seed=seed)
    learner.update(training_data=data, num_epochs=1)


def _module(learner: Any) -> CausalLMModule:
    module: CausalLMModule = learner.module[DEFAULT_MODULE_ID].unwrapped()
    return module


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_steps_that_bfloat16_cannot_hold_add_up(kept: str, tiny_dense: str) -> None:
    """And would not where weights were kept in bfloat16, which is why they are not."""
    learner = _learner(tiny_dense, lr=1e-6)
    weights = [p for p in _module(learner).policy_parameters() if p.dim() >= 2]
    with torch.no_grad():
        for weight in weights:
            weight.copy_(weight.bfloat16())
    before = [weight.detach().clone() for weight in weights]
    for _ in range(10):
        _update(learner)
        if kept == "bfloat16":
            with torch.no_grad():
                for weight in weights:
                    weight.copy_(weight.bfloat16())
    large = [old.abs() > 1e-3 for old in before]
    moved = torch.cat([(w.detach() - old)[at].abs() for w, old, at in zip(weights, before, large, strict=True)])
    share = float((moved > 5e-6).float().mean())
    assert share < 0.02 if kept == "bfloat16" else share > 0.5


def test_a_restored_learner_goes_on_bit_by_bit(tiny_dense: str, tmp_path: pathlib.Path) -> None:
    learner, other = _learner(tiny_dense, lr=1e-3), _learner(tiny_dense, lr=1e-3)
    _update(learner)
    save_component(learner, tmp_path)
    restore_component(other, tmp_path)
    for each in (learner, other):
        _update(each, seed=1)
    states = [_module(each).state_dict() for each in (learner, other)]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    fresh = _module(_learner(tiny_dense, lr=1e-3)).state_dict()
    assert not all(torch.equal(tensor, fresh[name]) for name, tensor in states[0].items())


def test_what_is_saved_is_what_was_trained(tiny_dense: str, tmp_path: pathlib.Path) -> None:
    learner = _learner(tiny_dense, lr=1e-3)
    _update(learner)
    _module(learner).save_to_path(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").state_dict()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in _module(learner).model.state_dict().items())
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@pytest.mark.parametrize("training", [{}, {"kl_coeff": 0.1}])
def test_before_the_first_step_the_ratio_is_one_and_the_reference_is_the_policy(
    training: dict[str, Any], tiny_dense: str
) -> None:
    learner = _learner(tiny_dense, **training)
    data = GroupTrainingData.from_groups(even_groups(), num_minibatches=1, seed=0)
    results = learner.update(training_data=data, num_epochs=1)[DEFAULT_MODULE_ID]
    assert float(results["ratio_mean"].peek()) == pytest.approx(1.0, abs=1e-6)
    if training:
        assert abs(float(results["kl_to_reference"].peek())) < 1e-6


def test_old_log_probs_of_the_learners_own_have_no_noise_in_any_minibatch(tiny_dense: str) -> None:
    """They are of the same rows as the passes they are compared with; these steps are too small to move a weight."""
    learner = _learner(tiny_dense, lr=1e-15, num_minibatches=2, group_size=2)
    data = GroupTrainingData.from_groups(even_groups(), num_minibatches=2, seed=0)
    results = learner.update(training_data=data, num_epochs=1)[DEFAULT_MODULE_ID]
    assert float(results["num_optimizer_steps"].peek()) == 2
    assert float(results["abs_log_ratio_mean"].peek()) == 0.0
    assert float(results["sequence_gap_mean"].peek()) > 0

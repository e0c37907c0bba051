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
    with pytest.raises(SettingError, match=r"generation.sync_dtype is 'fp8'; allowed: None, 'float32', 'bfloat16'"):
        learner_config(tiny_dense).generation(sync_dtype="fp8").validate()


# -- forward and gradient


POLICIES: dict[str, tuple[str, Any]] = {
    "dense": ("tiny_dense", None),
    "tied": ("tiny_tied", None),
    "mixture": ("tiny_moe", None),
    "adapter": ("tiny_dense", LORA["tiny_dense"]),
}


def _trajectories() -> list[Any]:
    return [token_trajectory(e, advantage=1.0) for group in even_groups(2) for e in group.episodes]


def _score(module: CausalLMModule, rows: list[list[Any]]) -> torch.Tensor:
    return torch.cat([module.forward_train(pack(row))[columns.LOGP] for row in rows])


def _plain(model: Any, dtype: torch.dtype, *, autocast: bool) -> torch.Tensor:
    """What transformers' own model gives each sampled token: one trajectory at a time, all of its logits."""
    scored = []
    model = model.to(dtype)
    for trajectory in _trajectories():
        ids = torch.as_tensor(trajectory.segments[0]).long()
        sampled = np.flatnonzero(trajectory.loss_masks[0])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=ids[None], use_cache=False).logits[0, sampled - 1]
        logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        scored.append(logp.gather(1, ids[sampled][:, None]).squeeze(1))
    return torch.cat(scored)


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).square().mean().sqrt())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_forward_pass_is_as_near_to_float64_as_transformers_own_in_bfloat16(
    policy: str, request: pytest.FixtureRequest
) -> None:
    name, lora = POLICIES[policy]
    path = request.getfixturevalue(name)
    module = build(path, lora, **BF16)
    if lora:
        move(module)
    ours = _score(module, [[t] for t in _trajectories()]).detach()
    packed = _score(module, [_trajectories()]).detach()
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    plain.load_state_dict(module.adapter.merged_state() if module.adapter else module.model.state_dict())
    same = _plain(copy.deepcopy(plain), torch.float32, autocast=True)
    short, exact = (
        _plain(copy.deepcopy(plain), torch.bfloat16, autocast=False),
        _plain(plain, torch.float64, autocast=False),
    )
    assert ours.dtype == torch.float32
    noise = _error(short, exact)
    assert noise > 1e-4
    # The same casts, then a head of ours: sums in another order, nothing else. An adapter is merged there.
    assert _error(ours, same) <= noise
    assert _error(ours, exact) <= noise and _error(packed, exact) <= noise


def _gradient(module: CausalLMModule, rows: list[list[Any]]) -> torch.Tensor:
    module.zero_grad()
    (
        _score(module, rows) * torch.cat([torch.linspace(0.5, 1.5, t.num_loss_tokens) for r in rows for t in r])
    ).sum().backward()
    return torch.cat([p.grad.flatten() for p in module.policy_parameters() if p.grad is not None])


def _distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_gradient_in_bfloat16_is_within_two_per_cent_and_the_same_however_it_is_recomputed(
    policy: str, request: pytest.FixtureRequest
) -> None:
    name, lora = POLICIES[policy]
    path, rows = request.getfixturevalue(name), [_trajectories()]
    made = {
        key: build(path, lora, **settings)
        for key, settings in {
            "float32": {}, "bfloat16": BF16, "recomputed": {**BF16, "activation_checkpointing": True},
            "limited": {**BF16, "max_activation_gb": 1e-9}, "rows": {**BF16, "packing": False},
        }.items()
    }  # fmt: skip
    for module in made.values():
        if lora:
            move(module)
    exact = _gradient(made["float32"], rows)
    got = _gradient(made["bfloat16"], rows)
    assert got.dtype == torch.float32 and 1e-4 < _distance(got, exact) < 0.02
    assert torch.equal(_gradient(made["recomputed"], rows), got)
    assert _distance(_gradient(made["limited"], rows), got) < 0.01
    assert _distance(_gradient(made["rows"], rows), exact) < 0.02


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

"""The learner: one gradient, however the same trajectories are packed, split, padded or spread over ranks.

And one optimiser, however often it is saved and restored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from gspo_rllib import columns
from gspo_rllib.algorithms import LanguagePPOConfig
from gspo_rllib.connectors import token_trajectory
from gspo_rllib.errors import ModelError
from gspo_rllib.learners.language_learner import LR_TIMESTEP
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.packing import pack, plan_rows
from gspo_rllib.types import group_episodes
from tests.episodes import make_episode
from tests.learners.objectives import objective_config
from tests.learners.small_learner import SPACES, bf16_learner, even_groups, learner_config


def _gradient(config, groups=None, *, num_minibatches=1):
    """Gradient of the last minibatch, by parameter name."""
    learner = config.build_learner(spaces=SPACES)
    data = GroupTrainingData.from_groups(groups or even_groups(), num_minibatches=num_minibatches, seed=0)
    learner.update(training_data=data, num_epochs=1)
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def _assert_same(got, expected, tolerance=1e-5):
    assert got.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 1e-4
    for name, gradient in expected.items():
        torch.testing.assert_close(
            got[name], gradient, rtol=1e-4, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def _distance(got, expected):
    """How far a whole gradient is from another, as a share of that one's norm."""
    apart = sum(float((got[name].double() - gradient).square().sum()) for name, gradient in expected.items())
    whole = sum(float(gradient.double().square().sum()) for gradient in expected.values())
    return float((apart / whole) ** 0.5)


@pytest.fixture(scope="module")
def reference(tiny_dense):
    return _gradient(learner_config(tiny_dense, old_log_probs="learner"))


def test_five_micro_batches_give_the_gradient_of_one(tiny_dense, reference):
    config = learner_config(tiny_dense, old_log_probs="learner", max_tokens_per_micro_batch=80)
    tokens = [token_trajectory(e, advantage=1.0).num_tokens for g in even_groups() for e in g.episodes]
    assert len(plan_rows(tokens, 80)) >= 5
    _assert_same(_gradient(config), reference)


def test_padded_rows_give_the_gradient_of_packed_ones(tiny_dense, reference):
    _assert_same(_gradient(learner_config(tiny_dense, old_log_probs="learner", model={"packing": False})), reference)


def test_activation_checkpointing_gives_the_same_gradient(tiny_dense, reference):
    config = learner_config(tiny_dense, old_log_probs="learner", model={"activation_checkpointing": True})
    _assert_same(_gradient(config), reference)


def test_bf16_autocast_gives_nearly_the_same_gradient(tiny_dense, reference):
    got = _gradient(learner_config(tiny_dense, old_log_probs="learner", model={"autocast_dtype": "bfloat16"}))
    a = torch.cat([g.flatten() for g in got.values()])
    b = torch.cat([g.flatten() for g in reference.values()])
    assert a.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99
    assert not torch.equal(a, b)


@pytest.mark.parametrize("model", ["tiny_tied", "tiny_moe"])
def test_micro_batches_and_padding_agree_on_tied_and_mixture_models_too(model, request):
    path = request.getfixturevalue(model)
    expected = _gradient(learner_config(path, old_log_probs="learner"))
    config = learner_config(path, old_log_probs="learner", max_tokens_per_micro_batch=80, model={"packing": False})
    _assert_same(_gradient(config), expected)


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_one(tiny_dense, reference, ray_local):
    from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

    config = learner_config(tiny_dense, old_log_probs="learner", num_learners=2)
    spec: MultiRLModuleSpec = config.get_multi_rl_module_spec(spaces=SPACES)
    group = config.build_learner_group(rl_module_spec=spec)
    try:
        # Five groups do not split evenly, so the ranks' shares differ in size.
        data = GroupTrainingData.from_groups(even_groups(4), num_minibatches=1, seed=0)
        group.update(training_data=data, num_epochs=1)
        results = group.foreach_learner(
            lambda learner: {
                name: p.grad.clone() for name, p in learner.module[DEFAULT_MODULE_ID].unwrapped().named_parameters()
            }
        )
        gradients = [result.get() for result in results]
        assert len(gradients) == 2
        for gradient in gradients:
            _assert_same(gradient, reference)
            assert _distance(gradient, reference) <= 1e-6
        # One group: a rank has nothing to train on, and must neither hang nor change the result.
        one = GroupTrainingData.from_groups(even_groups(1), num_minibatches=1, seed=0)
        reports = group.update(training_data=one, num_epochs=1)
        assert [r[DEFAULT_MODULE_ID]["num_trajectories"].peek() for r in reports] == [4.0, 4.0]
    finally:
        group.shutdown()


@pytest.mark.slow
def test_what_is_not_finite_on_one_rank_skips_the_step_on_both(tiny_dense, ray_local):
    def weights(learner):
        module = learner.module[DEFAULT_MODULE_ID].unwrapped()
        return {name: p.detach().clone() for name, p in module.named_parameters()}

    config = learner_config(tiny_dense, old_log_probs="engine", num_learners=2, lr=1e-3)
    group = config.build_learner_group(rl_module_spec=config.get_multi_rl_module_spec(spaces=SPACES))
    try:
        before = group.foreach_learner(weights).result_or_errors[0].get()
        for skips in (True, False):
            groups = even_groups(4)
            if skips:
                # Of one trajectory, which one rank has.
                turn = groups[1].episodes[0].get_extra_model_outputs("turn")[0]
                turn.action_logp[:] = np.nan
            data = GroupTrainingData.from_groups(groups, num_minibatches=1, seed=0)
            reports = group.update(training_data=data, num_epochs=1)
            skipped = [report[DEFAULT_MODULE_ID]["num_optimizer_steps_skipped"].peek() for report in reports]
            assert skipped == [float(skips)] * 2
            first, second = (result.get() for result in group.foreach_learner(weights))
            assert all(torch.equal(first[name], second[name]) for name in before)
            assert all(torch.equal(first[name], before[name]) for name in before) == skips
            assert all(bool(torch.isfinite(tensor).all()) for tensor in first.values())
    finally:
        group.shutdown()


def test_a_trajectory_never_attends_to_its_neighbour_in_a_row(tiny_dense):
    """Scores of a trajectory do not move when the others in its row change."""
    module = learner_config(tiny_dense).build_learner(spaces=SPACES).module[DEFAULT_MODULE_ID].unwrapped()
    episodes = [make_episode("g", i, [(5, 4), (3, 2)], 1.0) for i in range(3)]
    others = [make_episode("h", i, [(7, 1)], 1.0) for i in range(2)]
    first = token_trajectory(episodes[1], advantage=1.0)
    with torch.no_grad():
        alone = module._forward_train(pack([first]))[columns.LOGP]
        row = [token_trajectory(others[0], advantage=0.0), first, token_trajectory(others[1], advantage=0.0)]
        together = module._forward_train(pack(row))[columns.LOGP]
    torch.testing.assert_close(together[1 : 1 + len(alone)], alone, atol=1e-6, rtol=1e-5)


def test_scores_are_those_of_the_plain_model_at_the_sampling_temperature(tiny_dense):
    config = learner_config(tiny_dense).generation(temperature=0.7)
    module = config.build_learner(spaces=SPACES).module[DEFAULT_MODULE_ID].unwrapped()
    trajectory = token_trajectory(make_episode("g", 0, [(5, 4), (3, 2)], 1.0), advantage=1.0)
    ids = torch.as_tensor(trajectory.segments[0]).long()
    with torch.no_grad():
        got = module._forward_train(pack([trajectory]))[columns.LOGP]
        logits = module.model(ids[None], segment_lengths=[len(ids)]).logits[0] / 0.7
    sampled = np.flatnonzero(trajectory.loss_masks[0])
    expected = logits.log_softmax(-1)[sampled - 1, ids[sampled]]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_a_gradient_that_is_not_finite_changes_no_weight(tiny_dense):
    config = learner_config(tiny_dense, old_log_probs="engine")
    learner = config.build_learner(spaces=SPACES)
    groups = even_groups(1)
    turn = groups[0].episodes[1].get_extra_model_outputs("turn")[0]
    turn.action_logp[:] = np.nan
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    before = {name: p.clone() for name, p in module.named_parameters()}
    data = GroupTrainingData.from_groups(groups, num_minibatches=1, seed=0)
    result = learner.update(training_data=data, num_epochs=1)
    assert result[DEFAULT_MODULE_ID]["num_optimizer_steps_skipped"].peek() == 1
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_old_log_probs_of_the_first_minibatch_are_its_own_forward_pass(tiny_dense, monkeypatch):
    config = learner_config(tiny_dense, old_log_probs="learner", num_minibatches=4, lr=1e-3)
    learner = config.build_learner(spaces=SPACES)
    rows = []
    forward = CausalLMModule._forward

    def spy(module, batch, **kwargs):
        rows.append((torch.is_grad_enabled(), sorted(batch[columns.TOKEN_IDS].tolist())))
        return forward(module, batch, **kwargs)

    monkeypatch.setattr(CausalLMModule, "_forward", spy)
    data = GroupTrainingData.from_groups(even_groups(), num_minibatches=4, seed=0)
    result = learner.update(training_data=data, num_epochs=1)[DEFAULT_MODULE_ID]
    assert [with_gradient for with_gradient, _ in rows] == [False] * 3 + [True] * 4
    assert [row for _, row in rows[:3]] == [row for _, row in rows[4:]]
    assert result["abs_log_ratio_mean"].peek() > 1e-6


@pytest.mark.slow
def test_two_ranks_give_an_adapter_the_gradient_of_one(tiny_dense, ray_local):
    def gradient(learner):
        module = learner.module[DEFAULT_MODULE_ID].unwrapped()
        return {name: p.grad.clone() for name, p in module.named_parameters() if p.requires_grad}

    config = learner_config(tiny_dense, old_log_probs="learner", num_learners=2, model={"lora": {"rank": 4}})
    data = GroupTrainingData.from_groups(even_groups(4), num_minibatches=1, seed=0)
    group = config.build_learner_group(rl_module_spec=config.get_multi_rl_module_spec(spaces=SPACES))
    try:
        group.update(training_data=data, num_epochs=1)
        gradients = [result.get() for result in group.foreach_learner(gradient)]
    finally:
        group.shutdown()
    alone = learner_config(tiny_dense, old_log_probs="learner", model={"lora": {"rank": 4}}).build_learner(
        spaces=SPACES
    )
    alone.update(training_data=data, num_epochs=1)
    assert len(gradients) == 2
    for each in gradients:
        _assert_same(each, gradient(alone))


@pytest.mark.parametrize("share_layers", [True, False])
def test_a_critic_learns_beside_an_adapter(tiny_dense, share_layers, tmp_path):
    model = {"lora": {"rank": 4}, "vf_share_layers": share_layers}
    config = objective_config(tiny_dense, LanguagePPOConfig(), model=model)
    learner = config.build_learner(spaces=SPACES)
    learner.update(training_data=GroupTrainingData.from_groups(even_groups(), num_minibatches=1, seed=0), num_epochs=1)
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    trained = [*module.policy_parameters(), *module.critic_parameters()]
    assert all(parameter.grad is not None for parameter in trained)
    assert (len(module.critic_parameters()) == 2) == share_layers
    module.save_to_path(str(tmp_path / "policy"))
    again = config.build_learner(spaces=SPACES).module[DEFAULT_MODULE_ID].unwrapped()
    again.restore_from_path(str(tmp_path / "policy"))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in module.state_dict().items())


def test_groups_that_agree_have_no_gradient_but_count_in_the_denominator(tiny_dense, reference):
    flat = group_episodes([make_episode("flat", i, [(4, 3)], 1.0) for i in range(4)])
    got = _gradient(learner_config(tiny_dense, old_log_probs="learner"), even_groups() + flat)
    # 16 trajectories with a gradient out of 20.
    _assert_same(got, {name: g * 16 / 20 for name, g in reference.items()})


def test_vectors_are_not_decayed(tiny_dense):
    learner = learner_config(tiny_dense, weight_decay=0.5).build_learner(spaces=SPACES)
    optimizer = learner.get_optimizer(DEFAULT_MODULE_ID)
    assert {g["weight_decay"]: min(p.dim() for p in g["params"]) for g in optimizer.param_groups} == {0.5: 2, 0.0: 1}


def test_weights_gradients_and_optimiser_state_are_float32_and_take_steps_bf16_would_lose(tiny_dense):
    learner = bf16_learner(tiny_dense)
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    data = GroupTrainingData.from_groups(even_groups(), num_minibatches=1, seed=0)
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


# -- a restored optimiser goes on where it was, with the settings of the config it is restored into

# Every second one is the critic's: policy and critic have an optimiser each, both with the groups matrices, vectors.
SAVED = {"lr": 1e-3, "weight_decay": 0.1, "adam_betas": (0.5, 0.9), "adam_epsilon": 1e-6, "vf_lr": 2e-3}
CHANGES: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "nothing": ({}, [{}, {}]),
    "lr": ({"lr": 1e-8}, [{"lr": 1e-8}, {}]),
    "vf_lr": ({"vf_lr": 1e-8}, [{}, {"lr": 1e-8}]),
    "vf_lr, now lr": ({"vf_lr": None}, [{}, {"lr": 1e-3}]),
    "adam_betas": ({"adam_betas": (0.9, 0.999)}, [{"betas": (0.9, 0.999)}] * 2),
    "adam_epsilon": ({"adam_epsilon": 1.0}, [{"eps": 1.0}] * 2),
    "weight_decay": ({"weight_decay": 9.0}, [{"weight_decay": 9.0}] * 2),
}
"""By what a new config changes: the settings, and what that is in the optimisers of policy and critic."""


def _with_critic(path: str, **training: Any) -> Any:
    config = objective_config(path, LanguagePPOConfig(), **{"old_log_probs": "learner", **SAVED, **training})
    return config.build_learner(spaces=SPACES)


def _update(learner: Any, timestep: int = 0) -> None:
    data = GroupTrainingData.from_groups(even_groups(2), num_minibatches=1, seed=0)
    learner.update(training_data=data, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: timestep}, num_epochs=1)


def _parameters(learner: Any) -> dict[str, torch.Tensor]:
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def _optimizers(learner: Any) -> list[torch.optim.Optimizer]:
    return [optimizer for _, optimizer in learner.get_optimizers_for_module(DEFAULT_MODULE_ID)]


@pytest.mark.parametrize("change", CHANGES)
def test_the_first_update_after_a_restore_is_the_saved_learners_with_the_new_settings(change, tiny_dense):
    """Bit for bit: moments and steps of the saved learner, settings of the config."""
    training, expected = CHANGES[change]
    saved = _with_critic(tiny_dense)
    _update(saved)
    other = _with_critic(tiny_dense, **training)
    other.set_state(saved.get_state())
    before = _parameters(saved)
    for optimizer, settings in zip(_optimizers(saved), expected, strict=True):
        matrices, vectors = optimizer.param_groups
        matrices.update(settings)
        vectors.update({name: value for name, value in settings.items() if name != "weight_decay"})
    for learner in (saved, other):
        _update(learner)
    after, got = _parameters(saved), _parameters(other)
    assert all(torch.equal(got[name], after[name]) for name in after)
    moved = {critics: 0.0 for critics in (False, True)}
    for name in after:
        critics = name.startswith("critic")
        moved[critics] = max(moved[critics], float((got[name] - before[name]).abs().max()))
    for critics, settings in enumerate(expected):
        assert (moved[bool(critics)] < 1e-6) is (settings.get("lr") == 1e-8)


SCHEDULE = [[0, 1e-3], [100, 1e-4]]


@pytest.mark.parametrize(
    ("saved_lr", "new_lr", "expected"),
    [
        (SCHEDULE, SCHEDULE, 5.5e-4),
        (SCHEDULE, [[0, 0.0], [200, 4e-3]], 1e-3),
        (SCHEDULE, 3e-5, 3e-5),
        (3e-5, SCHEDULE, 5.5e-4),
    ],
    ids=["the same schedule", "another schedule", "now fixed", "was fixed"],
)
def test_a_schedule_goes_on_from_the_timestep_of_the_saved_state(saved_lr, new_lr, expected, tiny_dense):
    saved = _with_critic(tiny_dense, lr=saved_lr, vf_lr=None)
    _update(saved, timestep=50)
    other = _with_critic(tiny_dense, lr=new_lr, vf_lr=None)
    other.set_state(saved.get_state())
    groups = [group for optimizer in _optimizers(other) for group in optimizer.param_groups]
    assert [group["lr"] for group in groups] == pytest.approx([expected] * 4, rel=1e-12)
    if saved_lr == new_lr:
        assert groups[0]["lr"] == _optimizers(saved)[0].param_groups[0]["lr"]
    _update(other, timestep=60)
    assert other.get_state()[LR_TIMESTEP] == 60


def test_a_rollback_takes_the_schedule_back_to_its_start(tiny_dense):
    learner = _with_critic(tiny_dense, lr=SCHEDULE)
    start = learner.get_state()
    _update(learner, timestep=50)
    assert _optimizers(learner)[0].param_groups[0]["lr"] == pytest.approx(5.5e-4)
    learner.set_state(start)
    assert _optimizers(learner)[0].param_groups[0]["lr"] == 1e-3


def test_a_state_without_a_timestep_keeps_its_place_on_a_schedule(tiny_dense):
    """As version 0.1 saved it."""
    saved = _with_critic(tiny_dense, lr=SCHEDULE)
    _update(saved, timestep=50)
    state = {name: value for name, value in saved.get_state().items() if name != LR_TIMESTEP}
    other = _with_critic(tiny_dense, lr=SCHEDULE, vf_lr=7e-3)
    other.set_state(state)
    policy, critic = (optimizer.param_groups[0]["lr"] for optimizer in _optimizers(other))
    assert (policy, critic) == (pytest.approx(5.5e-4, rel=1e-12), 7e-3)


def test_a_parameter_of_an_adapter_that_gets_no_gradient_ends_the_first_step_and_is_named(tiny_dense):
    learner = learner_config(tiny_dense, model={"lora": {"rank": 4}}).build_learner(spaces=SPACES)
    module = learner.module[DEFAULT_MODULE_ID].unwrapped()
    layer = module.model.model.layers[1].mlp.up_proj.lora_B["default"]
    # A kernel without a backward pass, which is found on no single token.
    layer.forward = lambda x: torch.nn.functional.linear(x, layer.weight.detach())
    data = GroupTrainingData.from_groups(even_groups(), num_minibatches=1, seed=0)
    before = [parameter.clone() for parameter in module.policy_parameters()]
    with pytest.raises(ModelError, match=r"1 of the 28 .* 'model\.layers\.1\.mlp\.up_proj\.lora_B\.default\.weight'"):
        learner.update(training_data=data, num_epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(module.policy_parameters(), before, strict=True))


def test_the_optimiser_of_an_adapter_has_state_for_nothing_else(tiny_dense):
    learner = learner_config(tiny_dense, model={"lora": {"rank": 4}}, lr=1e-3).build_learner(spaces=SPACES)
    learner.update(training_data=GroupTrainingData.from_groups(even_groups(), num_minibatches=1, seed=0), num_epochs=1)
    trained = learner.module[DEFAULT_MODULE_ID].unwrapped().policy_parameters()
    (optimizer,) = learner._all_optimizers
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name.startswith("exp_avg")]
    assert sum(tensor.nbytes for tensor in moments) == 8 * sum(parameter.numel() for parameter in trained)
    assert all(parameter.grad is not None for parameter in trained)
    module = learner.module[DEFAULT_MODULE_ID]
    assert all(p.grad is None for p in module.parameters() if not p.requires_grad)

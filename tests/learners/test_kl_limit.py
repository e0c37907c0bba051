"""A limit on how far an update moves, and a step that is as if it had never been taken."""

from __future__ import annotations

import math

import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.learners.kl_limit import KLLimit, StepMemory
from gspo_rllib.learners.training_data import GroupTrainingData
from tests.learners.small_learner import SPACES, even_groups, learner_config


def _limit(target: float) -> KLLimit:
    return KLLimit(target, distributed=False, device="cpu")


def test_the_divergence_is_a_mean_over_all_tokens_of_a_minibatch():
    """Log-ratios ln 2, ln 2 and 0, 0: r - 1 - ln r is 1 - ln 2 twice, 0 twice; the mean over four is 0.1534."""
    limit = _limit(0.15)
    limit.add(torch.tensor([-1.0]), torch.tensor([-1.0 + math.log(2)]))
    limit.add(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.0 + math.log(2), -2.0, -3.0]))
    assert limit.check() and limit.exceeded
    assert limit.latest == pytest.approx((1 - math.log(2)) / 2, rel=1e-6)
    # The next minibatch starts anew.
    limit.add(torch.zeros(2), torch.zeros(2))
    assert not limit.check() and limit.latest == 0.0
    assert not _limit(0.154).check()


def test_what_differs_before_the_first_step_is_no_movement():
    limit = _limit(0.01)
    limit.add(torch.zeros(2), torch.ones(2))
    assert not limit.check(has_moved=False)
    assert limit.latest == pytest.approx(math.e - 2, rel=1e-6)


def test_a_minibatch_without_tokens_says_nothing_and_a_policy_that_is_no_number_too_much():
    limit = _limit(0.01)
    assert not limit.check() and limit.latest is None
    limit.add(torch.zeros(1), torch.tensor([math.nan]))
    assert limit.check()


@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_an_undone_step_leaves_nothing_behind(steps_before):
    """Bit for bit: weights, moments, step counts; and what comes next is what would have come without it."""

    def trained(steps, *, with_undone):
        torch.manual_seed(0)
        weights = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(2))]
        optimizers = [torch.optim.AdamW([weight], lr=0.1, amsgrad=weight.dim() == 2) for weight in weights]
        memory = StepMemory(optimizers)
        inputs = torch.randn(steps + 1, 3)
        for step in range(steps + 1):
            if step == steps and with_undone:
                memory.remember()
                _step(weights, optimizers, inputs[step] * 100)
                assert memory.undo() and not memory.undo()
            if step < steps:
                memory.remember()
                _step(weights, optimizers, inputs[step])
        states = [optimizer.state_dict()["state"] for optimizer in optimizers]
        for _ in range(2):
            _step(weights, optimizers, inputs[-1])
        return states, weights

    states, weights = trained(steps_before, with_undone=True)
    expected_states, expected_weights = trained(steps_before, with_undone=False)
    assert [set(state) for state in states] == [set(state) for state in expected_states]
    assert all(torch.equal(got, expected) for got, expected in zip(weights, expected_weights, strict=True))


def _step(weights, optimizers, row):
    for optimizer in optimizers:
        optimizer.zero_grad()
    (row @ weights[0] + weights[1]).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()


# -- in the learner: four minibatches, twice

FAST = {"lr": 3e-3, "old_log_probs": "learner", "num_minibatches": 4, "num_epochs": 2}
FAR, NEAR = 1e12, 1e-9


def _updated(path, *, steps=None, updates=1, **training):
    """A learner, and what its last update measured. ``steps``: an update of only the first so many minibatches."""
    learner = learner_config(path, **{**FAST, **training}).build_learner(spaces=SPACES)
    for seed in range(updates):
        data = GroupTrainingData.from_groups(even_groups(), num_minibatches=4, seed=seed)
        if steps is not None:
            data.minibatches = data.minibatches[:steps]
        results = learner.update(training_data=data, num_epochs=2 if steps is None else 1)[DEFAULT_MODULE_ID]
    return learner, {name: value.peek() for name, value in results.items() if hasattr(value, "peek")}


def _fresh(path):
    return learner_config(path, **FAST).build_learner(spaces=SPACES)


def _assert_same_state(learner, other):
    """Bit for bit: weights and optimiser."""
    modules = [each.module[DEFAULT_MODULE_ID].unwrapped() for each in (learner, other)]
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in modules), strict=True))
    states = [each.get_optimizer(DEFAULT_MODULE_ID).state_dict()["state"] for each in (learner, other)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert all(torch.equal(value, states[1][key][name]) for name, value in state.items()), key


@pytest.fixture(scope="module")
def curve(tiny_dense):
    """The divergence that each of the first minibatches is seen with, by the steps before it."""
    return {n: _updated(tiny_dense, steps=n + 1, target_kl=FAR)[1]["kl_to_old"] for n in (1, 2, 3)}


def test_an_update_within_the_limit_is_as_if_there_were_none(tiny_dense):
    plain, _ = _updated(tiny_dense)
    for more in ({}, {"undo_overshoot": True}):
        limited, measured = _updated(tiny_dense, target_kl=FAR, **more)
        _assert_same_state(limited, plain)
        counts = [measured[f"num_{n}"] for n in ("minibatches", "optimizer_steps", "optimizer_steps_undone")]
        assert (counts, measured["ended_by_target_kl"]) == ([8, 8, 0], 0.0)
        assert measured["kl_to_old"] > 0.0


def test_an_update_ends_at_the_minibatch_it_was_too_far_at(tiny_dense, curve):
    """Beyond what two steps do, short of what one does: the third minibatch's step is not taken."""
    assert curve[1] < curve[2] < curve[3]
    limited, measured = _updated(tiny_dense, target_kl=(curve[1] + curve[2]) / 2)
    counts = [measured[f"num_{n}"] for n in ("minibatches", "optimizer_steps", "optimizer_steps_undone")]
    assert (counts, measured["ended_by_target_kl"]) == ([3, 2, 0], 1.0)
    assert measured["kl_to_old"] == pytest.approx(curve[2], rel=1e-4)
    _assert_same_state(limited, _updated(tiny_dense, steps=2)[0])


def test_the_step_that_went_too_far_is_undone_where_that_is_asked_for(tiny_dense, curve):
    limited, measured = _updated(tiny_dense, target_kl=(curve[1] + curve[2]) / 2, undo_overshoot=True)
    counts = [measured[f"num_{n}"] for n in ("minibatches", "optimizer_steps", "optimizer_steps_undone")]
    assert (counts, measured["ended_by_target_kl"]) == ([3, 2, 1], 1.0)
    _assert_same_state(limited, _updated(tiny_dense, steps=1)[0])


def test_the_first_step_is_always_taken_and_undone_where_that_is_asked_for(tiny_dense):
    taken, measured = _updated(tiny_dense, target_kl=NEAR)
    assert (measured["num_minibatches"], measured["num_optimizer_steps"]) == (2, 1)
    _assert_same_state(taken, _updated(tiny_dense, steps=1)[0])
    undone, measured = _updated(tiny_dense, target_kl=NEAR, undo_overshoot=True, updates=2)
    assert measured["num_optimizer_steps_undone"] == 1
    _assert_same_state(undone, _fresh(tiny_dense))


def test_the_last_step_of_an_update_is_looked_at_too_before_it_stays(tiny_dense):
    """No minibatch comes after the only step there is; its own is scored again."""
    undone, measured = _updated(tiny_dense, steps=1, target_kl=NEAR, undo_overshoot=True)
    assert (measured["num_optimizer_steps_undone"], measured["ended_by_target_kl"]) == (1, 1.0)
    _assert_same_state(undone, _fresh(tiny_dense))


def test_an_engines_noise_ends_no_update_before_its_first_step(tiny_dense):
    """Made-up log-probs of the engine below the ratio are nats away from the first minibatch on."""
    _, measured = _updated(tiny_dense, target_kl=1e-3, old_log_probs="engine")
    assert (measured["num_minibatches"], measured["num_optimizer_steps"]) == (2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("num_learners", [1, 2])
def test_all_ranks_end_an_update_together(num_learners, tiny_dense, curve, ray_local):
    limit = {**FAST, "target_kl": (curve[1] + curve[2]) / 2, "undo_overshoot": True}
    config = learner_config(tiny_dense, num_learners=num_learners, **limit)
    group = config.build_learner_group(rl_module_spec=config.get_multi_rl_module_spec(spaces=SPACES))
    try:
        data = GroupTrainingData.from_groups(even_groups(), num_minibatches=4, seed=0)
        reports = group.update(training_data=data, num_epochs=2)
        weights = [
            result.get()
            for result in group.foreach_learner(
                lambda learner: [p.detach().clone() for p in learner.module[DEFAULT_MODULE_ID].unwrapped().parameters()]
            )
        ]
    finally:
        group.shutdown()
    expected = list(_updated(tiny_dense, steps=1)[0].module[DEFAULT_MODULE_ID].unwrapped().parameters())
    for report, got in zip(reports, weights, strict=True):
        measured = {name: value.peek() for name, value in report[DEFAULT_MODULE_ID].items() if hasattr(value, "peek")}
        counts = [measured[f"num_{n}"] for n in ("minibatches", "optimizer_steps", "optimizer_steps_undone")]
        assert (counts, measured["ended_by_target_kl"]) == ([3, 2, 1], 1.0)
        assert all(torch.equal(a, b) for a, b in zip(got, weights[0], strict=True))
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(got, expected, strict=True))

"""A limit on how far an update moves, and a step that is as if it had never been taken."""

from __future__ import annotations

import math

import pytest
import torch

from gspo_rllib.learners.kl_limit import KLLimit, StepMemory


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

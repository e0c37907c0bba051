"""The objective: what must hold for every ratio scope, surrogate and reduction together."""

from __future__ import annotations

import inspect
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gspo_rllib.ops import (
    IMPORTANCE_SAMPLING_LEVELS,
    SURROGATES,
    log_ratio,
    policy_loss,
    surrogate_objective,
    token_weights,
)
from tests.ops.objective_batches import Batch, batches, every_objective, few_examples, one_turn, row, run


@every_objective
@few_examples
@given(batch=batches())
def test_padding_never_changes_the_loss_even_when_it_holds_nan(level, surrogate, reduction, batch):
    loss, grad, statistics = run(batch, level, surrogate, reduction)
    width = batch.mask.shape[1]

    def padded(value: torch.Tensor) -> torch.Tensor:
        if value.ndim == 1:
            return value
        filling = {torch.bool: False, torch.long: 99, torch.float64: float("nan")}[value.dtype]
        value = torch.where(batch.mask, value, torch.full_like(value, filling))
        return torch.nn.functional.pad(value, (0, 2), value=filling)

    wide = batch.map(padded)
    wide.advantages = wide.advantages.clone()
    wide.advantages[~batch.mask.any(dim=1)] = float("nan")
    padded_loss, padded_grad, padded_statistics = run(wide, level, surrogate, reduction)
    torch.testing.assert_close(padded_loss, loss)
    torch.testing.assert_close(padded_grad[:, :width], grad)
    assert bool((padded_grad[~wide.mask] == 0).all())
    for name, value in statistics.items():
        torch.testing.assert_close(padded_statistics[name], value)


@every_objective
@few_examples
@given(batch=batches(), seed=st.integers(0, 100))
def test_the_order_of_rows_changes_nothing(level, surrogate, reduction, batch, seed):
    loss, grad, _ = run(batch, level, surrogate, reduction)
    order = torch.randperm(len(batch.logp), generator=torch.Generator().manual_seed(seed))
    shuffled_loss, shuffled_grad, _ = run(batch.map(lambda value: value[order]), level, surrogate, reduction)
    torch.testing.assert_close(shuffled_loss, loss)
    torch.testing.assert_close(shuffled_grad, grad[order])


@every_objective
@few_examples
@given(batch=batches())
def test_micro_batches_with_the_whole_denominator_add_up_to_the_whole(level, surrogate, reduction, batch):
    loss, grad, _ = run(batch, level, surrogate, reduction)
    parts = [
        run(
            batch.map(lambda value, i=i: value[i : i + 1]), level, surrogate, reduction,
            denominator=batch.count(reduction),
        )
        for i in range(len(batch.logp))
    ]  # fmt: skip
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), grad)


@pytest.mark.parametrize("level", IMPORTANCE_SAMPLING_LEVELS)
@pytest.mark.parametrize("surrogate", SURROGATES)
@few_examples
@given(batch=batches(empty_rows=False))
def test_on_policy_the_gradient_is_minus_advantage_times_that_of_the_mean_log_prob(level, surrogate, batch):
    advantages, length = batch.advantages.reshape(len(batch.logp), -1)[:, :1], batch.mask.sum(dim=1, keepdim=True)
    on_policy = one_turn(batch.logp, batch.logp, advantages[:, 0], batch.mask)
    rows = len(batch.logp)
    expected = {
        "trajectory_mean": -advantages / (rows * length) * batch.mask,
        "token_mean": -advantages / length.sum() * batch.mask,
        "token_sum": -advantages / (rows * 32.0) * batch.mask,
    }
    for reduction, grad in expected.items():
        torch.testing.assert_close(run(on_policy, level, surrogate, reduction, token_sum_length=32)[1], grad)


OLD = torch.zeros(3, 4, dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 0]]).bool()
TURNS = torch.tensor([[0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]])
ADVANTAGES = torch.tensor([[1.0, 0.8, -0.3, 0.0], [-0.5, 0.0, -0.7, 0.4], [2.0, -1.0, 0.0, 0.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([[1.0, 0.5, 2.0, 7.0], [0.0, 7.0, 1.5, 1.0], [1.0, 0.25, 7.0, 7.0]], dtype=torch.float64)


def _by_hand(x: torch.Tensor, base: torch.Tensor, level: str, surrogate: str, reduction: str) -> float:
    """The loss as loops over tokens; factors behind a stopped gradient are taken at ``base``, the rest at ``x``."""
    tokens = [(i, t) for i in range(3) for t in range(4) if MASK[i, t]]
    scopes = {
        "token": lambda i, t: [(i, t)],
        "turn": lambda i, t: [(j, u) for j, u in tokens if j == i and TURNS[j, u] == TURNS[i, t]],
        "sequence": lambda i, t: [(j, u) for j, u in tokens if j == i],
    }
    turns = {(i, int(TURNS[i, t])) for i, t in tokens}

    def held(at: torch.Tensor, j: int, u: int) -> float:
        value, advantage = float(at[j, u]), float(ADVANTAGES[j, u])
        if surrogate != "log_clip" or advantage == 0:
            return value
        return min(value, 0.06) if advantage > 0 else max(value, -0.05)

    def ratio(at: torch.Tensor, i: int, t: int) -> float:
        scope = scopes[level.removesuffix("_token") if level != "token" else level](i, t)
        source = base if level == "sequence_token" else at
        value = math.exp(sum(held(source, *cell) for cell in scope) / len(scope))
        return value * math.exp(held(at, i, t) - held(base, i, t)) if level == "sequence_token" else value

    total = 0.0
    for i, t in tokens:
        a, s = float(ADVANTAGES[i, t]), ratio(x, i, t)
        inside = min(max(s, 0.95), 1.06)
        if surrogate in ("policy_gradient", "log_clip"):
            f = s * a
        elif surrogate == "sapo":
            tau = 1.5 if a > 0 else 2.5
            f = 4 * a / (tau * (1 + math.exp(-tau * (s - 1))))
        elif surrogate == "cispo":
            f = min(max(ratio(base, i, t), 0.95), 1.06) * a * float(x[i, t])
        else:
            f = min(s * a, inside * a)
            if surrogate == "dual_clip" and a < 0:
                f = max(f, 1.1 * a)
        share = {
            "trajectory_mean": len(scopes["sequence"](i, t)) * 3,
            "turn_mean": len(scopes["turn"](i, t)) * len(turns),
            "token_mean": len(tokens),
            "token_sum": 3 * 5.0,
        }[reduction]
        total += float(WEIGHTS[i, t]) * f / share
    return -total


@every_objective
def test_the_gradient_is_the_slope_of_the_loss(level, surrogate, reduction):
    """Central differences in float64 of a loss written as loops, with ratios inside and outside every clip."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(3, 4, generator=generator, dtype=torch.float64) * 0.15
    batch = Batch(base, OLD, ADVANTAGES, MASK, TURNS, WEIGHTS)
    loss, grad, _ = run(
        batch, level, surrogate, reduction, clip_low=0.05, clip_high=0.06, dual_clip=1.1, token_sum_length=5,
        sapo_temperature_positive=1.5, sapo_temperature_negative=2.5,
    )  # fmt: skip
    assert loss.item() == pytest.approx(_by_hand(base, base, level, surrogate, reduction), abs=1e-12)
    step, slope = 1e-6, torch.zeros_like(base)
    for i, t in itertools.product(range(3), range(4)):
        e = torch.zeros_like(base)
        e[i, t] = step
        up, down = (_by_hand(base + sign * e, base, level, surrogate, reduction) for sign in (1, -1))
        slope[i, t] = (up - down) / (2 * step)
    torch.testing.assert_close(grad, slope, atol=1e-8, rtol=1e-6)
    assert bool(grad.any())


def test_an_off_policy_weight_of_zero_takes_a_token_out_but_not_out_of_the_length():
    batch = one_turn(row(0.0, 0.0), row(0.0, 0.0), torch.ones(1, dtype=torch.float64))
    batch.weights = row(0.0, 1.0)
    assert run(batch, "token")[1].tolist() == [[0.0, -0.5]]


@every_objective
def test_a_ratio_that_exploded_stays_finite_in_float32(level, surrogate, reduction):
    batch = one_turn(torch.zeros(1, 2), torch.tensor([[-500.0, 500.0]]), torch.tensor([-1.0]))
    batch.mask = torch.tensor([[True, level == "token"]])
    loss, grad, _ = run(batch, level, surrogate, reduction)
    assert bool(torch.isfinite(loss)) and bool(torch.isfinite(grad).all())


def test_what_is_not_allowed_is_said_with_what_is():
    # Without the shape checker of the tests: this is what a user meets.
    plain, zeros, mask = inspect.unwrap(policy_loss), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for match, options in {
        'level="turn" needs turn_ids_BT': {"importance_sampling_level": "turn"},
        'reduction="turn_mean" needs turn_ids_BT': {"reduction": "turn_mean"},
        "dual_clip=1.0; allowed": {"surrogate": "dual_clip", "dual_clip": 1.0},
        "sapo_temperature_negative=0.0; allowed": {"surrogate": "sapo", "sapo_temperature_negative": 0.0},
        "clip_low=-0.1; allowed": {"clip_low": -0.1},
        "max_log_ratio=90.0; allowed": {"max_log_ratio": 90.0},
        "token_sum_length=0; allowed": {"reduction": "token_sum", "token_sum_length": 0},
    }.items():
        with pytest.raises(ValueError, match=match):
            plain(zeros, zeros, torch.zeros(2), mask, **options)
    with pytest.raises(ValueError, match=r"allowed: \[B\]"):
        plain(zeros, zeros, torch.zeros(3), mask)
    with pytest.raises(ValueError, match="allowed: sequence, sequence_token, turn, token"):
        inspect.unwrap(log_ratio)(zeros, zeros, mask, level="trajectory")
    with pytest.raises(ValueError, match="allowed: trajectory_mean, turn_mean, token_mean, token_sum"):
        inspect.unwrap(token_weights)(mask, reduction="mean")
    with pytest.raises(ValueError, match="allowed: clip, dual_clip, cispo, sapo, policy_gradient"):
        inspect.unwrap(surrogate_objective)(zeros, zeros, zeros, surrogate="ppo", clip_low=0.1, clip_high=0.1)

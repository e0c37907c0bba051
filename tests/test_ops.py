"""The objective: what must hold for every ratio scope, surrogate and reduction, and what each part is worth by hand."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gspo_rllib.ops import (
    IMPORTANCE_SAMPLING_LEVELS,
    REDUCTIONS,
    SURROGATES,
    log_ratio,
    policy_loss,
    reduce_tokens,
    sequence_log_ratio,
    surrogate_objective,
    token_weights,
)

PARTS = list(itertools.product(IMPORTANCE_SAMPLING_LEVELS, SURROGATES, REDUCTIONS))
every_objective = pytest.mark.parametrize(("level", "surrogate", "reduction"), PARTS)
few_examples = settings(deadline=None, max_examples=3)
CLIP = {"clip_low": 0.1, "clip_high": 0.2}


@dataclasses.dataclass
class Batch:
    logp: torch.Tensor
    old: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    turn_ids: torch.Tensor
    weights: torch.Tensor

    def map(self, change: Any) -> Batch:
        return Batch(**{name: change(value) for name, value in vars(self).items()})

    def count(self, reduction: str) -> int:
        if reduction == "token_mean":
            return int(self.mask.sum())
        if reduction == "turn_mean":
            rows, columns = self.mask.nonzero(as_tuple=True)
            return len({(int(row), int(self.turn_ids[row, column])) for row, column in zip(rows, columns, strict=True)})
        return int(self.mask.any(dim=1).sum())


@st.composite
def _batches(draw: st.DrawFn, *, empty_rows: bool = True, width: int | None = None) -> Batch:
    rows = draw(st.integers(1, 4))
    width = width or draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logp = -normal(rows, width).abs()
    mask = torch.rand(rows, width, generator=generator) < 0.7
    if not empty_rows:
        mask[:, 0] = True
    steps = torch.rand(rows, width, generator=generator) < 0.4
    return Batch(
        logp=logp,
        old=logp + 0.3 * normal(rows, width),
        advantages=normal(rows, width) if draw(st.booleans()) else normal(rows),
        mask=mask,
        turn_ids=steps.long().cumsum(dim=1),
        weights=normal(rows, width).abs(),
    )


def _run(batch: Batch, level: str, surrogate: str = "clip", reduction: str = "trajectory_mean", **options: Any) -> Any:
    logp = batch.logp.clone().requires_grad_()
    loss, statistics = policy_loss(
        logp,
        batch.old,
        batch.advantages,
        batch.mask,
        importance_sampling_level=level,
        surrogate=surrogate,
        reduction=reduction,
        turn_ids_BT=batch.turn_ids,
        weights_BT=batch.weights,
        **{**CLIP, **options},
    )
    return loss.detach(), torch.autograd.grad(loss, logp)[0], statistics


def _row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def _simple(logp: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor | None = None) -> Batch:
    """One turn, no off-policy weights."""
    mask = torch.ones_like(logp, dtype=torch.bool) if mask is None else mask
    return Batch(logp, old, advantages, mask, torch.zeros_like(mask, dtype=torch.long), torch.ones_like(logp))


@every_objective
@few_examples
@given(batch=_batches())
def test_padding_never_changes_the_loss_even_when_it_holds_nan(level, surrogate, reduction, batch):
    loss, grad, statistics = _run(batch, level, surrogate, reduction)
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
    padded_loss, padded_grad, padded_statistics = _run(wide, level, surrogate, reduction)
    torch.testing.assert_close(padded_loss, loss)
    torch.testing.assert_close(padded_grad[:, :width], grad)
    assert bool((padded_grad[~wide.mask] == 0).all())
    for name, value in statistics.items():
        torch.testing.assert_close(padded_statistics[name], value)


@every_objective
@few_examples
@given(batch=_batches(), seed=st.integers(0, 100))
def test_the_order_of_rows_changes_nothing(level, surrogate, reduction, batch, seed):
    loss, grad, _ = _run(batch, level, surrogate, reduction)
    order = torch.randperm(len(batch.logp), generator=torch.Generator().manual_seed(seed))
    shuffled_loss, shuffled_grad, _ = _run(batch.map(lambda value: value[order]), level, surrogate, reduction)
    torch.testing.assert_close(shuffled_loss, loss)
    torch.testing.assert_close(shuffled_grad, grad[order])


@every_objective
@few_examples
@given(batch=_batches())
def test_micro_batches_with_the_whole_denominator_add_up_to_the_whole(level, surrogate, reduction, batch):
    loss, grad, _ = _run(batch, level, surrogate, reduction)
    parts = [
        _run(
            batch.map(lambda value, i=i: value[i : i + 1]), level, surrogate, reduction,
            denominator=batch.count(reduction),
        )
        for i in range(len(batch.logp))
    ]  # fmt: skip
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), grad)


@every_objective
@few_examples
@given(batch=_batches(width=1))
def test_with_one_token_every_ratio_scope_is_the_same(level, surrogate, reduction, batch):
    for got, expected in zip(
        _run(batch, level, surrogate, reduction)[:2], _run(batch, "token", surrogate, reduction)[:2], strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("surrogate", "reduction"), itertools.product(SURROGATES, REDUCTIONS))
@few_examples
@given(batch=_batches())
def test_with_one_turn_turn_level_is_sequence_level(surrogate, reduction, batch):
    batch.turn_ids = torch.full_like(batch.turn_ids, 2)
    for got, expected in zip(
        _run(batch, "turn", surrogate, reduction)[:2], _run(batch, "sequence", surrogate, reduction)[:2], strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize("reduction", sorted(set(REDUCTIONS) - {"turn_mean"}))
@few_examples
@given(batch=_batches())
def test_gspo_token_is_gspo_when_advantages_are_equal_along_a_trajectory(surrogate, reduction, batch):
    batch.advantages = batch.advantages.reshape(len(batch.logp), -1)[:, 0]
    batch.weights = torch.ones_like(batch.weights)
    for got, expected in zip(
        _run(batch, "sequence_token", surrogate, reduction)[:2],
        _run(batch, "sequence", surrogate, reduction)[:2],
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("level", IMPORTANCE_SAMPLING_LEVELS)
@pytest.mark.parametrize("surrogate", SURROGATES)
@few_examples
@given(batch=_batches(empty_rows=False))
def test_on_policy_the_gradient_is_minus_advantage_times_that_of_the_mean_log_prob(level, surrogate, batch):
    advantages, length = batch.advantages.reshape(len(batch.logp), -1)[:, :1], batch.mask.sum(dim=1, keepdim=True)
    on_policy = _simple(batch.logp, batch.logp, advantages[:, 0], batch.mask)
    rows = len(batch.logp)
    expected = {
        "trajectory_mean": -advantages / (rows * length) * batch.mask,
        "token_mean": -advantages / length.sum() * batch.mask,
        "token_sum": -advantages / (rows * 32.0) * batch.mask,
    }
    for reduction, grad in expected.items():
        torch.testing.assert_close(_run(on_policy, level, surrogate, reduction, token_sum_length=32)[1], grad)


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
    loss, grad, _ = _run(
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


@pytest.mark.parametrize(("level", "reduction"), itertools.product(IMPORTANCE_SAMPLING_LEVELS, REDUCTIONS))
def test_a_batch_that_is_clipped_everywhere_has_no_gradient_except_under_cispo(level, reduction):
    logp = torch.tensor([[1.0] * 3, [-1.0] * 3], dtype=torch.float64)
    batch = _simple(logp, torch.zeros_like(logp), torch.tensor([1.0, -1.0], dtype=torch.float64))
    for surrogate in ("clip", "dual_clip"):
        _, grad, statistics = _run(batch, level, surrogate, reduction)
        assert not bool(grad.any())
        assert statistics["clipped_high_B"].tolist() == [1.0, 0.0]
        assert statistics["clipped_low_B"].tolist() == [0.0, 1.0]
    assert bool((_run(batch, level, "cispo", reduction)[1] != 0).all())


def test_trajectories_of_2_and_8_tokens_weigh_the_same_unless_tokens_are_counted():
    mask = torch.arange(8)[None, :] < torch.tensor([[2], [8]])
    zeros = torch.zeros(2, 8, dtype=torch.float64)
    batch = _simple(zeros, zeros, torch.ones(2, dtype=torch.float64), mask)
    for level in IMPORTANCE_SAMPLING_LEVELS:
        assert _run(batch, level)[1].sum(dim=1).tolist() == pytest.approx([-0.5, -0.5])
        assert _run(batch, level, reduction="token_mean")[1].sum(dim=1).tolist() == pytest.approx([-0.2, -0.8])
        summed = _run(batch, level, reduction="token_sum", token_sum_length=16)[1].sum(dim=1)
        assert summed.tolist() == pytest.approx([-2 / 32, -8 / 32])


def test_turns_of_1_and_3_tokens_weigh_the_same_under_turn_mean():
    """Three turns over two trajectories: a third each, whoever they belong to, shared by the turn's tokens."""
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    turn_ids = torch.tensor([[0, 1, 1, 1], [0, 0, 7, 7]])
    weights = token_weights(mask, reduction="turn_mean", turn_ids_BT=turn_ids, dtype=torch.float64)
    expected = [[1 / 3, 1 / 9, 1 / 9, 1 / 9], [1 / 6, 1 / 6, 0, 0]]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_rows_without_a_sampled_token_do_not_count(reduction):
    value, turn_ids = torch.tensor([[2.0, 0.0], [7.0, 7.0]]), torch.zeros(2, 2, dtype=torch.long)
    one, none = torch.tensor([[True, False], [False, False]]), torch.zeros(2, 2, dtype=torch.bool)
    assert reduce_tokens(value, one, reduction=reduction, turn_ids_BT=turn_ids).item() == 2.0
    assert reduce_tokens(value, none, reduction=reduction, turn_ids_BT=turn_ids).item() == 0.0
    assert sequence_log_ratio(value, value + 1, none).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("surrogate", "ratio", "advantage", "objective", "slope"),
    [
        ("clip", 1.5, 2.0, 2.4, 0.0),  # 1.2 x 2, flat
        ("clip", 1.5, -2.0, -3.0, -3.0),  # the pessimistic side is not clipped: slope in log p is s A
        ("clip", 0.5, -2.0, -1.8, 0.0),  # 0.9 x -2, flat
        ("dual_clip", 5.0, -2.0, -6.0, 0.0),  # at most 3 x
        ("dual_clip", 2.0, -2.0, -4.0, -4.0),
        ("dual_clip", 5.0, 2.0, 2.4, 0.0),  # a positive advantage knows only the ordinary clip
        ("cispo", 5.0, 2.0, 1.2 * 2 * -0.7, 2.4),  # weight 1.2, and the gradient of log p stays
        ("cispo", 0.5, -2.0, 0.9 * -2 * -0.7, -1.8),
        ("sapo", 1.0, 2.0, 4.0, 2.0),  # 4 / 1 x 1/2 x 2; slope A on policy, whatever tau is
        ("sapo", 1.0, -2.0, -2.0, -2.0),  # 4 / 2 x 1/2 x -2
        ("sapo", 2.0, 2.0, 5.848469, 3.145791),  # 4 sigmoid(1) 2; 4 sigmoid(1) (1 - sigmoid(1)) 2 x ratio 2
        ("policy_gradient", 5.0, 2.0, 10.0, 10.0),
    ],
)
def test_a_surrogate_is_worth_what_its_definition_says(surrogate, ratio, advantage, objective, slope):
    """One token with log p = -0.7, range 0.9 to 1.2, dual clip 3, tau 1 and 2. Slopes are in log p."""
    batch = _simple(_row(-0.7), _row(-0.7 - math.log(ratio)), torch.tensor([advantage], dtype=torch.float64))
    loss, grad, _ = _run(batch, "sequence", surrogate, sapo_temperature_negative=2.0)
    assert loss.item() == pytest.approx(-objective, abs=1e-6)
    assert grad.item() == pytest.approx(-slope, abs=1e-6)


def test_each_trajectory_can_have_its_own_clip_range():
    batch = _simple(_row(0.1, 0.1).T, _row(0.0, 0.0).T, torch.ones(2, dtype=torch.float64))
    for level in IMPORTANCE_SAMPLING_LEVELS:
        _, grad, statistics = _run(batch, level, clip_low=0.1, clip_high=torch.tensor([0.05, 0.2], dtype=torch.float64))
        assert grad[0].item() == 0.0 and grad[1].item() != 0.0
        assert statistics["clipped_high_B"].tolist() == [1.0, 0.0]


def test_per_token_advantages_reach_their_own_tokens_under_gspo_token():
    batch = _simple(_row(0.0, 0.0), _row(0.0, 0.0), _row(1.0, 0.0))
    assert _run(batch, "sequence_token")[1].tolist() == [[-0.5, 0.0]]
    assert _run(batch, "sequence")[1].tolist() == [[-0.25, -0.25]]


def test_an_off_policy_weight_of_zero_takes_a_token_out_but_not_out_of_the_length():
    batch = _simple(_row(0.0, 0.0), _row(0.0, 0.0), torch.ones(1, dtype=torch.float64))
    batch.weights = _row(0.0, 1.0)
    assert _run(batch, "token")[1].tolist() == [[0.0, -0.5]]


@every_objective
def test_a_ratio_that_exploded_stays_finite_in_float32(level, surrogate, reduction):
    batch = _simple(torch.zeros(1, 2), torch.tensor([[-500.0, 500.0]]), torch.tensor([-1.0]))
    batch.mask = torch.tensor([[True, level == "token"]])
    loss, grad, _ = _run(batch, level, surrogate, reduction)
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

"""The objective: golden values, properties, and the token log-probabilities it is fed with."""

from __future__ import annotations

import inspect
import json
import pathlib
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gspo_rllib.ops import (
    group_z_score,
    k3,
    log_ratio,
    policy_loss,
    sequence_log_ratio,
    token_logprobs,
    trajectory_mean,
)

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "gspo_peers.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}


def _loss(case: dict[str, Any], **options: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    logp = torch.tensor(case["logp_new"], dtype=torch.float64, requires_grad=True)
    loss, statistics = policy_loss(
        logp,
        torch.tensor(case["logp_old"], dtype=torch.float64),
        torch.tensor(case["advantages"], dtype=torch.float64),
        torch.tensor(case["mask"]).bool(),
        clip_low=case["eps_low"],
        clip_high=case["eps_high"],
        **options,
    )
    loss.backward()
    assert logp.grad is not None
    return loss.detach(), logp.grad, statistics


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_default_loss_is_the_papers_in_value_and_gradient(name):
    expected = GOLDEN["results"]["paper"][name]
    loss, grad, statistics = _loss(CASES[name])
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-12, abs=1e-10)
    torch.testing.assert_close(grad, torch.tensor(expected["grad"], dtype=torch.float64), rtol=1e-12, atol=1e-10)
    clipped = (statistics["clipped_low_B"] + statistics["clipped_high_B"])[statistics["counted_B"]]
    assert clipped.bool().tolist() == [row["clipped"] for row in expected["per_seq"] if row["clipped"] is not None]


@pytest.mark.parametrize("name", sorted(GOLDEN["results"]["trl_grpo"]))
def test_trl_with_its_sequence_mean_agrees_wherever_every_row_has_a_token(name):
    if not all(any(row) for row in CASES[name]["mask"]):
        pytest.skip("TRL divides by rows without a sampled token too")
    expected = GOLDEN["results"]["trl_grpo"][name]
    loss, grad, _ = _loss(CASES[name])
    assert loss.item() == pytest.approx(expected["loss"], abs=1e-6, rel=1e-6)
    torch.testing.assert_close(grad, torch.tensor(expected["grad"], dtype=torch.float64), rtol=1e-5, atol=1e-6)


@st.composite
def _batches(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    logp = -torch.rand(rows, width, generator=generator, dtype=torch.float64) * 3
    old = logp + 0.3 * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    mask = torch.arange(width)[None, :] < lengths[:, None]
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    return logp, old, advantages, mask


LEVELS = ("sequence", "sequence_token", "turn", "token")
CLIP = {"clip_low": 0.1, "clip_high": 0.2}


def _value_and_grad(logp, old, advantages, mask, *, level="sequence", turn_ids=None, **options):
    logp = logp.clone().requires_grad_()
    loss, _ = policy_loss(
        logp,
        old,
        advantages,
        mask,
        importance_sampling_level=level,
        turn_ids_BT=torch.zeros_like(mask, dtype=torch.long) if turn_ids is None else turn_ids,
        **{**CLIP, **options},
    )
    return loss.detach(), torch.autograd.grad(loss, logp)[0]


@settings(deadline=None, max_examples=40)
@given(_batches(), st.sampled_from(LEVELS))
def test_padding_never_changes_the_loss_even_when_it_holds_nan(batch, level):
    logp, old, advantages, mask = batch
    loss, grad = _value_and_grad(*batch, level=level)
    nan = torch.full((len(logp), 2), float("nan"), dtype=logp.dtype)
    wide = [torch.cat([torch.where(mask, x, float("nan")), nan], dim=1) for x in (logp, old)]
    wide_mask = torch.cat([mask, torch.zeros_like(mask[:, :1]).expand(-1, 2)], dim=1)
    padded_loss, padded_grad = _value_and_grad(*wide, advantages, wide_mask, level=level)
    torch.testing.assert_close(padded_loss, loss)
    torch.testing.assert_close(padded_grad[:, : mask.shape[1]], grad)
    assert bool((padded_grad[:, mask.shape[1] :] == 0).all())


@settings(deadline=None, max_examples=25)
@given(_batches(), st.sampled_from(LEVELS))
def test_micro_batches_with_the_global_denominator_add_up_to_the_whole(batch, level):
    logp, old, advantages, mask = batch
    loss, grad = _value_and_grad(*batch, level=level)
    parts = [
        _value_and_grad(
            logp[i : i + 1], old[i : i + 1], advantages[i : i + 1], mask[i : i + 1], level=level,
            num_trajectories=len(logp),
        )
        for i in range(len(logp))
    ]  # fmt: skip
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), grad)


@settings(deadline=None, max_examples=25)
@given(_batches())
def test_on_policy_the_gradient_is_minus_advantage_times_the_mean_log_prob(batch):
    logp, _, advantages, mask = batch
    _, grad = _value_and_grad(logp, logp, advantages, mask)
    expected = -(advantages / len(logp))[:, None] * mask / mask.sum(dim=1, keepdim=True)
    torch.testing.assert_close(grad, expected)


@settings(deadline=None, max_examples=25)
@given(_batches())
def test_with_one_turn_turn_level_is_sequence_level(batch):
    for got, expected in zip(_value_and_grad(*batch, level="turn"), _value_and_grad(*batch), strict=True):
        torch.testing.assert_close(got, expected)


@settings(deadline=None, max_examples=25)
@given(_batches())
def test_gspo_token_has_the_value_and_gradient_of_gspo_for_equal_advantages(batch):
    for got, expected in zip(_value_and_grad(*batch, level="sequence_token"), _value_and_grad(*batch), strict=True):
        torch.testing.assert_close(got, expected)


def test_with_one_token_every_level_is_the_same():
    one = (torch.tensor([[-1.0], [-0.5]]), torch.tensor([[-1.02], [-0.7]]), torch.tensor([1.0, -1.0]))
    results = [_value_and_grad(*one, torch.ones(2, 1, dtype=torch.bool), level=level) for level in LEVELS]
    for loss, grad in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        torch.testing.assert_close(grad, results[0][1])


def test_a_turn_ratio_is_the_mean_over_its_own_tokens():
    logp = torch.tensor([[0.1, 0.3, 0.5]])
    ratio = log_ratio(
        logp, torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), level="turn", turn_ids_BT=torch.tensor([[0, 0, 1]])
    )
    torch.testing.assert_close(ratio, torch.tensor([[0.2, 0.2, 0.5]]))


def test_trajectories_of_2_and_8_tokens_weigh_the_same():
    mask = torch.arange(8)[None, :] < torch.tensor([[2], [8]])
    _, grad = _value_and_grad(torch.zeros(2, 8), torch.zeros(2, 8), torch.tensor([1.0, 1.0]), mask)
    torch.testing.assert_close(grad.sum(dim=1), torch.tensor([-0.5, -0.5]))


def test_a_batch_that_is_clipped_everywhere_has_no_gradient():
    mask = torch.ones(2, 3, dtype=torch.bool)
    _, grad = _value_and_grad(torch.tensor([[1.0] * 3, [-1.0] * 3]), torch.zeros(2, 3), torch.tensor([1.0, -1.0]), mask)
    assert bool((grad == 0).all())


@pytest.mark.parametrize("level", LEVELS)
def test_the_gradient_is_the_slope_of_the_loss(level):
    """Finite differences in float64; at "sequence_token" only value-equal advantages have a slope to compare with."""
    generator = torch.Generator().manual_seed(1)
    logp = torch.randn(3, 4, generator=generator, dtype=torch.float64) * 0.1
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 0]]).bool()
    turn_ids = torch.tensor([[0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]])
    advantages = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return policy_loss(
            x, torch.zeros_like(x), advantages, mask, importance_sampling_level=level, turn_ids_BT=turn_ids,
            clip_low=0.05, clip_high=0.05,
        )[0]  # fmt: skip

    step = 1e-6
    slope = torch.zeros_like(logp)
    for i in range(3):
        for j in range(4):
            e = torch.zeros_like(logp)
            e[i, j] = step
            slope[i, j] = (loss(logp + e) - loss(logp - e)) / (2 * step)
    x = logp.clone().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(loss(x), x)[0], slope, atol=1e-8, rtol=1e-6)


def test_per_token_advantages_reach_their_own_tokens_under_gspo_token():
    logp = torch.zeros(1, 2, requires_grad=True)
    loss, _ = policy_loss(
        logp, torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool),
        importance_sampling_level="sequence_token",
    )  # fmt: skip
    torch.testing.assert_close(torch.autograd.grad(loss, logp)[0], torch.tensor([[-0.5, 0.0]]))


def test_an_unknown_level_and_a_wrong_shape_say_what_is_allowed():
    # Without the shape checker of the tests: this is what a user meets.
    plain = inspect.unwrap(policy_loss)
    logp, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="needs turn_ids_BT"):
        plain(logp, logp, torch.zeros(2), mask, importance_sampling_level="turn")
    with pytest.raises(ValueError, match="allowed: 'trajectory_mean'"):
        plain(logp, logp, torch.zeros(2), mask, reduction="token_mean")
    with pytest.raises(ValueError, match=r"allowed: \[B\]"):
        plain(logp, logp, torch.zeros(3), mask)
    with pytest.raises(ValueError, match="sequence, sequence_token, turn, token"):
        inspect.unwrap(log_ratio)(logp, logp, mask, level="trajectory")


def test_a_group_whose_returns_agree_has_no_advantage_whatever_the_rounding():
    returns = torch.full((8,), 0.1 + 0.2, dtype=torch.float64)
    assert group_z_score(returns).abs().max().item() == 0.0
    with pytest.raises(ValueError, match="at least 2"):
        group_z_score(torch.tensor([1.0]))
    with pytest.raises(ValueError, match="finite"):
        group_z_score(torch.tensor([1.0, float("nan")]))


def test_rows_without_a_sampled_token_do_not_count():
    value = torch.tensor([[2.0, 0.0], [7.0, 7.0]])
    assert trajectory_mean(value, torch.tensor([[True, False], [False, False]])).item() == 2.0
    assert trajectory_mean(value, torch.zeros(2, 2, dtype=torch.bool)).item() == 0.0
    assert sequence_log_ratio(value, value + 1, torch.zeros(2, 2, dtype=torch.bool)).tolist() == [0.0, 0.0]


def test_k3_is_the_expected_divergence_of_two_coins():
    """KL(0.5 || 0.25 heads) = 0.5 ln 2 + 0.5 ln(2/3) = 0.1438410."""
    logp = torch.tensor([0.5, 0.5]).log()
    assert k3(logp, torch.tensor([0.25, 0.75]).log()).mean().item() == pytest.approx(0.1438410, abs=1e-6)


@pytest.mark.parametrize("bias", [False, True])
def test_token_log_probs_equal_log_softmax_in_value_and_gradient(bias, monkeypatch):
    # Two tokens per chunk: the chunk boundary is inside the batch.
    monkeypatch.setattr(sys.modules["gspo_rllib.ops.token_logprobs"], "MAX_CHUNK_ELEMENTS", 22)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    bias_V = torch.randn(11, generator=generator, dtype=torch.float64, requires_grad=True) if bias else None
    ids = torch.randint(0, 11, (7,), generator=generator)
    weights = torch.randn(7, generator=generator, dtype=torch.float64)
    inputs = [x for x in (hidden, head, bias_V) if x is not None]

    logp, entropy = token_logprobs(hidden, head, ids, temperature=0.7, bias_V=bias_V)
    logits = hidden @ head.t() + (bias_V if bias_V is not None else 0)
    table = (logits / 0.7).log_softmax(dim=-1)
    torch.testing.assert_close(logp, table.gather(1, ids[:, None])[:, 0])
    torch.testing.assert_close(entropy, -(table.exp() * table).sum(dim=-1).detach())
    got = torch.autograd.grad((logp * weights).sum(), inputs)
    expected = torch.autograd.grad((table.gather(1, ids[:, None])[:, 0] * weights).sum(), inputs)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_token_log_probs_of_no_token_are_empty():
    logp, entropy = token_logprobs(torch.zeros(0, 4), torch.zeros(3, 4), torch.zeros(0, dtype=torch.long))
    assert logp.shape == entropy.shape == (0,)


def test_token_log_probs_under_autocast_are_those_of_a_bf16_head_in_both_passes():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 16, generator=generator, requires_grad=True)
    head = torch.randn(40, 16, generator=generator, requires_grad=True)
    ids = torch.tensor([3, 7, 39])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp, _ = token_logprobs(hidden, head, ids)
        assert logp.dtype == torch.float32
        logits = (hidden @ head.t()).float()
    expected = logits.log_softmax(-1)[torch.arange(3), ids]
    torch.testing.assert_close(logp, expected)
    got = torch.autograd.grad(logp.sum(), (hidden, head))
    for a, b in zip(got, torch.autograd.grad(expected.sum(), (hidden, head)), strict=True):
        torch.testing.assert_close(a, b, rtol=0.03, atol=0.03)

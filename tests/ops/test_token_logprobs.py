"""Log-probability and entropy of given tokens, against a plain softmax in value and gradient."""

from __future__ import annotations

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gspo_rllib.ops import token_logprobs

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of three tokens and four of eleven words, with smaller ones at both ends."""
    monkeypatch.setattr(sys.modules["gspo_rllib.ops.token_logprobs"], "BLOCK", dict.fromkeys(DEVICES, (3, 12)))


def _inputs(bias: bool, device: str = "cpu") -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (11, 5), (11,)] if bias else [(7, 5), (11, 5)]
    inputs = [torch.randn(*s, generator=generator, dtype=torch.float64).to(device).requires_grad_() for s in shapes]
    weights = torch.randn(2, 7, generator=generator, dtype=torch.float64).to(device)
    return inputs, torch.randint(0, 11, (7,), generator=generator).to(device), weights


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("used", ["logp", "entropy", "both"])
def test_log_probs_and_entropy_equal_a_plain_softmax_in_value_and_gradient(bias, used, device):
    inputs, ids, weights = _inputs(bias, device)
    hidden, head, *bias_V = inputs
    logp, entropy = token_logprobs(hidden, head, ids, temperature=0.7, bias_V=bias_V[0] if bias_V else None)
    table = ((hidden @ head.t() + (bias_V[0] if bias_V else 0)) / 0.7).log_softmax(dim=-1)
    plain_logp, plain_entropy = table.gather(1, ids[:, None])[:, 0], -(table.exp() * table).sum(dim=-1)
    torch.testing.assert_close(logp, plain_logp)
    torch.testing.assert_close(entropy, plain_entropy)

    def loss(logp: torch.Tensor, entropy: torch.Tensor) -> torch.Tensor:
        parts = {"logp": logp @ weights[0], "entropy": entropy @ weights[1]}
        return sum(parts.values()) if used == "both" else parts[used]

    got = torch.autograd.grad(loss(logp, entropy), inputs)
    for a, b in zip(got, torch.autograd.grad(loss(plain_logp, plain_entropy), inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_an_entropy_that_nobody_uses_costs_nothing(monkeypatch):
    """The backward pass is told that there is no gradient for it, and does not compute one from zeros."""
    module = sys.modules["gspo_rllib.ops.token_logprobs"]
    original, seen = module._to_grad, []

    def spy(table, grad_logp, grad_entropy, entropy):
        seen.append((grad_logp is None, grad_entropy is None))
        original(table, grad_logp, grad_entropy, entropy)

    monkeypatch.setattr(module, "_to_grad", spy)
    inputs, ids, _ = _inputs(bias=False)
    logp, entropy = token_logprobs(*inputs, ids)
    torch.autograd.grad(logp.sum() + entropy.detach().sum(), inputs, retain_graph=True)
    torch.autograd.grad(entropy.sum(), inputs)
    assert seen == [(False, True), (True, False)]


class _LargestTensor(TorchDispatchMode):
    """Notes the most elements any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_pass_ever_holds_the_logits_of_all_tokens(monkeypatch):
    monkeypatch.setattr(sys.modules["gspo_rllib.ops.token_logprobs"], "BLOCK", {"cpu": (50, 4000)})
    hidden, head = torch.randn(200, 4, requires_grad=True), torch.randn(500, 4, requires_grad=True)
    with _LargestTensor() as largest:
        logp, entropy = token_logprobs(hidden, head, torch.arange(200))
        (logp.sum() + entropy.sum()).backward()
    assert largest.numel == 50 * 80


def test_large_logits_keep_their_precision():
    """An offset of all logits changes nothing, whatever its size beside their differences."""
    hidden = torch.tensor([[300.0, 1.0]])
    head = torch.cat([torch.ones(64, 1), torch.linspace(-1.0, 1.0, 64)[:, None]], dim=1)
    logp, entropy = token_logprobs(hidden, head, torch.tensor([5]))
    table = (hidden.double() @ head.double().t()).log_softmax(-1)
    assert abs(logp.item() - table[0, 5].item()) < 1e-4
    assert abs(entropy.item() + (table.exp() * table).sum().item()) < 1e-5


def test_the_entropy_of_a_uniform_distribution_is_log_v_and_cannot_grow():
    head = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    _, entropy = token_logprobs(torch.ones(2, 3, dtype=torch.float64), head, torch.tensor([0, 7]))
    assert entropy.tolist() == pytest.approx([2.0794415] * 2)
    assert torch.autograd.grad(entropy.sum(), head)[0].abs().max().item() < 1e-15


def test_log_probs_of_no_token_are_empty():
    logp, entropy = token_logprobs(torch.zeros(0, 4), torch.zeros(3, 4), torch.zeros(0, dtype=torch.long))
    assert logp.shape == entropy.shape == (0,)


def test_under_autocast_they_are_those_of_a_bf16_head_in_both_passes():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 16, generator=generator, requires_grad=True)
    head = torch.randn(40, 16, generator=generator, requires_grad=True)
    ids = torch.tensor([3, 7, 39])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp, entropy = token_logprobs(hidden, head, ids)
        assert logp.dtype == entropy.dtype == torch.float32
        table = (hidden @ head.t()).float().log_softmax(-1)
    plain_logp, plain_entropy = table[torch.arange(3), ids], -(table.exp() * table).sum(-1)
    torch.testing.assert_close(logp, plain_logp)
    torch.testing.assert_close(entropy, plain_entropy)
    got = torch.autograd.grad(logp.sum() + entropy.sum(), (hidden, head))
    expected = torch.autograd.grad(plain_logp.sum() + plain_entropy.sum(), (hidden, head))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0.03, atol=0.03)


def test_a_frozen_head_costs_no_gradient_and_changes_none(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 8, generator=generator, requires_grad=True)
    head = torch.randn(40, 8, generator=generator, requires_grad=True)
    tokens = torch.arange(5)
    module = sys.modules["gspo_rllib.ops.token_logprobs"]
    gradients, shapes, add = [], [], module._add_product
    monkeypatch.setattr(module, "_add_product", lambda total, *pair: shapes.append(total.shape) or add(total, *pair))
    for frozen in (False, True):
        head.requires_grad_(not frozen)
        gradients.append(torch.autograd.grad(token_logprobs(hidden, head, tokens)[0].sum(), hidden)[0])
    torch.testing.assert_close(*gradients)
    assert shapes == [(5, 8), (40, 8), (5, 8)]

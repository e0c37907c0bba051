"""Divergence estimators, against numbers that follow from two small distributions."""

from __future__ import annotations

import math

import pytest
import torch

from gspo_rllib.ops import KL_ESTIMATORS, k1, k2, k3, kl_estimate

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
Q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
KL_PQ = 0.5 * math.log(2) + 0.3 * math.log(1.2) + 0.2 * math.log(0.4)
"""0.2180120 nats."""


def test_k1_and_k3_have_the_exact_divergence_as_expectation():
    """Over all three tokens, each as often as p samples it."""
    assert pytest.approx(0.2180120, abs=1e-7) == KL_PQ
    for estimator in ("k1", "k3"):
        assert (P * kl_estimate(P.log(), Q.log(), estimator=estimator)).sum().item() == pytest.approx(KL_PQ, abs=1e-12)


def test_k2_approximates_the_divergence_of_near_policies_and_neither_k2_nor_k3_is_negative():
    """q = p (1 + d) with d of 1 %: KL = sum p d^2 / 2 up to third order = 1e-4 / 2 (0.5 + 0.3 + 0.2) = 5e-5."""
    near = P * torch.tensor([1.01, 0.99, 0.99], dtype=torch.float64)
    assert (P * k2(P.log(), near.log())).sum().item() == pytest.approx(5e-5, rel=0.02)
    assert bool((k2(P.log(), Q.log()) > 0).all()) and bool((k3(P.log(), Q.log()) > 0).all())
    assert bool((k1(P.log(), Q.log()) < 0).any())


def test_k3_is_the_expected_divergence_of_two_coins():
    """KL(0.5 || 0.25 heads) = 0.5 ln 2 + 0.5 ln(2/3) = 0.1438410."""
    logp = torch.tensor([0.5, 0.5]).log()
    assert k3(logp, torch.tensor([0.25, 0.75]).log()).mean().item() == pytest.approx(0.1438410, abs=1e-6)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_in_a_loss_k1_pulls_nowhere_k2_along_kl_p_q_and_k3_along_kl_q_p(estimator):
    """Expected gradient over tokens that p samples, with respect to p's logits; the samples are held fixed.

    k1: sum p grad log p = 0. KL(p || q): p_j (log p_j/q_j - KL). KL(q || p): p_j - q_j.
    """
    logits = P.log().clone().requires_grad_()
    estimate = kl_estimate(logits.log_softmax(0), Q.log(), estimator=estimator)
    got = torch.autograd.grad((P * estimate).sum(), logits)[0]
    expected = {"k1": torch.zeros(3, dtype=torch.float64), "k2": P * ((P / Q).log() - KL_PQ), "k3": P - Q}[estimator]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_k3_stays_finite_in_float32_where_the_policies_share_no_token():
    estimate = k3(torch.tensor([-500.0, 0.0]), torch.tensor([0.0, -500.0]))
    assert bool(torch.isfinite(estimate).all())
    assert estimate[1].item() == 499.0

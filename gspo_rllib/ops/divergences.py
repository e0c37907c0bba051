"""How far two policies are apart on the tokens that were sampled.

Shapes:  elementwise; any shape of sampled tokens.
Source:  Schulman 2020, "Approximating KL divergence" (k1, k2, k3).

All three estimate KL(sampling policy || other) in value: k1 and k3 without bias, k2 up to third order. Their gradients
differ when they stand in a loss: k1's is 0 in expectation, k2's is that of KL(policy || other), k3's that of
KL(other || policy). Inputs must be numbers: take the sampled tokens out of the padding first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
"""Which per-token estimate of the divergence; each one's function is below."""

_MAX_LOG_RATIO = 80.0


def k1(logp: Float[Tensor, "*shape"], other_logp: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log p - log q: unbiased, of either sign. For a reward; in a loss its expected gradient is 0.

    Args:
        logp: Log-probabilities (nats) of the sampled tokens under the policy that sampled them.
        other_logp: The same tokens under the other policy.

    Example:
        >>> k1(torch.tensor([-1.0]), torch.tensor([-1.5]))
        tensor([0.5000])
    """
    return logp - other_logp


def k2(logp: Float[Tensor, "*shape"], other_logp: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """(log p - log q)^2 / 2: never negative, slightly biased; in a loss it has the gradient of KL(p || q).

    Args:
        logp: Log-probabilities (nats) of the sampled tokens under the policy that sampled them.
        other_logp: The same tokens under the other policy.

    Example:
        >>> k2(torch.tensor([-1.0]), torch.tensor([-1.5]))
        tensor([0.1250])
    """
    return 0.5 * (logp - other_logp).square()


def k3(logp: Float[Tensor, "*shape"], other_logp: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """q/p - 1 - log(q/p): unbiased, never negative, low variance; in a loss it has the gradient of KL(q || p).

    Args:
        logp: Log-probabilities (nats) of the sampled tokens under the policy that sampled them.
        other_logp: The same tokens under the other policy.

    Example:
        >>> k3(torch.tensor([0.0]), torch.tensor([0.0]))
        tensor([0.])
    """
    log_ratio = other_logp - logp
    return torch.expm1(log_ratio.clamp(max=_MAX_LOG_RATIO)) - log_ratio


@dataclasses.dataclass(frozen=True)
class KLEstimatorTraits:
    """What follows from an estimator of the divergence.

    Attributes:
        estimate: The two policies' log-probabilities -> the estimate per token.
        penalises_in_loss: Whether its gradient, in a loss, pulls towards the other policy.
    """

    estimate: Callable[[Tensor, Tensor], Tensor]
    penalises_in_loss: bool = True


KL_ESTIMATORS: dict[str, KLEstimatorTraits] = {
    "k1": KLEstimatorTraits(k1, penalises_in_loss=False),
    "k2": KLEstimatorTraits(k2),
    "k3": KLEstimatorTraits(k3),
}
"""Every ``KLEstimator`` and what follows from it."""


def kl_estimate(
    logp: Float[Tensor, "*shape"], other_logp: Float[Tensor, "*shape"], *, estimator: KLEstimator = "k3"
) -> Float[Tensor, "*shape"]:
    """Per-token estimate of KL(sampling policy || other), by name.

    Args:
        logp: Log-probabilities (nats) of the sampled tokens under the policy that sampled them.
        other_logp: The same tokens under the other policy.
        estimator: ``"k1"`` | ``"k2"`` | ``"k3"``.

    Raises:
        ValueError: An unknown estimator.

    Example:
        >>> kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.5]), estimator="k1")
        tensor([0.5000])
    """
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"estimator={estimator!r}; allowed: {', '.join(KL_ESTIMATORS)}")
    return KL_ESTIMATORS[estimator].estimate(logp, other_logp)

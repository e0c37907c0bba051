"""How far two policies are apart on the tokens that were sampled.

Shapes:  L sampled tokens.
Source:  Schulman 2020, "Approximating KL divergence" (the k3 estimator).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def k3(logp_L: Float[Tensor, " L"], other_logp_L: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """Per-token estimate of KL(sampling policy || other), where ``logp_L`` sampled; never negative, low variance.

    Args:
        logp_L: Log-probabilities (nats) under the policy that sampled the tokens.
        other_logp_L: The same tokens under the other policy.

    Example:
        >>> k3(torch.tensor([0.0]), torch.tensor([0.0]))
        tensor([0.])
    """
    log_ratio_L = other_logp_L - logp_L
    return torch.expm1(log_ratio_L) - log_ratio_L

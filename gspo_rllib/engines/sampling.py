"""Draws one token per request, each from its own random numbers.

Shapes:  N requests · V vocabulary.

The draw inverts the cumulative distribution at a uniform number that belongs to the request, so one number per token is
enough and nothing else in the batch can change what a request samples.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def sample_tokens(
    logits_NV: Float[Tensor, "N V"],
    temperature_N: Float[Tensor, " N"],
    uniform_N: Float[Tensor, " N"],
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """Samples from softmax(logits / temperature), and says how likely each sample was.

    Args:
        logits_NV: Logits of any float dtype; what follows is computed in float32.
        temperature_N: Temperature of each request, >= 0; 0 picks the most likely id.
        uniform_N: A uniform random number of each request, in [0, 1), float64.

    Returns:
        The sampled ids, int64, and their log-probabilities (nats) in float32 under the distribution they were drawn
        from; at temperature 0, under the temperature-1 distribution.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 3.0]])
        >>> token, logp = sample_tokens(logits, torch.tensor([1.0, 0.0]), torch.tensor([0.4, 0.4]).double())
        >>> token.tolist(), [round(x, 4) for x in logp.tolist()]
        ([0, 1], [-0.6931, -0.0486])
    """
    greedy_N = temperature_N == 0
    scale_N1 = torch.where(greedy_N, 1.0, temperature_N).unsqueeze(1)
    logp_NV = torch.log_softmax(logits_NV.float() / scale_N1, dim=-1)
    # float64: in float32 the rounding of a 150k-term sum would move mass between tokens.
    cdf_NV = torch.cumsum(logp_NV.exp(), dim=-1, dtype=torch.float64)
    target_N1 = uniform_N.unsqueeze(1) * cdf_NV[:, -1:]
    token_N1 = torch.searchsorted(cdf_NV, target_N1, right=True).clamp_(max=logits_NV.shape[-1] - 1)
    token_N1 = torch.where(greedy_N.unsqueeze(1), logp_NV.argmax(dim=-1, keepdim=True), token_N1)
    return token_N1.squeeze(1), logp_NV.gather(1, token_N1).squeeze(1)

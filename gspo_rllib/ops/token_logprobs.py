"""Log-probabilities of given tokens from hidden states, without ever holding ``[tokens, vocabulary]``.

Shapes:  L tokens that carry loss · D hidden · V vocabulary.
The forward pass walks the tokens in chunks and keeps one number per token; the backward pass computes each chunk's
logits again. Peak memory is one chunk of logits instead of all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_CHUNK_ELEMENTS = 1 << 22
"""Logits alive at once (16 MiB in float32): large enough for full matrix-multiplication speed, small beside a model."""


def token_logprobs(
    hidden_LD: Float[Tensor, "L D"],
    head_VD: Float[Tensor, "V D"],
    token_ids_L: Int[Tensor, " L"],
    *,
    temperature: float = 1.0,
    bias_V: Float[Tensor, " V"] | None = None,
) -> tuple[Float[Tensor, " L"], Float[Tensor, " L"]]:
    """log softmax(hidden · headᵀ / temperature) at the given tokens, and the entropy of each distribution.

    Args:
        hidden_LD: Hidden states that predict the tokens; differentiable.
        head_VD: Weight of the language-model head; differentiable.
        token_ids_L: The tokens.
        temperature: Divides the logits, > 0.
        bias_V: Bias of the head, if it has one; differentiable.

    Returns:
        ``(logp_L, entropy_L)`` in float32 nats (float64 for float64 inputs), both differentiable; the entropy's
        gradient costs nothing where nobody asks for it.
    """
    if bias_V is not None:
        # A bias is one more input that is always 1.
        hidden_LD = torch.cat([hidden_LD, hidden_LD.new_ones(hidden_LD.shape[0], 1)], dim=1)
        head_VD = torch.cat([head_VD, bias_V.unsqueeze(1)], dim=1)
    device_type = hidden_LD.device.type
    if torch.is_autocast_enabled(device_type):
        hidden_LD = hidden_LD.to(torch.get_autocast_dtype(device_type))
    # Autocast is off in the backward pass; the logits computed again there must be the ones of the forward pass.
    with torch.autocast(device_type, enabled=False):
        logp_L, entropy_L = _TokenLogprobs.apply(hidden_LD, head_VD, token_ids_L, temperature)
    return logp_L, entropy_L


def _chunks(num_tokens: int, vocabulary: int) -> list[slice]:
    size = max(1, MAX_CHUNK_ELEMENTS // vocabulary)
    return [slice(start, start + size) for start in range(0, num_tokens, size)]


def _logits(hidden: Tensor, head_VD: Tensor, temperature: float) -> Tensor:
    logits = (hidden @ head_VD.t()).to(torch.promote_types(hidden.dtype, torch.float32))
    return logits if temperature == 1.0 else logits.div_(temperature)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_LD: Tensor, head_VD: Tensor, token_ids_L: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        head = head_VD.to(hidden_LD.dtype)
        dtype = torch.promote_types(hidden_LD.dtype, torch.float32)
        logp_L = hidden_LD.new_empty(hidden_LD.shape[0], dtype=dtype)
        entropy_L = torch.empty_like(logp_L)
        normaliser_L = torch.empty_like(logp_L)
        for part in _chunks(hidden_LD.shape[0], head.shape[0]):
            logits = _logits(hidden_LD[part], head, temperature)
            normaliser = torch.logsumexp(logits, dim=-1)
            logp_L[part] = logits.gather(1, token_ids_L[part, None]).squeeze(1) - normaliser
            normaliser_L[part] = normaliser
            probs = (logits - normaliser[:, None]).exp_()
            entropy_L[part] = normaliser - (probs.mul_(logits)).sum(dim=-1)
        ctx.save_for_backward(hidden_LD, head_VD, token_ids_L, normaliser_L, entropy_L)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logp_L, entropy_L

    @staticmethod
    def backward(
        ctx: Any, grad_logp_L: Tensor | None, grad_entropy_L: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        if grad_logp_L is None and grad_entropy_L is None:
            return None, None, None, None
        hidden_LD, head_VD, token_ids_L, normaliser_L, entropy_L = ctx.saved_tensors
        head = head_VD.to(hidden_LD.dtype)
        grad_hidden_LD = torch.empty_like(hidden_LD)
        grad_head_VD = torch.zeros_like(head_VD)
        for part in _chunks(hidden_LD.shape[0], head.shape[0]):
            table = _logits(hidden_LD[part], head, ctx.temperature).sub_(normaliser_L[part, None])
            grad_logits = _grad_logits(
                table,
                token_ids_L[part, None],
                None if grad_logp_L is None else grad_logp_L[part, None],
                None if grad_entropy_L is None else grad_entropy_L[part, None],
                entropy_L[part, None],
            )
            grad_logits = grad_logits.div_(ctx.temperature).to(hidden_LD.dtype)
            grad_hidden_LD[part] = grad_logits @ head
            grad_head_VD += (grad_logits.t() @ hidden_LD[part]).to(grad_head_VD.dtype)
        return grad_hidden_LD, grad_head_VD, None, None


def _grad_logits(
    table: Tensor, token_ids: Tensor, grad_logp: Tensor | None, grad_entropy: Tensor | None, entropy: Tensor
) -> Tensor:
    """One chunk's gradient with respect to its logits; ``table`` holds log p [chunk, V] and is used up."""
    if grad_entropy is None:
        # d log p_token / d logit_j = [j = token] - p_j
        assert grad_logp is not None
        grad = table.exp_().mul_(-grad_logp)
    else:
        # d H / d logit_j = -p_j (log p_j + H)
        pull = table.add(entropy).mul_(grad_entropy)
        if grad_logp is not None:
            pull.add_(grad_logp)
        grad = table.exp_().mul_(pull).neg_()
    return grad if grad_logp is None else grad.scatter_add_(1, token_ids, grad_logp)

"""Log-probabilities of given tokens from hidden states, without ever holding ``[tokens, vocabulary]``.

Shapes:  L tokens that carry loss · D hidden · V vocabulary · R tokens and C words of one block of logits.
Both passes walk the vocabulary in blocks and, within, the tokens. The forward pass keeps a running log-sum-exp and
entropy per token; the backward pass computes each block's logits again. On a CPU a block stays in the cache, so that
element-wise work on it costs little, and the words' part of the head is read once for all tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

BLOCK = {"cpu": (2048, 1 << 19)}
"""By type of device: most tokens of a block, and most logits: 2 MiB in float32, what a core's own cache holds."""

OTHER_BLOCK = (4096, 1 << 26)
"""The same on accelerators, which need larger multiplications to be busy: 256 MiB."""

_compiled: list[Any] = []
"""``_absorb`` and ``_to_logits_grad`` as this process has compiled them, for accelerators."""


def compile_head(backend: str, mode: str | None) -> None:
    """From now on this process compiles what is computed element by element on an accelerator.

    Args:
        backend: Name that ``torch.compile`` knows.
        mode: The same; None for its default.
    """
    compiled = (torch.compile(part, dynamic=True, backend=backend, mode=mode) for part in (_absorb, _to_logits_grad))
    _compiled[:] = compiled


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
        token_ids_L: The token ids whose log-probabilities are wanted.
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
        # torch gives apply no types.
        logp_L, entropy_L = _TokenLogprobs.apply(hidden_LD, head_VD, token_ids_L, temperature)  # type: ignore[no-untyped-call]
    return logp_L, entropy_L


def _slices(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def _blocks(hidden_LD: Tensor, head_VD: Tensor) -> tuple[list[slice], list[slice]]:
    """``(words, tokens)``: how the vocabulary and the tokens are cut."""
    tokens, elements = BLOCK.get(hidden_LD.device.type, OTHER_BLOCK)
    tokens = max(1, min(tokens, hidden_LD.shape[0]))
    return _slices(head_VD.shape[0], max(1, elements // tokens)), _slices(hidden_LD.shape[0], tokens)


def _logits(product_RC: Tensor, temperature: float) -> Tensor:
    logits_RC = product_RC.to(torch.promote_types(product_RC.dtype, torch.float32))
    return logits_RC if temperature == 1.0 else logits_RC.div_(temperature)


def _place(token_ids_R: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Whether each token is one of ``size`` words from ``start`` [R, 1], and its column among them (else any)."""
    column_R1 = (token_ids_R - start)[:, None]
    return (column_R1 >= 0) & (column_R1 < size), column_R1.clamp(0, size - 1)


def _absorb(
    product_RC: Tensor, token_ids_R: Tensor, start: int, temperature: float,
    chosen_R1: Tensor, peak_R1: Tensor, total_R1: Tensor, weighted_R1: Tensor,
) -> None:  # fmt: skip
    """Adds a block of logits to what is known of the words so far; element-wise, to be compiled where that pays."""
    logits = _logits(product_RC, temperature)
    inside, column = _place(token_ids_R, start, logits.shape[1])
    chosen_R1.copy_(torch.where(inside, logits.gather(1, column), chosen_R1))
    peak = torch.maximum(peak_R1, logits.amax(dim=-1, keepdim=True))
    weight = logits.sub_(peak).exp()
    rise = peak - peak_R1
    shrink = (-rise).exp()
    shrunk = shrink * total_R1
    weighted = (weight * logits).sum(dim=-1) if torch.compiler.is_compiling() else torch.linalg.vecdot(weight, logits)
    weighted_R1.copy_(shrink * weighted_R1 - shrunk * rise).add_(weighted[:, None])
    total_R1.copy_(shrunk + weight.sum(dim=-1, keepdim=True))
    peak_R1.copy_(peak)


def _to_logits_grad(
    product_RC: Tensor, token_ids_R: Tensor, start: int, temperature: float, normaliser_R1: Tensor, entropy_R1: Tensor,
    grad_logp_R1: Tensor | None, grad_entropy_R1: Tensor | None,
) -> Tensor:  # fmt: skip
    """The loss's gradient with respect to a block of logits before the temperature, in the logits' own precision."""
    table = _logits(product_RC, temperature).sub_(normaliser_R1)
    _to_grad(table, grad_logp_R1, grad_entropy_R1, entropy_R1)
    if grad_logp_R1 is not None:
        if torch.compiler.is_compiling():  # what can be fused: a scatter would write the block once more
            column = torch.arange(table.shape[1], device=table.device) + start
            table = table + torch.where(column == token_ids_R[:, None], grad_logp_R1, 0.0)
        else:
            inside, column = _place(token_ids_R, start, table.shape[1])
            table.scatter_add_(1, column, torch.where(inside, grad_logp_R1, 0.0))
    return table.to(product_RC.dtype)


def _parts(hidden_LD: Tensor) -> Any:
    return _compiled if _compiled and hidden_LD.device.type != "cpu" else (_absorb, _to_logits_grad)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_LD: Tensor, head_VD: Tensor, token_ids_L: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(hidden_LD.dtype, torch.float32)
        chosen_L1 = hidden_LD.new_zeros((hidden_LD.shape[0], 1), dtype=dtype)
        # Of the words so far: largest logit, sum of exp(logit - peak), and that sum weighted with logit - peak.
        peak_L1 = torch.full_like(chosen_L1, torch.finfo(dtype).min)
        total_L1, weighted_L1 = torch.zeros_like(chosen_L1), torch.zeros_like(chosen_L1)
        all_words, all_tokens = _blocks(hidden_LD, head_VD)
        absorb, _ = _parts(hidden_LD)
        for words in all_words:
            head_CD = head_VD[words].to(hidden_LD.dtype)
            for tokens in all_tokens:
                sums = (chosen_L1[tokens], peak_L1[tokens], total_L1[tokens], weighted_L1[tokens])
                absorb(hidden_LD[tokens] @ head_CD.t(), token_ids_L[tokens], words.start, temperature, *sums)
        log_total_L1 = total_L1.log()
        normaliser_L1, entropy_L1 = peak_L1 + log_total_L1, log_total_L1 - weighted_L1 / total_L1
        ctx.save_for_backward(hidden_LD, head_VD, token_ids_L, normaliser_L1, entropy_L1)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return (chosen_L1 - normaliser_L1).squeeze(1), entropy_L1.squeeze(1)

    @staticmethod
    def backward(
        ctx: Any, grad_logp_L: Tensor | None, grad_entropy_L: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        if grad_logp_L is None and grad_entropy_L is None:
            return None, None, None, None
        hidden_LD, head_VD, token_ids_L, normaliser_L1, entropy_L1 = ctx.saved_tensors
        # Per unit of logit before the temperature.
        grad_logp_L1, grad_entropy_L1 = (
            None if grad is None else (grad / ctx.temperature)[:, None] for grad in (grad_logp_L, grad_entropy_L)
        )
        grad_hidden_LD = torch.zeros_like(hidden_LD, dtype=normaliser_L1.dtype)
        # A head that is not trained, as large as it is, needs none.
        grad_head_VD = torch.zeros_like(head_VD) if ctx.needs_input_grad[1] else None
        all_words, all_tokens = _blocks(hidden_LD, head_VD)
        _, to_logits_grad = _parts(hidden_LD)
        for words in all_words:
            head_CD = head_VD[words].to(hidden_LD.dtype)
            for tokens in all_tokens:
                grad_logits = to_logits_grad(
                    hidden_LD[tokens] @ head_CD.t(),
                    token_ids_L[tokens],
                    words.start,
                    ctx.temperature,
                    normaliser_L1[tokens],
                    entropy_L1[tokens],
                    None if grad_logp_L1 is None else grad_logp_L1[tokens],
                    None if grad_entropy_L1 is None else grad_entropy_L1[tokens],
                )
                _add_product(grad_hidden_LD[tokens], grad_logits, head_CD)
                if grad_head_VD is not None:
                    _add_product(grad_head_VD[words], grad_logits.t(), hidden_LD[tokens])
        return grad_hidden_LD.to(hidden_LD.dtype), grad_head_VD, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``; sums of low-precision products are kept in the precision of the total."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _to_grad(table_RC: Tensor, grad_logp_R1: Tensor | None, grad_entropy_R1: Tensor | None, entropy_R1: Tensor) -> None:
    """Replaces log p by the loss's gradient with respect to the logits, without the chosen tokens' own part."""
    if grad_entropy_R1 is None:
        # d log p_token / d logit_j = [j = token] - p_j
        assert grad_logp_R1 is not None
        table_RC.exp_().mul_(-grad_logp_R1)
    else:
        # d H / d logit_j = -p_j (log p_j + H)
        pull = table_RC.add(entropy_R1).mul_(grad_entropy_R1)
        if grad_logp_R1 is not None:
            pull.add_(grad_logp_R1)
        table_RC.exp_().mul_(pull).neg_()

"""Attention of a packed row on a GPU: one call of variable-length flash attention for all segments of a row.

A call per segment, as on a CPU, leaves a GPU waiting for launches. Segments that continue a shared one (branches) cost
a second call, in which each attends to all of its prefix. Both calls are merged by their log-sum-exps; given the merged
output and log-sum-exp, flash attention's own backward yields each part's exact gradients.

Shapes: H query heads · J key-value heads · T tokens of the row · D head dimension.
Source: the merge is that of Liu et al. 2023, arXiv:2310.01889v4 (ring attention), over two blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MOST_HEAD_DIM = 256
"""What flash attention's kernels take at most; they also want a multiple of 8."""

_flash = torch.ops.aten._flash_attention_forward
_flash_backward = torch.ops.aten._flash_attention_backward


@dataclass(frozen=True, slots=True)
class _Spans:
    """One call: where the queries and the keys of each member begin and end.

    Attributes:
        query_edge: int32 [members + 1], from 0.
        key_edge: The same of the keys.
        longest_query: Tokens.
        longest_key: Tokens.
    """

    query_edge: Tensor
    key_edge: Tensor
    longest_query: int
    longest_key: int


@dataclass(frozen=True, slots=True)
class _Calls:
    """The attention calls of a row.

    Attributes:
        own: Every segment attends to itself.
        continued: Branches attend to their prefixes; None where nothing is shared.
        branch_cell: int64, the row's cells that are of branches, in order.
        prefix_cell: int64, the row's cells that are of prefixes with branches, in order.
    """

    own: _Spans
    continued: _Spans | None = None
    branch_cell: Tensor | None = None
    prefix_cell: Tensor | None = None


def serves(query: Tensor, value: Tensor) -> bool:
    """Whether the kernel takes these tensors, as they are or as autocast would make them."""
    width = query.shape[-1]
    return (
        query.is_cuda
        and serves_dtype(_dtype(query), query.device)
        and width == value.shape[-1] <= MOST_HEAD_DIM
        and width % 8 == 0
    )


def serves_dtype(dtype: torch.dtype | None, device: torch.device) -> bool:
    """Whether a device has the kernel for tensors of this type."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16) and _is_new_enough(device)


@cache
def _is_new_enough(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    segment_lengths: Sequence[int],
    segment_prefixes: Sequence[int] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Attention of one packed row.

    Args:
        query: [1, H, T, D].
        key: [1, J, T, D].
        value: [1, J, T, D].
        segment_lengths: Tokens of each segment, in row order; sums to T.
        segment_prefixes: For each segment the index of the segment it continues, or -1. A prefix continues nothing.
        scaling: Factor on the dot products; None for 1/sqrt(D).
        sliding_window: Keys further back than this are not attended to; no branch is longer with its prefix than that.

    Returns:
        [1, T, H, D], in the precision the kernel computed in.
    """
    dtype = _dtype(query)
    calls = _calls(tuple(segment_lengths), tuple(segment_prefixes or ()), query.device)
    window = -1 if sliding_window is None else sliding_window - 1
    rows = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    out: Tensor = _VarlenAttention.apply(*rows, calls, scaling, window)  # type: ignore[no-untyped-call]  # torch's
    return out.unsqueeze(0)


def _dtype(tensor: Tensor) -> torch.dtype:
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


# Every layer of every pass over a row asks for the same; making it again would wait for the GPU.
@lru_cache(maxsize=8)
def _calls(lengths: tuple[int, ...], prefixes: tuple[int, ...], device: torch.device) -> _Calls:
    own = _spans(lengths, lengths, device)
    if max(prefixes, default=-1) < 0:
        return _Calls(own)
    ends = list(itertools.accumulate(lengths))
    cells = [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    branch_cells, prefix_cells = [], []
    for prefix, neighbours in itertools.groupby(range(len(cells)), key=prefixes.__getitem__):
        branches = list(neighbours)
        if prefix >= 0:
            branch_cells.append(range(cells[branches[0]].start, cells[branches[-1]].stop))
            prefix_cells.append(cells[prefix])
    return _Calls(
        own,
        _spans([len(c) for c in branch_cells], [len(c) for c in prefix_cells], device),
        torch.tensor([i for c in branch_cells for i in c], device=device),
        torch.tensor([i for c in prefix_cells for i in c], device=device),
    )


def _spans(queries: Sequence[int], keys: Sequence[int], device: torch.device) -> _Spans:
    query_edge, key_edge = (
        torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)
        for lengths in (queries, keys)
    )
    return _Spans(query_edge, key_edge, max(queries), max(keys))


class _VarlenAttention(torch.autograd.Function):
    """[T, H, D] and [T, J, D] -> [T, H, D]."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, calls: _Calls, scaling: float | None, window: int
    ) -> Tensor:
        query, key, value = map(_rows_dense, (query, key, value))
        out, lse_HT, *random = _forward(query, key, value, calls.own, True, scaling, window)
        if calls.continued is not None:
            branch, prefix = calls.branch_cell, calls.prefix_cell
            part, part_lse, *_ = _forward(query[branch], key[prefix], value[prefix], calls.continued, False, scaling)
            own_lse = lse_HT[:, branch]
            merged_lse = torch.logaddexp(own_lse, part_lse)
            own_weight, weight = ((lse - merged_lse).exp().t().unsqueeze(-1) for lse in (own_lse, part_lse))
            out[branch] = (out[branch] * own_weight + part * weight).to(out.dtype)
            lse_HT[:, branch] = merged_lse
        ctx.save_for_backward(query, key, value, out, lse_HT, *random)
        ctx.calls, ctx.scaling, ctx.window = calls, scaling, window
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse_HT, *random = ctx.saved_tensors
        calls, grad = ctx.calls, _rows_dense(grad)
        totals = _backward(
            grad, query, key, value, out, lse_HT, calls.own, True, ctx.scaling, random, ctx.window
        )  # fmt: skip
        if calls.continued is not None:
            branch, prefix = calls.branch_cell, calls.prefix_cell
            parts = _backward(
                grad[branch], query[branch], key[prefix], value[prefix], out[branch], lse_HT[:, branch].contiguous(),
                calls.continued, False, ctx.scaling, random,
            )  # fmt: skip
            for total, cells, part in zip(totals, (branch, prefix, prefix), parts, strict=True):
                total.index_add_(0, cells, part)  # no cell is there twice
        return *totals, None, None, None


def _forward(
    query: Tensor, key: Tensor, value: Tensor, spans: _Spans, causal: bool, scaling: float | None, window: int = -1
) -> tuple[Tensor, ...]:
    """Output [T, H, D], log-sum-exps [H, T], and two tensors of dropout's that the backward pass must be given."""
    got = _flash(
        query, key, value, spans.query_edge, spans.key_edge, spans.longest_query, spans.longest_key, 0.0, causal, False,
        scale=scaling, window_size_left=window, window_size_right=0 if causal else -1,
    )  # fmt: skip
    return tuple(got[:4])


def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse_HT: Tensor, spans: _Spans, causal: bool,
    scaling: float | None, random: Sequence[Tensor], window: int = -1,
) -> tuple[Tensor, ...]:  # fmt: skip
    got: tuple[Tensor, ...] = _flash_backward(
        grad, query, key, value, out, lse_HT, spans.query_edge, spans.key_edge, spans.longest_query, spans.longest_key,
        0.0, causal, *random, scale=scaling, window_size_left=window, window_size_right=0 if causal else -1,
    )  # fmt: skip
    return got


def _rows_dense(tensor: Tensor) -> Tensor:
    """The kernels read each token's vector as neighbouring numbers."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()

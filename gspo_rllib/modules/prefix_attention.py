"""Attention, on a CPU, of packed rows in which segments continue a shared one, so that its tokens are computed once.

A segment that continues another, a branch, attends to itself causally and to all of its prefix. Both parts are calls of
flash attention without a mask; their outputs are merged by their log-sum-exps. Given the merged output and log-sum-exp,
flash attention's own backward yields each part's exact gradients.

Shapes: H heads · T tokens of the row · D head dimension.
Source: the merge is that of Liu et al. 2023, arXiv:2310.01889v4 (ring attention), over two blocks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_TOKEN_RATIO = 1.1
"""Where sharing starts to pay: below it, the second attention call costs about what the spared tokens save.

Times faster by this ratio (``benchmarks/prefixes.py``; groups of 8, about 64 sampled tokens each, float32, a busy CPU):
a model of 5 million parameters 0.92 to 0.97 at 1.05, 1.03 at 1.11, 1.18 at 1.18, 1.41 at 1.73 and 2.15 at 3.34; one of
50 million 1.07 at 1.18 and 1.77 at 2.49.
"""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class PrefixSharing:
    """When the trajectories of a group are to share the computation of their prompt.

    Attributes:
        min_token_ratio: Share where tokens without sharing over tokens with it is at least this.
        max_segment_tokens: Longest segment that may share, because the model attends no further back; None for any.
    """

    min_token_ratio: float
    max_segment_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class _Calls:
    """The attention calls of a row; every slice is of its tokens.

    Attributes:
        own: Segments, those of one length together: each attends to itself.
        continued: (prefix, its branches): the branches attend to the whole prefix.
    """

    own: list[list[slice]]
    continued: list[tuple[slice, slice]]


def prefix_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    segment_lengths: list[int],
    segment_prefixes: list[int],
    scaling: float | None = None,
) -> Tensor:
    """Attention of one packed row with shared prefixes.

    Args:
        query: [1, H, T, D].
        key: [1, key-value heads, T, D].
        value: [1, key-value heads, T, D].
        segment_lengths: Tokens of each segment, in row order; sums to T.
        segment_prefixes: For each segment the index of the segment it continues, or -1. A prefix continues nothing.
        scaling: Factor on the dot products; None for 1/sqrt(D).

    Returns:
        [1, H, T, D].
    """
    device = query.device.type
    if torch.is_autocast_enabled(device):
        # The same casts that autocast makes for scaled_dot_product_attention.
        query, key, value = (tensor.to(torch.get_autocast_dtype(device)) for tensor in (query, key, value))
    calls = _calls(segment_lengths, segment_prefixes)
    out: Tensor = _PrefixAttention.apply(query, key, value, calls, scaling)  # type: ignore[no-untyped-call]  # torch's
    return out


def _calls(segment_lengths: list[int], segment_prefixes: list[int]) -> _Calls:
    ends = list(itertools.accumulate(segment_lengths))
    cells = [slice(end - length, end) for end, length in zip(ends, segment_lengths, strict=True)]
    by_length: dict[int, list[slice]] = {}
    for length, segment in zip(segment_lengths, cells, strict=True):
        by_length.setdefault(length, []).append(segment)
    continued = []
    for prefix, neighbours in itertools.groupby(range(len(cells)), key=segment_prefixes.__getitem__):
        branches = list(neighbours)
        if prefix >= 0:
            continued.append((cells[prefix], slice(cells[branches[0]].start, cells[branches[-1]].stop)))
    return _Calls(list(by_length.values()), continued)


class _PrefixAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, calls: _Calls, scaling: float | None) -> Tensor:
        query, key, value = map(_rows_dense, (query, key, value))
        out = torch.empty_like(query)
        lse_1HT = query.new_empty(query.shape[:-1], dtype=torch.float32)
        for cells in calls.own:
            q, k, v = (_stack(tensor, cells) for tensor in (query, key, value))
            part, part_lse = _flash(q, k, v, 0.0, True, scale=scaling)
            _unstack(out, cells, part)
            _unstack(lse_1HT, cells, part_lse)
        for prefix, branches in calls.continued:
            q, k, v = query[:, :, branches], key[:, :, prefix], value[:, :, prefix]
            part, part_lse = _flash(q, k, v, 0.0, False, scale=scaling)
            own_lse = lse_1HT[:, :, branches]
            merged_lse = torch.logaddexp(own_lse, part_lse)
            own_weight, weight = ((lse - merged_lse).exp().unsqueeze(-1) for lse in (own_lse, part_lse))
            out[:, :, branches] = out[:, :, branches] * own_weight + part * weight
            lse_1HT[:, :, branches] = merged_lse
        ctx.save_for_backward(query, key, value, out, lse_1HT)
        ctx.calls, ctx.scaling = calls, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse_1HT = ctx.saved_tensors
        grad = _rows_dense(grad)
        totals = [torch.empty_like(tensor) for tensor in (query, key, value)]
        for cells in ctx.calls.own:
            parts = _flash_backward(
                *(_stack(tensor, cells) for tensor in (grad, query, key, value, out, lse_1HT)),
                0.0, True, scale=ctx.scaling,
            )  # fmt: skip
            for total, part in zip(totals, parts, strict=True):
                _unstack(total, cells, part)
        for prefix, branches in ctx.calls.continued:
            places = (branches, branches, prefix, prefix, branches, branches)
            tensors = (grad, query, key, value, out, lse_1HT)
            parts = _flash_backward(
                *(tensor[:, :, place] for tensor, place in zip(tensors, places, strict=True)),
                0.0, False, scale=ctx.scaling,
            )  # fmt: skip
            for total, place, part in zip(totals, (branches, prefix, prefix), parts, strict=True):
                total[:, :, place] += part
        return *totals, None, None


def _rows_dense(tensor: Tensor) -> Tensor:
    """The kernels read each token's vector as neighbouring numbers."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _stack(tensor: Tensor, cells: list[slice]) -> Tensor:
    """[1, H, T, ...] -> [segments, H, length, ...]; a single segment is not copied."""
    return torch.cat([tensor[:, :, place] for place in cells]) if len(cells) > 1 else tensor[:, :, cells[0]]


def _unstack(tensor: Tensor, cells: list[slice], parts: Tensor) -> None:
    """Writes [segments, H, length, ...] to where the segments are."""
    for place, part in zip(cells, parts.unbind(0), strict=True):
        tensor[0, :, place] = part

"""Variable-length attention for packed rows: every segment attends to itself only, and no mask is ever built.

One causal SDPA call per segment beats one call with a dense block mask, which costs the square of the row instead of
the squares of its segments. Segments of equal length share a call. In half precision on a GPU one call serves all
(``varlen_attention``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from gspo_rllib.errors import ModelError
from gspo_rllib.modules.prefix_attention import prefix_attention
from gspo_rllib.modules.varlen_attention import serves, varlen_attention

PACKED = "gspo_packed"
"""Name under which the attention is registered with transformers (``attn_implementation``)."""

_CHANGES_NOTHING = frozenset({"dropout", "output_attentions", "output_router_logits", "position_ids", "use_cache"})
"""What layers pass on that no attention computes with; a policy has no dropout."""

_windows: ContextVar[set[int] | None] = ContextVar("windows", default=None)


@contextmanager
def watched_windows() -> Iterator[set[int]]:
    """Collects the sliding windows that ``packed_attention`` is called with inside the block, in tokens."""
    found: set[int] = set()
    token = _windows.set(found)
    try:
        yield found
    finally:
        _windows.reset(token)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segment_lengths: list[int],
    segment_prefixes: list[int] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over one packed row.

    Args:
        module: The attention layer.
        query: [1, heads, T, D].
        key: [1, key-value heads, T, D].
        value: [1, key-value heads, T, D].
        attention_mask: None; transformers makes none for an attention it does not know.
        segment_lengths: Tokens of each segment, in row order; sums to T.
        segment_prefixes: For each segment the index of the segment it continues, or -1; None where none does. A
            segment and its prefix must fit into a sliding window together.
        scaling: Factor on the dot products; None for 1/sqrt(D).
        sliding_window: Keys further back than this are not attended to.
        **others: What else the layer passes on.

    Returns:
        ([1, T, heads, D], None).

    Raises:
        ModelError: The layer asks for more than this computes: a mask of its own, soft-capped scores, sinks, a bias.
    """
    unmet = [name for name, value in others.items() if value is not None and name not in _CHANGES_NOTHING]
    if attention_mask is not None or unmet:
        asked = ", ".join(unmet) or "a mask of its own"
        raise ModelError(f"{type(module).__name__} asks attention for {asked}, which packed rows are computed without")
    windows = _windows.get()
    if windows is not None and sliding_window is not None:
        windows.add(sliding_window)
    if serves(query, value):
        out = varlen_attention(
            query, key, value, segment_lengths=segment_lengths, segment_prefixes=segment_prefixes, scaling=scaling,
            sliding_window=sliding_window,
        )  # fmt: skip
        return out, None
    if segment_prefixes is None:
        out = _each_on_its_own(query, key, value, segment_lengths, scaling, sliding_window)
    else:
        out = _some_continued(query, key, value, segment_lengths, segment_prefixes, scaling, sliding_window)
    return out.transpose(1, 2).contiguous(), None


def _some_continued(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], prefixes: list[int], scaling: float | None,
    sliding_window: int | None,
) -> Tensor:  # fmt: skip
    """[1, heads, T, D] where segments continue others; those that a window cuts short do not, and are apart."""
    cut = [i for i, length in enumerate(lengths) if sliding_window is not None and length > sliding_window]
    if not cut:
        return prefix_attention(query, key, value, segment_lengths=lengths, segment_prefixes=prefixes, scaling=scaling)
    rest = [i for i in range(len(lengths)) if i not in cut]
    rows = [tensor.split(lengths, dim=2) for tensor in (query, key, value)]
    q, k, v = (torch.cat([row[i] for i in cut], dim=2) for row in rows)
    cut_lengths, rest_lengths = ([lengths[i] for i in members] for members in (cut, rest))
    alone = _each_on_its_own(q, k, v, cut_lengths, scaling, sliding_window)
    q, k, v = (torch.cat([row[i] for i in rest], dim=2) for row in rows)
    continued = prefix_attention(
        q,
        k,
        v,
        segment_lengths=rest_lengths,
        segment_prefixes=[-1 if prefixes[i] < 0 else rest.index(prefixes[i]) for i in rest],
        scaling=scaling,
    )
    parts = dict(zip(cut, alone.split(cut_lengths, dim=2), strict=True))
    parts |= dict(zip(rest, continued.split(rest_lengths, dim=2), strict=True))
    return torch.cat([parts[i] for i in range(len(lengths))], dim=2)


def _each_on_its_own(
    query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scaling: float | None, sliding_window: int | None
) -> Tensor:
    """[1, heads, T, D], a call for all segments of a length."""
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:
        # On CUDA only half precision without a mask takes grouped heads without holding all scores at once.
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
        grouped = False
    parts: list[Tensor | None] = [None] * len(lengths)
    rows = [tensor[0].split(lengths, dim=1) for tensor in (query, key, value)]
    for length, members in _by_length(lengths).items():
        q, k, v = (torch.stack([row[i] for i in members]) for row in rows)
        mask = None
        if sliding_window is not None and length > sliding_window:
            distance = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)[None, :]
            mask = (distance >= 0) & (distance < sliding_window)
        out = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
        )
        for i, segment in zip(members, out.unbind(0), strict=True):
            parts[i] = segment
    return torch.cat([part for part in parts if part is not None], dim=1).unsqueeze(0)


def _by_length(lengths: list[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        members.setdefault(length, []).append(index)
    return members


AttentionInterface.register(PACKED, packed_attention)

"""Variable-length attention for packed rows: every segment attends to itself only, and no mask is ever built.

One causal SDPA call per segment beats one call with a dense block mask, which costs the square of the row instead of
the squares of its segments. Segments of equal length share a call. In half precision on a GPU one call serves all
(``varlen_attention``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from gspo_rllib.modules.prefix_attention import MIN_TOKEN_RATIO, PrefixSharing, prefix_attention
from gspo_rllib.modules.varlen_attention import serves, varlen_attention

PACKED = "gspo_packed"
"""Name under which the attention is registered with transformers (``attn_implementation``)."""


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
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over one packed row.

    It takes no dropout, whatever it is called with: a policy has none.

    Args:
        module: The attention layer.
        query: [1, heads, T, D].
        key: [1, key-value heads, T, D].
        value: [1, key-value heads, T, D].
        attention_mask: Unused; a custom attention gets none.
        segment_lengths: Tokens of each segment, in row order; sums to T.
        segment_prefixes: For each segment the index of the segment it continues, or -1; None where none does. Where it
            is given, a segment and its prefix must fit into a sliding window.
        scaling: Factor on the dot products; None for 1/sqrt(D).
        sliding_window: Keys further back than this are not attended to.

    Returns:
        ([1, T, heads, D], None).
    """
    if serves(query, value):
        out = varlen_attention(
            query, key, value, segment_lengths=segment_lengths, segment_prefixes=segment_prefixes, scaling=scaling,
            sliding_window=sliding_window,
        )  # fmt: skip
        return out, None
    if segment_prefixes is not None:
        out = prefix_attention(
            query, key, value, segment_lengths=segment_lengths, segment_prefixes=segment_prefixes, scaling=scaling
        )
        return out.transpose(1, 2).contiguous(), None
    grouped = query.shape[1] != key.shape[1]
    if grouped and query.is_cuda:
        # On CUDA only half precision without a mask takes grouped heads without holding all scores at once.
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
        grouped = False
    parts: list[Tensor | None] = [None] * len(segment_lengths)
    rows = [tensor[0].split(segment_lengths, dim=1) for tensor in (query, key, value)]
    for length, members in _by_length(segment_lengths).items():
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
    return torch.cat([part for part in parts if part is not None], dim=1).transpose(0, 1).unsqueeze(
        0
    ).contiguous(), None


def _by_length(lengths: list[int]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        members.setdefault(length, []).append(index)
    return members


AttentionInterface.register(PACKED, packed_attention)


def supports_packing(model_class: type[PreTrainedModel], config: Any) -> bool:
    """Whether a model's attention can be replaced by ``packed_attention`` without changing what it computes.

    Not so for attention with soft-capped scores or learned sinks (no SDPA), and for recurrent or linear-attention
    layers, whose state would run across segments; those train padded instead.
    """
    layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        bool(getattr(model_class, "_supports_attention_backend", False))
        and bool(getattr(model_class, "_supports_sdpa", False))
        and not getattr(config, "attn_logit_softcapping", None)
        and layer_types <= {"full_attention", "sliding_attention"}
    )


def prefix_sharing(model: PreTrainedModel) -> PrefixSharing | None:
    """When it pays that trajectories of a group share their prompt in a packed row of ``packed_attention``.

    Args:
        model: A model for which ``supports_packing`` is true.

    Returns:
        None where the attention kernel refuses: with values narrower than keys.
    """
    config = model.config.get_text_config()
    if getattr(config, "v_head_dim", None) is not None:
        return None
    return PrefixSharing(MIN_TOKEN_RATIO, max_segment_tokens=getattr(config, "sliding_window", None))

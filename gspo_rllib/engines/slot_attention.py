"""Attention for a batch whose requests are at different positions, over keys and values kept in slots.

Shapes:  T new tokens of one step, of all requests, in one flat row · N requests of one block · W new tokens of the
longest of them · L cached tokens of the longest of them · H query heads · J key heads · D head size.

A request owns one slot of every layer's cache ``[slots, J, length, D]``. A step is one forward pass over the flat row
``[1, T]``; layers that work token by token need no padding, and attention runs once per *block* of requests. On a
CPU a block is a run of neighbouring slots, which is read where it lies: a run ends where another call costs less than
what the longest context, the most new tokens and the idle slots of a longer one would. On a GPU, which wants few calls,
a block is all requests with about as many new tokens.

On a CPU what a token gets does not depend on what else is in the step. BLAS and the attention kernel compute a row
alike whatever rows are beside it, as long as there are a few of them, and as long as a sum over keys is cut into the
same parts whatever masked ones come behind; so the row, the queries and the keys are filled up to that (``ROWS``,
``attended_length``). Measured for float32, MKL and sizes that are multiples of 16, on processors with AVX-512; the
experts of a mixture get as few rows as they get.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.engines.slot_cache import SlotCache
from gspo_rllib.engines.trial import untried
from gspo_rllib.errors import EngineError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ATTENTION_NAME = "gspo_rllib_slots"
_CALL = 80_000
"""What calling the kernel once costs, in numbers of keys times queries that look at them (measured, as the next)."""
_READING = 7
"""What reading a key costs, in queries that look at it: keys come from memory."""
_LAYER_TYPES = {"full_attention", "sliding_attention"}
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
_UNSUPPORTED = ("softcap", "s_aux")  # attention variants that would be silently wrong here


def check_servable(spec: EngineSpec, config: PretrainedConfig) -> None:
    """Refuses a model whose keys and values cannot be kept in slots.

    Args:
        spec: How the engine is built.
        config: The model's own config.

    Raises:
        EngineError: Some of its layers do not attend, or its position embedding changes with the context's length.
    """
    reason = None
    other_layers = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    rope = getattr(config, "rope_parameters", None) or {}
    if other_layers:
        reason = f"it has {', '.join(sorted(other_layers))} layers"
    elif rope.get("rope_type") in _LENGTH_DEPENDENT_ROPE:
        unscaled = rope.get("original_max_position_embeddings", 0)
        if spec.max_model_len > unscaled:
            reason = (
                f"its {rope['rope_type']!r} position embedding changes with the context length, so cached keys would "
                f"go stale above {unscaled} tokens (max_model_len is {spec.max_model_len})"
            )
    if reason:
        raise EngineError(f"the transformers engine cannot serve {spec.model!r}: {reason}. {untried('vllm')}")


@dataclass(slots=True)
class AttentionBlock:
    """Requests that attend together.

    Attributes:
        start: Index in the flat row of their first token.
        stop: Index in the flat row behind their last token.
        slots: A range of slots, or the slots [N].
        length: L, cached tokens of the request that has most; on a CPU filled up with tokens that nobody looks at.
        fill: Queries of a request are filled up to a multiple of it.
        position_NW: Position of each new token; 0 where it is padding, so that no row of the mask is empty.
        pad: Index [N * W] into the block's tokens, or None when nothing is padded.
        unpad: Index [tokens] into the padded rows, or None.
        masks: Additive masks by window and heads per key head, made by the first layer that needs them.
    """

    start: int
    stop: int
    slots: slice | Tensor
    length: int
    fill: int
    position_NW: Int[Tensor, "N W"]
    pad: Tensor | None = None
    unpad: Tensor | None = None
    masks: dict[tuple[int | None, int], Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, group: int, dtype: torch.dtype) -> Float[Tensor, "N 1 GW L"]:
        """0 where a query may look, -inf elsewhere, repeated for the query heads that share a key head, and filled."""
        if (window, group) not in self.masks:
            key = torch.arange(self.length, device=self.position_NW.device)
            query = _filled(self.position_NW.repeat(1, group), self.fill, dim=1)[:, None, :, None]
            hidden = key > query
            if window is not None:
                hidden |= key <= query - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=key.device)
            self.masks[window, group] = mask.masked_fill_(hidden, -torch.inf)
        return self.masks[window, group]


@dataclass(slots=True)
class AttentionPlan:
    """One step: where its tokens go in the cache, and which blocks attend.

    Attributes:
        cache: The cache of this engine.
        slot_T: Slot of each new token.
        position_T: Position of each new token.
        blocks: The blocks of the step in the order of the flat row; together they cover it, except its filling.
        filling: Times the last token is repeated to fill the row up.
    """

    cache: SlotCache
    slot_T: Int[Tensor, " T"]
    position_T: Int[Tensor, " T"]
    blocks: list[AttentionBlock]
    filling: int


def plan_attention(cache: SlotCache, device: torch.device, spans: list[tuple[int, int, int]]) -> AttentionPlan:
    """Lays the new tokens of a step out in one flat row.

    Args:
        cache: Keys and values.
        device: Where the forward pass runs.
        spans: Slot, first and past-the-end position of each request's new tokens, sorted by ``flat_place``.
    """
    slot_N, begin_N, end_N = np.array(spans).T
    count_N = end_N - begin_N
    start_N = np.cumsum(count_N) - count_N  # in the flat row
    total = int(count_N.sum())
    filling = max(0, cache.rows - total)
    slot_T = np.repeat(slot_N, count_N)
    position_T = np.arange(total) + np.repeat(begin_N - start_N, count_N)
    edges = _edges_of_runs(cache, spans) if device.type == "cpu" else _edges_of_classes(spans)
    members_NC = np.stack([slot_N, begin_N, end_N, start_N], axis=1)
    return AttentionPlan(
        cache,
        torch.from_numpy(np.append(slot_T, slot_T[-1:].repeat(filling))).to(device, non_blocking=True),
        torch.from_numpy(np.append(position_T, position_T[-1:].repeat(filling))).to(device, non_blocking=True),
        [_block(cache, members_NC[first:last], device) for first, last in pairwise(edges)],
        filling,
    )


def flat_place(span: tuple[int, int, int], device: torch.device) -> tuple[int, int]:
    """Where a request stands in the flat row: what can be of one block are neighbours, by slot."""
    return (0 if device.type == "cpu" else _width_class(span)), span[0]


def _edges_of_runs(cache: SlotCache, spans: list[tuple[int, int, int]]) -> list[int]:
    """Where runs of slots begin, and behind the last; each joins its neighbour where that costs less than two calls."""
    key_heads, size = cache.heads
    threads = torch.get_num_threads()

    def cost(rows: int, new: int, length: int) -> float:
        return _CALL + rows * (_READING + new) * length * key_heads * size / min(threads, rows * key_heads)

    edges = [0]
    first, begin, end = spans[0]
    run = (1, end - begin, end)
    run_cost = cost(*run)
    for i, (slot, begin, end) in enumerate(spans[1:], 1):
        alone = (1, end - begin, end)
        joined = (slot - first + 1, max(run[1], end - begin), max(run[2], end))
        alone_cost, joined_cost = cost(*alone), cost(*joined)
        if joined_cost <= run_cost + alone_cost:
            run, run_cost = joined, joined_cost
        else:
            edges.append(i)
            first, run, run_cost = slot, alone, alone_cost
    return [*edges, len(spans)]


def _edges_of_classes(spans: list[tuple[int, int, int]]) -> list[int]:
    classes = [_width_class(span) for span in spans]
    return [0, *(i for i in range(1, len(spans)) if classes[i] != classes[i - 1]), len(spans)]


def _width_class(span: tuple[int, int, int]) -> int:
    """Requests of one class are padded to the longest: at most four times a request's own new tokens."""
    new = span[2] - span[1]
    return 0 if new == 1 else 1 + (new.bit_length() - 1) // 2


def _block(cache: SlotCache, members_NC: np.ndarray, device: torch.device) -> AttentionBlock:
    """The block of some requests: slot, first and past-the-end position and place in the flat row of each."""
    slot_N, begin_N, end_N, start_N = members_NC.T
    count_N = end_N - begin_N
    width, tokens, start = int(count_N.max()), int(count_N.sum()), int(start_N[0])
    low, high = int(slot_N[0]), int(slot_N[-1]) + 1
    # A GPU reads idle slots in place up to about twice as many as busy ones: that costs less than copying those out.
    in_place = device.type == "cpu" or high - low <= 2 * len(slot_N)
    row_N = slot_N - low if in_place else np.arange(len(slot_N))
    rows = high - low if in_place else len(slot_N)
    offset_W = np.arange(width)
    real_NW = offset_W < count_N[:, None]
    position_NW = np.zeros((rows, width), dtype=np.int64)
    position_NW[row_N] = np.where(real_NW, begin_N[:, None] + offset_W, 0)
    pad = unpad = None
    if rows * width != tokens:
        padded_NW = np.zeros((rows, width), dtype=np.int64)
        padded_NW[row_N] = np.where(real_NW, (start_N - start)[:, None] + offset_W, 0)
        pad = torch.from_numpy(padded_NW.reshape(-1)).to(device, non_blocking=True)
        unpad = torch.from_numpy((row_N[:, None] * width + offset_W)[real_NW]).to(device, non_blocking=True)
    slots: slice | Tensor = slice(low, high) if in_place else torch.from_numpy(slot_N.copy()).to(device)
    position = torch.from_numpy(position_NW).to(device, non_blocking=True)
    length = cache.attended_length(int(end_N.max()))
    return AttentionBlock(start, start + tokens, slots, length, cache.rows, position, pad, unpad)


def slot_attention(
    module: torch.nn.Module,
    query: Float[Tensor, "1 H T D"],
    key: Float[Tensor, "1 J T D"],
    value: Float[Tensor, "1 J T E"],
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    attention_plan: AttentionPlan | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "1 T H E"], None]:
    """The attention function transformers calls in every layer; ``attention_plan`` arrives through the forward call.

    Raises:
        EngineError: The model uses an attention variant that is not implemented here, or drops forward arguments.
    """
    unsupported = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if attention_plan is None or unsupported:
        reason = f"its attention needs {unsupported}" if unsupported else "it does not pass arguments to its attention"
        raise EngineError(f"the transformers engine cannot serve this model: {reason}. {untried('vllm')}")
    plan = attention_plan
    layer = module.layer_idx
    assert isinstance(layer, int)
    keys, values = plan.cache.write(layer, key, value, (plan.slot_T, plan.position_T))
    out = [_attend(block, query[0], keys, values, scaling, sliding_window) for block in plan.blocks]
    if plan.filling:
        out.append(out[-1][-1:].expand(plan.filling, -1, -1))
    # Contiguous, as transformers' own are: some models view it in another shape.
    return (out[0] if len(out) == 1 else torch.cat(out)).unsqueeze(0).contiguous(), None


def kernels_for_new_shapes(device: torch.device) -> AbstractContextManager[None]:
    """Leaves cuDNN's attention out: it plans every new shape for tens of milliseconds, and contexts grow every step."""
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _attend(
    block: AttentionBlock,
    query: Float[Tensor, "H T D"],
    keys: Float[Tensor, "slots J length D"],
    values: Float[Tensor, "slots J length E"],
    scaling: float | None,
    window: int | None,
) -> Float[Tensor, "tokens H E"]:
    rows, width = block.position_NW.shape
    heads, key_heads = query.shape[0], keys.shape[1]
    group = heads // key_heads
    query = query[:, block.start : block.stop]
    if block.pad is not None:
        query = query[:, block.pad]
    # Query heads that share a key head become extra query positions, so keys are never repeated.
    query = query.view(key_heads, group, rows, width, -1).permute(2, 0, 1, 3, 4)
    out = scaled_dot_product_attention(
        _filled(query.reshape(rows, key_heads, group * width, -1), block.fill, dim=2),
        _rows(keys, block),
        _rows(values, block),
        attn_mask=block.mask(window, group, query.dtype),
        scale=scaling,
    )
    # Some of the kernels return another layout than the contiguous one.
    out = out[:, :, : group * width].reshape(rows, heads, width, -1).transpose(1, 2).reshape(rows * width, heads, -1)
    return out if block.unpad is None else out[block.unpad]


def _filled(rows: Tensor, multiple: int, *, dim: int) -> Tensor:
    """Whole fours of rows, say, the last one repeated: the kernel takes queries in blocks, each a BLAS call."""
    missing = -rows.shape[dim] % multiple
    if not missing:
        return rows
    last = rows.narrow(dim, -1, 1)
    return torch.cat([rows, *[last] * missing], dim=dim)


def _rows(cached: Tensor, block: AttentionBlock) -> Tensor:
    cached = cached[:, :, : block.length]
    return cached[block.slots] if isinstance(block.slots, slice) else cached.index_select(0, block.slots)

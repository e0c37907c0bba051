"""Attention for a batch whose requests are at different positions, over keys and values kept in slots.

Shapes:  T new tokens of one step, of all requests, in one flat row · N requests of one block · W new tokens of the
longest of them · L cached tokens of the longest of them · H query heads · J key heads · D head size.

A request owns one slot of every layer's cache ``[slots, J, length, D]``. A step is one forward pass over the flat row
``[1, T]``; layers that work token by token need no padding at all, and attention runs once per *block* of requests with
about as many new tokens. Decoding is the block with W = 1.

On a CPU what a token gets does not depend on what else is in the step. BLAS and the attention kernel compute a row
alike whatever rows are beside it, as long as there are a few of them, and as long as keys come in whole vectors; so the
row, the queries and the keys are filled up to that (``ROWS``, ``KEYS``). Measured for float32, MKL and sizes that are
multiples of 16, on processors with AVX-512; the experts of a mixture get as few rows as they get.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gspo_rllib.engines.trial import untried
from gspo_rllib.errors import EngineError

ATTENTION_NAME = "gspo_rllib_slots"
_GROWTH = 64  # tokens; slots are a multiple of it long
ROWS = 4
"""Fewer rows than this, a CPU's BLAS multiplies with another kernel, which rounds otherwise."""
KEYS = 16
"""float32 numbers of the longest vector of a CPU; a sum over a part of one is rounded otherwise."""
_UNSUPPORTED = ("softcap", "s_aux")  # attention variants that would be silently wrong here


class SlotCache:
    """Keys and values of every layer, one slot per request, grown on demand.

    Args:
        device: Where the cache lives.
        dtype: Precision of keys and values.
        max_slots: Slots there may ever be.
        max_length: Longest context in tokens.
        rows: Rows that what is too small is filled up to; 1 for none.

    Attributes:
        rows: The same.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, max_slots: int, max_length: int, rows: int) -> None:
        self._device, self._dtype = device, dtype
        self.rows = rows
        self._max_slots, self._max_length = max_slots, whole_vectors(max_length)
        self._slots = self._length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one cached token in all layers; 0 before the first forward pass."""
        return sum(x.element_size() * x.shape[1] * x.shape[3] for pair in self._layers.values() for x in pair)

    def reserve(self, slots: int, length: int) -> None:
        """Makes room for slots ``0 … slots - 1`` of ``length`` tokens each; what is cached stays."""
        if slots <= self._slots and length <= self._length:
            return
        # Growing by a factor keeps the copying linear in what is finally stored.
        if slots > self._slots:
            self._slots = min(max(slots, 2 * self._slots), self._max_slots)
        if length > self._length:
            self._length = min(-(-max(length, self._length * 3 // 2) // _GROWTH) * _GROWTH, self._max_length)
        self._layers = {i: (self._grown(k), self._grown(v)) for i, (k, v) in self._layers.items()}

    def write(
        self, layer: int, key: Float[Tensor, "1 J T D"], value: Float[Tensor, "1 J T E"], at: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Stores new keys and values; returns the whole layer ``[slots, J, length, D]``.

        Args:
            layer: Index of the attention layer.
            key: New keys.
            value: New values.
            at: Slot [T] and position [T] of each.
        """
        pair = self._layers.get(layer)
        if pair is None:
            pair = (self._grown(key[:, :, :0]), self._grown(value[:, :, :0]))
            self._layers[layer] = pair
        pair[0][at[0], :, at[1]] = key[0].transpose(0, 1)
        pair[1][at[0], :, at[1]] = value[0].transpose(0, 1)
        return pair

    def copy_prefix(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` tokens of one slot to another."""
        for pair in self._layers.values():
            for cached in pair:
                cached[target, :, :length] = cached[source, :, :length]

    def drop(self) -> None:
        """Forgets everything; a NaN left by broken weights would outlive a mere reset of the lengths."""
        self._layers.clear()

    def _grown(self, cached: Tensor) -> Tensor:
        # Zeros, not empty: masked entries are multiplied by probability 0, and 0 * NaN is NaN.
        grown = torch.zeros(
            (self._slots, cached.shape[1], self._length, cached.shape[3]), device=self._device, dtype=self._dtype
        )
        grown[: cached.shape[0], :, : cached.shape[2]] = cached
        return grown


@dataclass(slots=True)
class AttentionBlock:
    """Requests that attend together because they have about as many new tokens.

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
            query = self.position_NW.unsqueeze(-1)
            hidden = key > query
            if window is not None:
                hidden |= key <= query - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=key.device).masked_fill_(hidden, -torch.inf)
            self.masks[window, group] = _filled(mask.repeat(1, group, 1), self.fill, dim=1).unsqueeze(1)
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


def whole_vectors(length: int) -> int:
    """The length of a slot that has room for as many tokens.

    Example:
        >>> whole_vectors(250)
        256
    """
    return -(-length // KEYS) * KEYS


def plan_attention(cache: SlotCache, device: torch.device, spans: list[tuple[int, int, int]]) -> AttentionPlan:
    """Lays the new tokens of a step out in one flat row.

    Args:
        cache: Keys and values.
        device: Where the forward pass runs.
        spans: Slot, first and past-the-end position of each request's new tokens, sorted so that requests of one block
            (equal ``width_class``) are neighbours, and by slot within it.
    """
    blocks: list[AttentionBlock] = []
    slot_T: list[np.ndarray] = []
    position_T: list[np.ndarray] = []
    first = 0
    while first < len(spans):
        width_class_ = width_class(spans[first])
        last = first + 1
        while last < len(spans) and width_class(spans[last]) == width_class_:
            last += 1
        members = np.array(spans[first:last])
        count_N = members[:, 2] - members[:, 1]
        start = sum(map(len, slot_T))
        slot_T.append(np.repeat(members[:, 0], count_N))
        position_T.append(np.concatenate([np.arange(a, b) for _, a, b in spans[first:last]]))
        blocks.append(_block(members, start, device, cache.rows))
        first = last
    filling = max(0, cache.rows - sum(map(len, slot_T)))
    slot_T.append(slot_T[-1][-1:].repeat(filling))
    position_T.append(position_T[-1][-1:].repeat(filling))
    return AttentionPlan(
        cache,
        torch.from_numpy(np.concatenate(slot_T)).to(device, non_blocking=True),
        torch.from_numpy(np.concatenate(position_T)).to(device, non_blocking=True),
        blocks,
        filling,
    )


def width_class(span: tuple[int, int, int]) -> int:
    """Requests of one class are padded to the longest: at most four times a request's own new tokens."""
    new = span[2] - span[1]
    return 0 if new == 1 else 1 + (new.bit_length() - 1) // 2


def _block(members: np.ndarray, start: int, device: torch.device, fill: int) -> AttentionBlock:
    slot_N, begin_N, end_N = members[:, 0], members[:, 1], members[:, 2]
    count_N = end_N - begin_N
    width, tokens = int(count_N.max()), int(count_N.sum())
    low, high = int(slot_N[0]), int(slot_N[-1]) + 1
    # Reading idle slots in place costs less than copying the busy ones out, up to about twice as many (measured).
    in_place = high - low <= 2 * len(slot_N)
    row_N = slot_N - low if in_place else np.arange(len(slot_N))
    rows = high - low if in_place else len(slot_N)
    offset_W = np.arange(width)
    real_NW = offset_W < count_N[:, None]
    position_NW = np.zeros((rows, width), dtype=np.int64)
    position_NW[row_N] = np.where(real_NW, begin_N[:, None] + offset_W, 0)
    pad = unpad = None
    if rows * width != tokens:
        padded_NW = np.zeros((rows, width), dtype=np.int64)
        token_NW = (np.cumsum(count_N) - count_N)[:, None] + offset_W
        padded_NW[row_N] = np.where(real_NW, token_NW, 0)
        pad = torch.from_numpy(padded_NW.reshape(-1)).to(device, non_blocking=True)
        unpad = torch.from_numpy((row_N[:, None] * width + offset_W)[real_NW]).to(device, non_blocking=True)
    slots: slice | Tensor = slice(low, high) if in_place else torch.from_numpy(slot_N.copy()).to(device)
    position = torch.from_numpy(position_NW).to(device, non_blocking=True)
    length = int(end_N.max()) if device.type != "cpu" else whole_vectors(int(end_N.max()))
    return AttentionBlock(start, start + tokens, slots, length, fill, position, pad, unpad)


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

"""Keys and values of every layer, a slot per request, and the lengths of contexts that change no bit.

Shapes:  T new tokens of one step · J key heads · D, E head sizes of keys and values.
"""

from __future__ import annotations

import functools

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_GROWTH = 64  # tokens; slots are a multiple of it long
ROWS = 4
"""Fewer rows than this, a CPU's BLAS multiplies with another kernel, which rounds otherwise."""
_VECTOR = 16
"""float32 numbers of the longest vector of a CPU; a sum over a part of one is rounded otherwise."""
_PIECE = 512
"""Keys that the kernel for a CPU takes at a time."""


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
        self._max_slots, self._max_length = max_slots, attended_length(max_length, rows)
        self._slots = self._length = 0
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one cached token in all layers; 0 before the first forward pass."""
        return sum(x.element_size() * x.shape[1] * x.shape[3] for pair in self._layers.values() for x in pair)

    @property
    def heads(self) -> tuple[int, int]:
        """J and D of the first layer; before the first forward pass those of a small one."""
        for key, _ in self._layers.values():
            return key.shape[1], key.shape[3]
        return 1, 64

    def attended_length(self, length: int) -> int:
        """How many keys the kernel gets for a context of so many tokens; a slot has room for them."""
        return attended_length(length, self.rows)

    def reserve(self, slots: int, length: int) -> None:
        """Makes room for slots ``0 … slots - 1`` of ``length`` tokens each; what is cached stays."""
        length = self.attended_length(length)
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


def attended_length(length: int, rows: int) -> int:
    """How many keys the kernel gets for a context, and a slot has room for.

    Args:
        length: Tokens of the context.
        rows: Rows that what is too small is filled up to; 1 where nobody asks for equal bits.

    Returns:
        A length behind which masked keys change no bit; as it came where nobody asks.
    """
    if rows == 1:
        return length
    pieces, rest = divmod(length, _PIECE)
    return pieces * _PIECE + _alike_lengths()[-(-rest // _VECTOR)]


@functools.cache
@torch.inference_mode()
def _alike_lengths() -> list[int]:
    """For so many vectors of keys the least length whose sums are cut into the same parts as those of a whole piece.

    Tried once with this processor's kernel: MKL, for one, halves a sum of 193 to 383, and takes 192 at a time of more.
    """
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, 2, n, 64, generator=random) for n in (ROWS, _PIECE, _PIECE))
    lengths = [_PIECE]
    for visible in range(_PIECE - _VECTOR, 0, -_VECTOR):
        mask = torch.zeros(1, 1, ROWS, _PIECE)
        mask[..., visible:] = -torch.inf
        whole, short = (
            scaled_dot_product_attention(query, key[:, :, :n], value[:, :, :n], attn_mask=mask[..., :n])
            for n in (_PIECE, visible)
        )
        lengths.append(visible if torch.equal(whole, short) else lengths[-1])
    return [0, *reversed(lengths)]

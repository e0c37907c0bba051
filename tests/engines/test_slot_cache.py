"""Lengths of contexts that change no bit, and what a slot keeps."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from gspo_rllib.engines.slot_cache import ROWS, SlotCache, attended_length


@pytest.mark.parametrize("size", [32, 80])
def test_a_query_gets_the_same_bits_whatever_masked_keys_come_behind(size: int) -> None:
    """At every length, behind it, and with as many queries beside it as there may be."""
    random = torch.Generator().manual_seed(size)
    key, value = (torch.randn(1, 2, 1600, size, generator=random) for _ in range(2))
    query = torch.randn(1, 2, 4 * ROWS, size, generator=random)

    def attended(context: int, longest: int, queries: int) -> torch.Tensor:
        length = attended_length(longest, ROWS)
        mask = torch.zeros(1, 1, queries, length)
        mask[..., context:] = -torch.inf
        out = scaled_dot_product_attention(query[:, :, :queries], key[:, :, :length], value[:, :, :length], mask)
        return out[:, :, 0]

    differ = [
        (context, behind, queries)
        for context in range(5, 1100, 37)
        for behind in (1, 17, 60, 100, 150, 190, 250, 400)
        for queries in (ROWS, 4 * ROWS)
        if not torch.equal(attended(context, context + behind, queries), attended(context, context, ROWS))
    ]
    assert differ == []


def test_a_slot_has_room_for_every_length_that_is_attended_to() -> None:
    lengths = [attended_length(length, ROWS) for length in range(2000)]
    assert all(length <= kept < length + 200 for length, kept in enumerate(lengths))
    assert lengths == sorted(lengths)
    assert [attended_length(length, rows=1) for length in (1, 17, 230)] == [1, 17, 230]


def test_a_cache_that_grows_keeps_what_is_in_it() -> None:
    cache = SlotCache(torch.device("cpu"), torch.float32, 4, 500, ROWS)
    cache.reserve(1, 3)
    key, value = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 5)
    cache.write(0, key, value, (torch.zeros(3, dtype=torch.int64), torch.arange(3)))
    cache.reserve(4, 250)
    cache.copy_prefix(0, 3, 3)

    keys, values = cache.write(
        0, key[:, :, :1], value[:, :, :1], (torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    )
    assert keys.shape[2] >= attended_length(250, ROWS)
    for slot in (0, 3):
        assert torch.equal(keys[slot, :, :3], key[0])
        assert torch.equal(values[slot, :, :3], value[0])
    assert cache.heads == (2, 8)
    assert cache.bytes_per_token == 4 * (2 * 8 + 2 * 5)

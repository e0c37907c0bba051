"""The codec of states: what is read equals what was written, to the bit and to the type; and nothing else is read."""

from __future__ import annotations

import collections
import json
import math
import pathlib
import random
import struct
import tempfile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from gspo_rllib.checkpoints.codec import read_tree, write_tree
from gspo_rllib.errors import CheckpointError

_FLOATS = st.floats(allow_nan=False) | st.sampled_from([math.nan, math.inf, -math.inf, -0.0])
_TEXTS = st.text(st.characters(), max_size=5) | st.sampled_from(
    ["$", "v", "\ud800\udc00", "\udfff", "\0", "é\U0001f600"]
)
_KEYS = _TEXTS | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), _TEXTS) | st.binary(max_size=3)
_DTYPES = (
    np_st.scalar_dtypes()
    | np_st.unicode_string_dtypes()
    | np_st.byte_string_dtypes()
    | np_st.floating_dtypes(endianness=">")
    | st.just(np.dtype("g"))
)
_ARRAYS = np_st.arrays(_DTYPES, np_st.array_shapes(min_dims=0, min_side=0, max_side=3))
_TORCH = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8])
_TENSORS = st.builds(
    lambda dtype, shape: torch.randn(shape).mul(9).to(dtype), _TORCH, st.lists(st.integers(0, 3), max_size=3)
)
_LEAVES = (
    (st.none() | st.booleans() | st.integers() | _FLOATS | st.complex_numbers(allow_nan=False) | _TEXTS)
    | (st.binary(max_size=9) | st.binary(max_size=9).map(bytearray) | st.integers(2**60, 2**70000))
    | (_ARRAYS | _TENSORS | _ARRAYS.filter(lambda array: array.size > 0).map(lambda array: array.reshape(-1)[0]))
    | st.just(pathlib.Path("a/b"))
)
_TREES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(_KEYS, inner, max_size=4)
        | st.dictionaries(_KEYS, inner, max_size=4).map(collections.OrderedDict)
        | st.builds(collections.deque, st.lists(inner, max_size=3), st.none() | st.integers(3, 5))
        | st.sets(_KEYS, max_size=3)
        | st.frozensets(_KEYS, max_size=3)
    ),
    max_leaves=12,
)


def _there_and_back(tree: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        write_tree(pathlib.Path(folder), tree)
        return read_tree(pathlib.Path(folder))


def _same(a: Any, b: Any) -> bool:
    """Equal to the bit and to the type, at any depth, in any order of the same order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items(), strict=True)
        return len(a) == len(b) and all(_same(x, y) and _same(v, w) for (x, v), (y, w) in pairs)
    if isinstance(a, (list, tuple, collections.deque)):
        limits = getattr(a, "maxlen", None) == getattr(b, "maxlen", None)
        return limits and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, (set, frozenset)):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.requires_grad == b.requires_grad and _bits(a) == _bits(b)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    return bool(a == b)


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


@settings(max_examples=120)
@given(_TREES)
def test_what_is_read_is_what_was_written(tree: Any) -> None:
    assert _same(_there_and_back(tree), tree)


def test_an_optimiser_goes_on_as_if_nothing_had_been_saved() -> None:
    """AdamW after three steps, with an odd learning rate: its state through the codec, and two more steps."""
    from ray.rllib.utils.numpy import convert_to_numpy

    def steps(weights: torch.nn.Parameter, optimizer: torch.optim.Optimizer, seeds: range) -> bytes:
        for seed in seeds:
            weights.grad = torch.randn(weights.shape, generator=torch.Generator().manual_seed(seed))
            optimizer.step()
        return _bits(weights)

    def start() -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
        torch.manual_seed(0)
        weights = torch.nn.Parameter(torch.randn(7, 5))
        return weights, torch.optim.AdamW([weights], lr=0.1 + 0.2, betas=(0.9, 0.95), eps=1e-10)

    weights, optimizer = start()
    steps(weights, optimizer, range(3))
    saved = _there_and_back({"state": convert_to_numpy(optimizer.state_dict()), "weights": weights})
    assert _same(saved["state"], convert_to_numpy(optimizer.state_dict()))
    other, resumed = start()
    other.data.copy_(saved["weights"].data)
    state = saved["state"]
    state["state"] = {k: {n: torch.as_tensor(v) for n, v in s.items()} for k, s in state["state"].items()}
    resumed.load_state_dict(state)
    assert steps(other, resumed, range(3, 5)) == steps(weights, optimizer, range(3, 5))


def test_random_generators_go_on_where_they_were() -> None:
    ours, theirs, third = random.Random(3), np.random.default_rng(3), torch.Generator().manual_seed(3)
    saved = _there_and_back([ours.getstate(), theirs.bit_generator.state, third.get_state(), np.random.get_state()])
    again = random.Random(9), np.random.default_rng(9), torch.Generator()
    again[0].setstate(saved[0])
    again[1].bit_generator.state = saved[1]
    again[2].set_state(saved[2])
    assert again[0].random() == ours.random()
    assert again[1].integers(2**60) == theirs.integers(2**60)
    assert torch.rand(3, generator=again[2]).equal(torch.rand(3, generator=third))
    np.random.set_state(saved[3])


def test_arrays_that_share_memory_or_cannot_be_written_are_saved_too() -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    frozen = base.copy()
    frozen.flags.writeable = False
    whole = torch.arange(6.0)
    tree = {
        "a": base,
        "b": base,
        "row": base[1],
        "transposed": base.T,
        "frozen": frozen,
        "t": whole,
        "part": whole[2:4],
    }
    assert _same(_there_and_back(tree), tree)


class _Thing:
    pass


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    return cycle


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (_Thing(), "/deep/here[0] is <"),
        (_Thing, "_Thing'>, a builtins.type"),
        (lambda: 0, "a builtins.function"),
        (collections.Counter("a"), "a collections.Counter"),
        (np.zeros(2, [("x", "f4")]), "is an array of"),
        (_cycle(), "nested too deeply, or contains itself"),
    ],
)
def test_what_is_no_data_is_refused_when_it_is_saved_and_named(value: Any, said: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(CheckpointError) as refused:
        write_tree(tmp_path, {"deep": {"here": [value]}})
    assert said in str(refused.value)
    assert "get_state" in str(refused.value)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$", "v", "dtype", "shape", "maxlen", "grad", "raw", "x"]), inner, max_size=4
        )
        | st.fixed_dictionaries(
            {
                "$": st.sampled_from(
                    ["int", "dict", "tuple", "set", "deque", "bytes", "scalar", "array", "tensor", "x"]
                ),
                "v": inner | st.sampled_from(["0", "00", "AA=="]),
                "dtype": st.sampled_from(["O", "<f4", "V9", "U0", "(2,)f4", "f4,f4"]) | inner,
                "shape": st.lists(st.integers(-2, 10**12), max_size=2) | inner,
            }
        )
    ),
    max_leaves=8,
)


@settings(max_examples=120)
@given(_JSON)
def test_any_other_json_is_read_as_data_or_refused(document: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_tree(pathlib.Path(folder), np.zeros(1, np.uint8))
        pathlib.Path(folder, "state.json").write_text(json.dumps(document))
        try:
            read = read_tree(pathlib.Path(folder))
        except CheckpointError:
            return
        assert not callable(read)
        write_tree(pathlib.Path(folder), read)  # nothing but data came of it


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "NaN", '{"a": 1, "a": 2}', "1" * 5000, "\xff", '{"$": []}'])
def test_what_is_no_json_of_ours_is_refused(text: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "state.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError):
        read_tree(tmp_path)

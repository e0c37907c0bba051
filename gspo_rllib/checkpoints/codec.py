"""Nested Python values as JSON, and the arrays in them as safetensors: what is read is equal to what was written.

JSON by itself changes numbers and containers: keys become text, tuples become lists, nan is no JSON, and bytes cannot
be said. What it would change is written as ``{"$": kind, "v": ...}``; a mapping that has the key ``"$"`` itself is
written as pairs. There is no kind for a class, a function or an object: nothing that is read can be called.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import json
import math
import pathlib
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from gspo_rllib.errors import CheckpointError, shown
from gspo_rllib.tensor_files import write_one_by_one

STATE = "state"
"""Name of a component's two files, without their endings."""

_KIND, _VALUE = "$", "v"
_MOST_DIGITS = 2**53
"""Integers beyond this are written in base 16: many readers of JSON keep no more, and Python limits decimal ones."""
_LARGE = 1 << 20
"""Bytes of an array that is left in its file where that is asked for."""
_RAW_KINDS = "biufcSUmMV"
"""numpy's kinds of plain memory: everything but objects."""


_TORCH_KNOWS = frozenset(
    np.dtype(name) for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
)


class NotDataError(Exception):
    """A value is code or an object; the message is where in the tree it is, and what it is."""


def write_tree(
    folder: pathlib.Path, tree: Any, *, name: str = STATE, gather: Callable[[Any], torch.Tensor | None] | None = None
) -> None:
    """Writes a tree into ``name.json``, and its arrays into ``name.safetensors`` if it has any.

    Args:
        folder: An existing folder.
        tree: Mappings, sequences, sets, numbers, text, bytes, numpy arrays and scalars, torch tensors.
        name: Name of the two files, without their endings.
        gather: Makes a tensor whole of which this process may hold a share, and returns None where another process
            gets it; all call it for the same shares. They are gathered one after the other, and read as arrays.

    Raises:
        CheckpointError: Something in the tree is no data.
    """
    from safetensors.torch import save_file

    try:
        encoded, tensors = encode(tree)
    except NotDataError as error:
        raise CheckpointError(
            f"{folder.name}: the state cannot be saved as data: {error}. Return numbers, text, arrays and containers "
            "of them from get_state, and make the object again in set_state."
        ) from None
    if gather is not None:
        write_one_by_one(folder / f"{name}.safetensors", tensors, lambda key: gather(tensors[key]))
    elif tensors:
        save_file(tensors, folder / f"{name}.safetensors")
    (folder / f"{name}.json").write_text(json.dumps(encoded, allow_nan=False), encoding="ascii")


def read_tree(folder: pathlib.Path, *, name: str = STATE, mapped: bool = False) -> Any:
    """The tree that ``write_tree`` wrote.

    Args:
        folder: Where it is.
        name: Name of its files.
        mapped: Whether large arrays stay in the file until they are used; whoever asks copies what is to be kept.

    Raises:
        CheckpointError: The files are not what it writes.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / f"{name}.safetensors"
    try:
        encoded = json.loads(
            (folder / f"{name}.json").read_text(encoding="ascii"),
            object_pairs_hook=_object,
            parse_constant=_no_constant,
        )
        with safe_open(file, framework="pt") if file.is_file() else contextlib.nullcontext() as opened:
            if opened is None:
                return decode(encoded, _no_tensor)

            def tensor(key: str) -> torch.Tensor:
                read: torch.Tensor = opened.get_tensor(key)
                return read if mapped and read.nbytes > _LARGE else read.clone()

            return decode(encoded, tensor)
    except (OSError, ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError, MemoryError) as error:
        raise CheckpointError(f"{folder / name}.json cannot be read as a state ({shown(str(error))}).") from error
    except (SafetensorError, struct.error, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{file} cannot be read as a state's arrays ({shown(str(error))}).") from error


def encode(tree: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A tree as what ``json.dumps`` takes, and its arrays by name.

    Raises:
        NotDataError: Something in it is no data.

    Example:
        >>> encode({"lr": 0.5, 3: (1, float("inf"))})[0]
        {'$': 'dict', 'v': [['lr', 0.5], [3, {'$': 'tuple', 'v': [1, {'$': 'float', 'v': '000000000000f07f'}]}]]}
    """
    encoder = _Encoder()
    try:
        return encoder.encode(tree, ""), encoder.tensors
    except RecursionError:
        raise NotDataError("it is nested too deeply, or contains itself") from None


def decode(encoded: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    """The tree that was encoded.

    Args:
        encoded: What ``json.loads`` returned.
        tensor: An array by its name.

    Raises:
        ValueError: It is not what ``encode`` returns; as are TypeError, KeyError and RecursionError.
    """
    kind = type(encoded)
    if encoded is None or kind in (bool, int, float, str):
        return encoded
    if kind is list:
        return [decode(item, tensor) for item in encoded]
    if kind is not dict:
        raise ValueError(f"{shown(encoded)} is no JSON")
    if _KIND not in encoded:
        return {key: decode(value, tensor) for key, value in encoded.items()}
    return _DECODERS[encoded[_KIND]](encoded, tensor)


class _Encoder:
    """Encodes one tree; gathers its arrays."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._storages: set[int] = set()

    def encode(self, value: Any, where: str) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is float:
            return value if math.isfinite(value) else _tagged("float", struct.pack("<d", value).hex())
        if kind is int:
            return value if abs(value) <= _MOST_DIGITS else _tagged("int", hex(value))
        if kind is str:
            return value if _is_plain(value) else _tagged("str", value.encode("utf-32-le", "surrogatepass").hex())
        if kind is list:
            return [self.encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
        if kind is dict:
            return self._mapping(value, where)
        return self._rarer(value, where)

    def _mapping(self, value: Mapping[Any, Any], where: str) -> Any:
        if all(type(key) is str and _is_plain(key) for key in value) and _KIND not in value:
            return {key: self.encode(item, f"{where}/{key}") for key, item in value.items()}
        return _tagged("dict", self._pairs(value, where))

    def _pairs(self, value: Mapping[Any, Any], where: str) -> list[Any]:
        return [
            [self.encode(key, f"{where} (a key)"), self.encode(item, f"{where}/{key}")] for key, item in value.items()
        ]

    def _rarer(self, value: Any, where: str) -> Any:
        kind = type(value)
        if kind in (tuple, set, frozenset):
            return _tagged(kind.__name__, [self.encode(item, f"{where}[{i}]") for i, item in enumerate(value)])
        if kind is collections.OrderedDict:
            return _tagged("OrderedDict", self._pairs(value, where))
        if kind is collections.deque:
            items = [self.encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
            return {**_tagged("deque", items), "maxlen": value.maxlen}
        if kind in (bytes, bytearray):
            return _tagged(kind.__name__, base64.b64encode(value).decode())
        if kind is complex:
            return _tagged("complex", struct.pack("<dd", value.real, value.imag).hex())
        if isinstance(value, pathlib.PurePath) and kind is type(pathlib.Path()):
            return _tagged("path", self.encode(str(value), where))
        if isinstance(value, np.generic) and value.dtype.kind in _RAW_KINDS and value.dtype.names is None:
            return {**_tagged("scalar", base64.b64encode(value.tobytes()).decode()), "dtype": value.dtype.str}
        if kind is np.ndarray:
            return self._array(value, where)
        if kind in (torch.Tensor, torch.nn.Parameter) and value.layout is torch.strided:
            return {**_tagged("tensor", self._add(value.detach().cpu())), "grad": value.requires_grad}
        if hasattr(value, "full_tensor"):  # a share
            return self._share(value)
        raise NotDataError(f"{where or 'it'} is {shown(value)}, a {kind.__module__}.{kind.__qualname__}")

    def _array(self, array: np.ndarray[Any, Any], where: str) -> Any:
        tagged: dict[str, Any] = {"dtype": array.dtype.str, "shape": list(array.shape)}
        if array.dtype.kind == "O":
            items = [self.encode(item, f"{where}[{i}]") for i, item in enumerate(array.ravel())]
            return {**_tagged("array", items), **tagged}
        if array.dtype.kind not in _RAW_KINDS or array.dtype.names is not None or array.dtype.subdtype is not None:
            raise NotDataError(f"{where or 'it'} is an array of {array.dtype}")
        plain = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype in _TORCH_KNOWS:
            return {**_tagged("array", self._add(_as_tensor(plain))), **tagged}
        # The memory itself: text, dates, long doubles and numbers of the other byte order are not torch's.
        raw = plain.reshape(-1).view(np.uint8) if array.size and array.itemsize else np.empty(0, np.uint8)
        return {**_tagged("array", self._add(_as_tensor(raw))), **tagged, "raw": True}

    def _share(self, share: Any) -> Any:
        """What the array would be that it is a share of."""
        name = str(len(self.tensors))
        self.tensors[name] = share
        dtype = torch.empty(0, dtype=share.dtype).numpy().dtype
        return {**_tagged("array", name), "dtype": dtype.str, "shape": list(share.shape)}

    def _add(self, tensor: torch.Tensor) -> str:
        name = str(len(self.tensors))
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in self._storages or storage.nbytes() != tensor.nbytes
        tensor = tensor.contiguous()
        # safetensors refuses tensors that share memory.
        self.tensors[name] = tensor.clone() if shared else tensor
        self._storages.add(self.tensors[name].untyped_storage().data_ptr())
        return name


def _as_tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    with warnings.catch_warnings():
        # Of arrays that may not be written to, as Ray's object store hands them out; nobody writes here.
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def _tagged(kind: str, value: Any) -> dict[str, Any]:
    return {_KIND: kind, _VALUE: value}


def _is_plain(text: str) -> bool:
    """Whether JSON returns a text as it was: two lone surrogates side by side would come back as one character."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _no_tensor(name: str) -> torch.Tensor:
    raise ValueError(f"array {name} is missing")


def _items(encoded: Mapping[str, Any], tensor: Callable[[str], torch.Tensor]) -> Iterator[Any]:
    if type(encoded[_VALUE]) is not list:
        raise ValueError("a container without items")
    return (decode(item, tensor) for item in encoded[_VALUE])


def _read_pairs(encoded: Mapping[str, Any], tensor: Callable[[str], torch.Tensor]) -> list[tuple[Any, Any]]:
    pairs = [(key, value) for key, value in _items(encoded, tensor)]
    # 1 and True, and two nans, are as different as they were written.
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key is given twice")
    return pairs


def _read_int(encoded: Mapping[str, Any], _: Any) -> int:
    return int(encoded[_VALUE], 16)


def _read_deque(encoded: Mapping[str, Any], tensor: Callable[[str], torch.Tensor]) -> collections.deque[Any]:
    return collections.deque(_items(encoded, tensor), encoded["maxlen"])


def _dtype(encoded: Mapping[str, Any]) -> np.dtype[Any]:
    dtype = np.dtype(str(encoded["dtype"]))
    if dtype.names is not None or dtype.subdtype is not None:
        raise ValueError("a structured type")
    return dtype


def _read_scalar(encoded: Mapping[str, Any], _: Any) -> Any:
    dtype = _dtype(encoded)
    raw = base64.b64decode(encoded[_VALUE], validate=True)
    if dtype.kind not in _RAW_KINDS:
        raise ValueError("a scalar that is an object")
    if not dtype.itemsize:  # an empty text
        return dtype.type()
    (value,) = np.frombuffer(raw, dtype)
    return value


def _read_array(encoded: Mapping[str, Any], tensor: Callable[[str], torch.Tensor]) -> np.ndarray[Any, Any]:
    dtype, shape = _dtype(encoded), tuple(int(size) for size in encoded["shape"])
    if dtype.kind == "O":
        items = list(_items(encoded, tensor))
        array = np.empty(len(items), dtype)
        for i, item in enumerate(items):
            array[i] = item
        return array.reshape(shape)
    raw = tensor(str(encoded[_VALUE])).numpy()
    if not encoded.get("raw"):
        if raw.dtype != dtype or raw.shape != shape:
            raise ValueError("an array of another type or shape")
        return raw
    if math.prod(shape) * dtype.itemsize != raw.size or any(size < 0 for size in shape):
        raise ValueError("an array of another size")
    return raw.view(dtype).reshape(shape) if raw.size else np.empty(shape, dtype)


def _read_tensor(encoded: Mapping[str, Any], tensor: Callable[[str], torch.Tensor]) -> torch.Tensor:
    return tensor(str(encoded[_VALUE])).requires_grad_(encoded["grad"] is True)


_DECODERS: Mapping[str, Callable[[Mapping[str, Any], Callable[[str], torch.Tensor]], Any]] = {
    "float": lambda encoded, _: struct.unpack("<d", bytes.fromhex(encoded[_VALUE]))[0],
    "int": _read_int,
    "str": lambda encoded, _: bytes.fromhex(encoded[_VALUE]).decode("utf-32-le", "surrogatepass"),
    "dict": lambda encoded, tensor: dict(_read_pairs(encoded, tensor)),
    "OrderedDict": lambda encoded, tensor: collections.OrderedDict(_read_pairs(encoded, tensor)),
    "tuple": lambda encoded, tensor: tuple(_items(encoded, tensor)),
    "set": lambda encoded, tensor: set(_items(encoded, tensor)),
    "frozenset": lambda encoded, tensor: frozenset(_items(encoded, tensor)),
    "deque": _read_deque,
    "bytes": lambda encoded, _: base64.b64decode(encoded[_VALUE], validate=True),
    "bytearray": lambda encoded, _: bytearray(base64.b64decode(encoded[_VALUE], validate=True)),
    "complex": lambda encoded, _: complex(*struct.unpack("<dd", bytes.fromhex(encoded[_VALUE]))),
    "path": lambda encoded, tensor: pathlib.Path(decode(encoded[_VALUE], tensor)),
    "scalar": _read_scalar,
    "array": _read_array,
    "tensor": _read_tensor,
}

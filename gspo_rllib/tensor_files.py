"""Safetensors files that are written tensor by tensor, so that of many large ones only one need be in memory.

The package of that name takes all of them at once. What is written here is what it writes, byte by byte.
"""

from __future__ import annotations

import contextlib
import functools
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def write_one_by_one(
    file: Path,
    like: Mapping[str, torch.Tensor],
    fetch: Callable[[str], torch.Tensor | None],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a file of tensors that are fetched one after the other, larger numbers first, else in the given order.

    Args:
        file: Where to.
        like: By name, a tensor of the dtype and shape of each; what it holds is not looked at.
        fetch: The tensor of a name; None everywhere in a process that only takes part in gathering them, which writes
            no file.
        metadata: Goes into the file's header.

    Raises:
        OSError: It cannot be written; raised after everything was fetched, since others take part.
    """
    ordered = sorted(like, key=lambda name: -like[name].element_size())
    failure: OSError | None = None
    with contextlib.ExitStack() as stack:
        opened = None
        for name in ordered:
            tensor = fetch(name)
            if tensor is None or failure is not None:
                continue
            try:
                if opened is None:
                    opened = stack.enter_context(file.open("wb"))
                    opened.write(_header({name: like[name] for name in ordered}, metadata))
                opened.write(_memory(tensor))
            except OSError as error:
                failure = error
    if failure is not None:
        raise failure


def _header(like: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    start = 0
    for name, tensor in like.items():
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _dtype_name(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [start, end]
        }  # fmt: skip
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


@functools.cache
def _dtype_name(dtype: torch.dtype) -> str:
    """The format's name of a dtype, as its own package writes it."""
    from safetensors.torch import save

    written = save({"a": torch.empty(0, dtype=dtype)})
    name: str = json.loads(written[8:])["a"]["dtype"]
    return name


def _memory(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

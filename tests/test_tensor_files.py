"""Files of tensors that are written one by one: those of the safetensors package, byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gspo_rllib.tensor_files import write_one_by_one

_DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool)
_SHAPES = st.lists(st.integers(0, 3), max_size=3)


_KINDS = st.dictionaries(st.text(max_size=6), st.tuples(st.sampled_from(_DTYPES), _SHAPES), min_size=1)


@settings(max_examples=25)
@given(_KINDS, st.booleans())
def test_it_is_the_packages_own_file(tmp_path_factory: pytest.TempPathFactory, kinds: Any, with_metadata: bool) -> None:
    folder = tmp_path_factory.mktemp("files")
    tensors = {name: (torch.randn(shape) * 3).to(dtype) for name, (dtype, shape) in kinds.items()}
    metadata = {"format": "pt"} if with_metadata else None
    write_one_by_one(folder / "ours", {name: tensors[name] for name in sorted(tensors)}, tensors.get, metadata=metadata)
    save_file(tensors, folder / "theirs", metadata=metadata)
    read = load_file(folder / "ours")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    if len({tensor.dtype for tensor in tensors.values()}) == 1:  # it sorts dtypes of one size, too
        assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()


def test_a_full_disk_is_told_when_nobody_waits_any_more(tmp_path: Path) -> None:
    tensors, asked = {name: torch.ones(3) for name in "abc"}, []

    def fetch(name: str) -> torch.Tensor:
        asked.append(name)
        return tensors[name]

    full = mock.Mock(side_effect=OSError("no space left on device"))
    with mock.patch.object(Path, "open", full), pytest.raises(OSError, match="no space left"):
        write_one_by_one(tmp_path / "file", tensors, fetch)
    assert asked == ["a", "b", "c"]


def test_who_only_takes_part_writes_nothing(tmp_path: Path) -> None:
    write_one_by_one(tmp_path / "file", {"a": torch.ones(3)}, lambda name: None)
    assert not (tmp_path / "file").exists()

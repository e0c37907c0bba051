"""A sharded model's folder, written tensor by tensor: by a group of one process, the files of the whole model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from gspo_rllib.modules import CausalLMModule, share_files
from gspo_rllib.modules.shares import loaded_as_shares, mesh_of_all
from tests.modules.adapted_policies import build, move


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def _both(path: str) -> tuple[CausalLMModule, CausalLMModule]:
    """The same policy whole and as shares."""
    whole = build(path, None)
    move(whole)
    with loaded_as_shares(mesh_of_all("cpu")):
        cut = build(path, None)
        cut.shard("cpu")
    cut.set_state(whole.get_state())
    return whole, cut


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _written(path: str, folder: Path) -> tuple[Path, Path]:
    whole, cut = _both(path)
    for name, module in (("whole", whole), ("cut", cut)):
        (folder / name).mkdir()
        module.write_folder(folder / name)
    return folder / "whole", folder / "cut"


@pytest.mark.parametrize("model", ["tiny_tied", "tiny_moe"])
def test_the_files_are_those_of_the_whole(
    model: str, request: pytest.FixtureRequest, tmp_path: Path, alone: None
) -> None:
    whole, cut = _written(request.getfixturevalue(model), tmp_path)
    assert _files(cut) == _files(whole)


@pytest.mark.slow
def test_in_several_files_too(tiny_moe: str, tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may hold a part of a fused parameter's experts, which are dealt out otherwise where they are views."""
    monkeypatch.setattr("gspo_rllib.model_files._SHARD", "60KB")
    whole, cut = _written(tiny_moe, tmp_path)
    one, other = (
        {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()} for folder in (whole, cut)
    )
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 5 and index["weight_map"].keys() == one.keys()
    assert index["metadata"] == json.loads((whole / "model.safetensors.index.json").read_text())["metadata"]
    written, expected = (CausalLMModule.from_checkpoint(folder).get_state() for folder in (cut, whole))
    assert all((value == expected[name]).all() for name, value in written.items())


def test_what_is_gathered_for_a_tensor_is_gone_before_the_next(tiny_moe: str, tmp_path: Path, alone: None) -> None:
    _, cut = _both(tiny_moe)
    asked: list[int] = []
    fetch = share_files._Gathering.fetch

    def counted(gathering: Any, name: str) -> Any:
        tensor = fetch(gathering, name)
        asked.append(len(gathering._waiting))
        return tensor

    with mock.patch.object(share_files._Gathering, "fetch", counted):
        cut.write_folder(tmp_path)
    # A layer's experts wait for their turn: 4 experts, of which a file has 3 matrices each; nothing else does.
    assert len(asked) > 30 and max(asked) < 12


@pytest.mark.slow
def test_a_full_disk_is_told_after_all_was_gathered(tiny_moe: str, tmp_path: Path, alone: None) -> None:
    _, cut = _both(tiny_moe)
    gathered: list[str] = []
    fetch = share_files._Gathering.fetch

    def counted(gathering: Any, name: str) -> Any:
        gathered.append(name)
        return fetch(gathering, name)

    with (
        mock.patch.object(share_files._Gathering, "fetch", counted),
        mock.patch("gspo_rllib.tensor_files._memory", side_effect=OSError("no space left on device")),
        pytest.raises(OSError, match="no space left"),
    ):
        cut.write_folder(tmp_path)
    assert len(gathered) == len(set(gathered)) > 30

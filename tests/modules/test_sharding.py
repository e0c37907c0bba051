"""A module cut into shares, by a group of one process: what it computes, gathers, takes back and refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from gspo_rllib import columns
from gspo_rllib.errors import ModelError
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.modules.frozen import Reach
from gspo_rllib.modules.recomputation import decoder_layers
from gspo_rllib.modules.scoring import Rows
from gspo_rllib.modules.sharding import is_sharded, largest_over_ranks, share_of, shares_of, whole_state
from gspo_rllib.packing import empty_row
from tests.modules.adapted_policies import build, move


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def _scores(module: CausalLMModule) -> torch.Tensor:
    row = empty_row()
    row[columns.TOKEN_IDS] = torch.tensor([5, 7])
    with torch.no_grad():
        logp: torch.Tensor = module.forward_train(row)[columns.LOGP]
    return logp


def test_a_share_computes_gathers_and_takes_back_what_the_whole_is(tiny_tied: str, alone: None) -> None:
    whole, cut = build(tiny_tied, None), build(tiny_tied, None)
    cut.shard("cpu")
    assert is_sharded(cut) and not is_sharded(whole)
    assert all(isinstance(parameter, DTensor) for parameter in cut.parameters())
    torch.testing.assert_close(_scores(cut), _scores(whole), atol=1e-6, rtol=0)
    gathered = whole_state(cut)
    assert list(gathered) == list(whole.state_dict())
    assert gathered["model.lm_head.weight"] is gathered["model.model.embed_tokens.weight"]
    assert all(torch.equal(tensor, gathered[name]) for name, tensor in whole.state_dict().items())
    move(whole)
    before = _scores(cut)
    cut.load_state_dict(shares_of(cut, whole.state_dict()))
    # Nothing of the old weights is left where a pass gathered them.
    torch.testing.assert_close(_scores(cut), _scores(whole), atol=1e-6, rtol=0)
    assert float((_scores(cut) - before).abs()) > 1e-3
    cut.set_state(build(tiny_tied, None).get_state())
    assert torch.equal(_scores(cut), before)


def test_a_folder_of_shares_is_that_of_the_whole(tiny_moe: str, tmp_path: Path, alone: None) -> None:
    whole, cut = build(tiny_moe, None), build(tiny_moe, None)
    move(whole)
    cut.shard("cpu")
    whole.save_to_path(tmp_path / "whole")
    cut.restore_from_path(tmp_path / "whole")
    cut.save_to_path(tmp_path / "cut")
    files = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert files == {file.name: file.read_bytes() for file in (tmp_path / "cut").iterdir()}


def test_an_adapter_finds_its_parameters_after_they_were_made_anew(tiny_dense: str, alone: None) -> None:
    whole, cut = build(tiny_dense, {"rank": 4}), build(tiny_dense, {"rank": 4})
    assert cut.adapter is not None
    cut.shard("cpu")
    base = _scores(cut)
    trained = cut.policy_parameters()
    assert trained and all(isinstance(parameter, DTensor) and parameter.requires_grad for parameter in trained)
    move(whole)
    cut.set_state(whole.get_state())
    moved = _scores(cut)
    torch.testing.assert_close(moved, _scores(whole), atol=1e-6, rtol=0)
    assert float((moved - base).abs()) > 1e-3
    with cut.adapter.off():
        assert torch.equal(_scores(cut), base)
    assert torch.equal(_scores(cut), moved)
    assert all(one is other for one, other in zip(cut.policy_parameters(), trained, strict=True))


def test_layers_that_share_a_parameter_are_refused(tiny_dense: str, alone: None) -> None:
    module = build(tiny_dense, None)
    first, second = decoder_layers(module.model)
    second.mlp = first.mlp
    with pytest.raises(ModelError, match=r"'model\.layers\.0\.mlp\.\S+' is 'model\.layers\.1\.mlp\.\S+' too"):
        module.shard("cpu")


def test_a_head_that_is_a_part_of_a_layer_is_refused(tiny_dense: str, alone: None) -> None:
    module = build(tiny_dense, None)
    first, _ = decoder_layers(module.model)
    first.extra = module.model.lm_head
    with pytest.raises(ModelError, match=r"'model\.layers\.0\.extra\.weight' is 'lm_head\.weight' too"):
        module.shard("cpu")


def test_passes_that_differ_from_rank_to_rank_are_refused(tiny_dense: str) -> None:
    module = build(tiny_dense, None)
    module.scoring = dataclasses.replace(module.scoring, rows=Rows.SINGLE)
    with pytest.raises(ModelError, match="in one forward pass for each segment"):
        module.shard("cpu")
    module = build(tiny_dense, None)
    module.reach = Reach((), may_miss=True)
    with pytest.raises(ModelError, match="may leave a trained parameter without a gradient"):
        module.shard("cpu")


def test_what_is_whole_stays_as_it_is(tiny_dense: str, alone: None) -> None:
    module = build(tiny_dense, None)
    state = module.state_dict()
    assert all(tensor.data_ptr() == state[name].data_ptr() for name, tensor in whole_state(module).items())
    tensor = torch.ones(3)
    assert share_of(tensor, torch.zeros(3)) is tensor
    assert largest_over_ranks([3, 1], "cpu") == [3, 1]

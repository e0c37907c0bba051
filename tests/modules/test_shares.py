"""A model that is loaded as shares: by a group of one process, and by two whose memory is watched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.tensor import DTensor

from gspo_rllib import columns
from gspo_rllib.errors import ModelError
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.modules.loading import load_causal_lm, load_first_layers
from gspo_rllib.modules.sharding import is_sharded, whole_state
from gspo_rllib.modules.shares import loaded_as_shares, loads_shares, mesh_of_all
from gspo_rllib.packing import empty_row
from gspo_rllib.warmstart.models import build_model
from tests.learners.ranks import on_ranks
from tests.modules.adapted_policies import LORA, build
from tests.modules.foreign_models import build as foreign
from tests.modules.foreign_models import save, scoring_of
from tests.own_memory import WIDE, OwnMemory


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def _loaded(path: str, lora: dict[str, Any] | None = None, **model: Any) -> CausalLMModule:
    """As a learner that shares its model builds and shards it."""
    with loaded_as_shares(mesh_of_all("cpu")):
        module = build(path, lora, **model)
        module.shard("cpu")
    return module


def _scores(module: CausalLMModule) -> torch.Tensor:
    with torch.no_grad():
        logp: torch.Tensor = module.forward_train(empty_row())[columns.LOGP]
    return logp


@pytest.mark.parametrize("model", ["tiny_tied", "tiny_moe"])
def test_what_is_loaded_as_shares_is_what_is_loaded_whole(
    model: str, request: pytest.FixtureRequest, alone: None
) -> None:
    path = request.getfixturevalue(model)
    cut, whole = _loaded(path), build(path, None)
    assert not loads_shares() and "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ
    assert all(isinstance(parameter, DTensor) for parameter in cut.parameters()) and not is_sharded(whole)
    gathered = whole_state(cut)
    assert list(gathered) == list(whole.state_dict())
    assert all(torch.equal(gathered[name], tensor) for name, tensor in whole.state_dict().items())
    assert (cut.scoring.rows, cut.scoring.head, cut.reach) == (whole.scoring.rows, whole.scoring.head, whole.reach)
    torch.testing.assert_close(_scores(cut), _scores(whole), atol=1e-6, rtol=0)
    head = cut.model.get_output_embeddings().weight
    assert (head is cut.model.get_input_embeddings().weight) == (model == "tiny_tied")


def test_an_adapter_knows_the_weights_below_it_from_their_shares(tiny_dense: str, alone: None) -> None:
    cut, whole = _loaded(tiny_dense, LORA["tiny_dense"]), build(tiny_dense, LORA["tiny_dense"])
    assert cut.adapter is not None and whole.adapter is not None
    assert cut.adapter._base == whole.adapter._base
    torch.testing.assert_close(_scores(cut), _scores(whole), atol=1e-6, rtol=0)


def test_a_part_that_text_does_not_reach_is_frozen_in_shares_too(
    tiny_dense: str, tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_tower(*args: Any, **kwargs: Any) -> Any:
        model, config_class = load_causal_lm(*args, **kwargs)
        model.tower = torch.nn.Linear(3, 3)
        return model, config_class

    monkeypatch.setattr("gspo_rllib.modules.causal_lm.load_causal_lm", with_tower)
    cut = _loaded(tiny_dense)
    assert cut.reach.frozen == build(tiny_dense, None).reach.frozen == ("model.tower.weight", "model.tower.bias")
    assert [name for name, p in cut.named_parameters() if not p.requires_grad] == list(cut.reach.frozen)


def _spoilt(path: str, target: Path, change: Any) -> str:
    """A copy of a model's folder with other weights."""
    for file in Path(path).iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, target / "model.safetensors")
    return str(target)


def test_a_folder_is_refused_as_when_it_is_loaded_whole(tiny_tied: str, tmp_path: Path, alone: None) -> None:
    def untied(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1

    def torn(weights: dict[str, torch.Tensor]) -> None:
        del weights["model.norm.weight"]

    for number, (change, words) in enumerate([(untied, "and they differ"), (torn, "are not in the folder")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(ModelError, match=words), loaded_as_shares(mesh_of_all("cpu")):
            load_causal_lm(_spoilt(tiny_tied, folder, change), trust_remote_code=False)


def test_a_weight_that_is_no_number_is_named(tiny_dense: str, tmp_path: Path, alone: None) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")

    path = _spoilt(tiny_dense, tmp_path, spoil)
    said = rf"{path}': a weight of shape \(128, 64\) holds numbers that are not finite"
    with pytest.raises(ModelError, match=said), loaded_as_shares(mesh_of_all("cpu")):
        load_causal_lm(path, trust_remote_code=False)
    assert "HF_DEACTIVATE_ASYNC_LOAD" not in os.environ


@pytest.mark.parametrize(
    "kind",
    [
        "sinks",
        pytest.param("ordinary", marks=pytest.mark.slow),
        pytest.param("soft-capped attention scores", marks=pytest.mark.slow),
    ],
)
def test_the_first_layers_are_scored_as_the_whole_is(kind: str, tiny_dense: str, tmp_path: Path) -> None:
    whole = foreign(kind, num_hidden_layers=4)
    few = load_first_layers(save(whole, tmp_path / "model", tokenizer=tiny_dense), trust_remote_code=False)
    assert few is not None and scoring_of(few) == scoring_of(whole)
    kept = few.state_dict()
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in kept.items())


def test_layers_of_one_kind_are_looked_at_once(tiny_dense: str) -> None:
    few = load_first_layers(tiny_dense, trust_remote_code=False)
    assert few is not None
    assert few.config.num_hidden_layers == 1 and few.config.layer_types == ["full_attention"]


def test_what_a_part_is_refused_for_is_looked_at_with_the_whole(
    tiny_dense: str, alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some models cannot do with fewer layers than their config was written for."""

    def broken(path: str, **kwargs: Any) -> Any:
        few = load_first_layers(path, **kwargs)
        few.model.layers = None
        return few

    monkeypatch.setattr("gspo_rllib.modules.causal_lm.load_first_layers", broken)
    assert _loaded(tiny_dense).scoring == build(tiny_dense, None).scoring


def _peak_of_loading(rank: int, path: str, small: str) -> dict[str, float]:
    """MB by which this process's own memory grew at most, and what it holds then."""
    with loaded_as_shares(mesh_of_all("cpu")):
        load_causal_lm(small, trust_remote_code=False)  # libraries
        with OwnMemory() as watched:
            model, _ = load_causal_lm(path, trust_remote_code=False)
    whole, _ = load_causal_lm(path, trust_remote_code=False)
    state = whole.state_dict()
    shares = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, DTensor)}
    return {
        "share": sum(parameter.to_local().nbytes for parameter in model.parameters()) / 1e6,
        "largest": max(parameter.nbytes for parameter in whole.parameters()) / 1e6,
        "grown": watched.grown,
        "difference": max(float((share.full_tensor() - state[name]).abs().max()) for name, share in shares.items()),
    }


@pytest.mark.slow
def test_no_process_holds_more_than_its_share_and_one_tensor(tiny_moe: str, tmp_path: Path) -> None:
    """76 M parameters: 303 MB, of which each of two processes is to hold half, and never more than 25 MB beside it."""
    path = str(build_model(tmp_path / "wide", **WIDE))
    for figures in on_ranks(_peak_of_loading, path, tiny_moe):
        print(figures)
        assert figures["difference"] == 0.0
        assert figures["grown"] <= figures["share"] + figures["largest"] + 8.0
    for figures in on_ranks(_peak_of_loading, tiny_moe, tiny_moe):
        assert figures["difference"] == 0.0

"""LoRA: exact however it is scored, nothing at first, the base when off, merged, saved, and refused where wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from gspo_rllib import columns
from gspo_rllib.errors import ModelError
from gspo_rllib.model_files import ADAPTER_BASE, ADAPTER_CONFIG, ADAPTER_WEIGHTS
from gspo_rllib.modules import CausalLMModule
from gspo_rllib.modules.lora_settings import adapter_config
from gspo_rllib.modules.own_attention import own_attention
from gspo_rllib.packing import pack, packed_rows
from gspo_rllib.types import TokenTrajectory
from tests.modules.adapted_policies import IDS, LORA, build, move

KINDS = sorted(LORA)
WAYS: dict[str, dict[str, Any]] = {
    "packed": {"shared_prefixes": False},
    "shared prefixes": {"shared_prefixes": True},
    "checkpointed": {"activation_checkpointing": True},
}


def trajectories() -> list[TokenTrajectory]:
    """Two groups of four that share a prompt of 24 tokens, of uneven length."""
    made = []
    for group in range(2):
        rng = np.random.default_rng(group)
        prompt = rng.integers(0, 256, 24)
        for index in range(4):
            ids = np.concatenate([prompt, rng.integers(0, 256, 5 + 4 * index)]).astype(np.int32)
            sampled = np.arange(len(ids)) >= len(prompt)
            count = int(sampled.sum())
            advantages = rng.normal(size=count).astype(np.float32)
            logp, turns = np.zeros(count, np.float32), np.zeros(count, np.int32)
            made.append(
                TokenTrajectory(f"g{group}", index, (ids,), (sampled,), turns, logp, 0, np.zeros(1), advantages)
            )
    return made


def scores(module: CausalLMModule, rows: list[dict[str, Any]]) -> tuple[dict[int, Tensor], list[Tensor]]:
    """Log-probs by advantage, which tells a token from every other, and the gradient of a loss of all of them."""
    found: dict[int, Tensor] = {}
    module.zero_grad(set_to_none=True)
    for row in rows:
        out = module._forward(row)
        (out[columns.LOGP] * row[columns.ADVANTAGES] + 0.01 * out[columns.ENTROPY]).sum().backward()
        found |= zip(row[columns.ADVANTAGES].tolist(), out[columns.LOGP].detach(), strict=True)
    return found, [parameter.grad for parameter in module.policy_parameters()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_scoring_gives_what_one_trajectory_per_row_does(
    kind: str, way: str, request: pytest.FixtureRequest
) -> None:
    module = build(request.getfixturevalue(kind), LORA[kind], **WAYS[way])
    move(module)
    alone, expected = scores(module, [pack([t]) for t in trajectories()])
    sharing = module.prefix_sharing() if way != "packed" else None
    rows = [row for _, row in packed_rows(trajectories(), max_tokens=200, sharing=sharing, device="cpu")]
    assert len(rows) < 8 and (columns.SEGMENT_PREFIXES in rows[0]) == (sharing is not None)
    together, gradient = scores(module, rows)
    assert together.keys() == alone.keys()
    assert max(float((together[key] - alone[key]).abs()) for key in alone) <= 5e-5
    distance = torch.stack([(a - b).norm() for a, b in zip(gradient, expected, strict=True)]).norm()
    assert float(distance / torch.stack([g.norm() for g in expected]).norm()) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_moves_nothing_and_one_that_is_off_is_the_base_bit_by_bit(
    kind: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(kind)
    module, plain, row = build(path, LORA[kind]), build(path, None), pack(trajectories()[:2])
    with torch.no_grad():
        base = plain._forward(row)[columns.LOGP]
        assert torch.equal(module._forward(row)[columns.LOGP], base)
        move(module)
        assert float((module._forward(row)[columns.LOGP] - base).abs().max()) > 0.1
        with module.adapter.off():
            assert torch.equal(module._forward(row)[columns.LOGP], base)
    assert all(parameter.requires_grad for parameter in module.policy_parameters())
    trained = {id(parameter) for parameter in module.policy_parameters()}
    assert all(p.requires_grad == (id(p) in trained) for p in module.parameters())
    assert 0 < sum(p.numel() for p in module.policy_parameters()) < 0.5 * sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_weights_are_the_policys_under_the_names_of_its_model(
    kind: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(kind)
    module = build(path, LORA[kind])
    move(module)
    merged = module.adapter.merged_state()
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    with own_attention(module.model), own_attention(plain), torch.no_grad():
        difference = module.model(IDS).logits.log_softmax(-1) - plain(IDS).logits.log_softmax(-1)
    assert float(difference.abs().max()) <= 1e-4
    state = module.get_state(inference_only=True)
    assert state.keys() == {f"model.{name}" for name in merged}


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_adapter_is_restored_bit_by_bit_and_peft_loads_it(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM

    path = request.getfixturevalue(kind)
    module, other = build(path, LORA[kind]), build(path, LORA[kind])
    move(module)
    module.save_to_path(str(tmp_path / "policy"))
    assert not list((tmp_path / "policy").glob("model*.safetensors"))
    other.restore_from_path(str(tmp_path / "policy"))
    started = build(path, {"adapter": str(tmp_path / "policy")})
    for again in (other, started):
        expected = module.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())
        assert again.adapter.config_json() == module.adapter.config_json()
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float32).eval()
    with own_attention(module.model), torch.no_grad():
        difference = module.model(IDS).logits.log_softmax(-1) - loaded(IDS).logits.log_softmax(-1)
    assert float(difference.abs().max()) <= 5e-5


def test_an_adapter_of_another_base_rank_or_kind_is_refused(tiny_dense: str, tmp_path: Path) -> None:
    module = build(tiny_dense, {"rank": 4})
    module.save_to_path(str(tmp_path / "adapter"))
    build(tiny_dense, None).save_to_path(str(tmp_path / "whole"))
    moved = tmp_path / "moved"
    shutil.copytree(tiny_dense, moved)
    weights = load_file(moved / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1.5
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ModelError, match=r"trained on the weights of .*as they were then; those at .*moved' are others"
    ):
        build(str(moved), {"adapter": str(tmp_path / "adapter")})
    with pytest.raises(ModelError, match=r"an adapter of rank 4 and alpha 32, and this policy's has 8 and 32\."):
        build(tiny_dense, {"rank": 8}).restore_from_path(str(tmp_path / "adapter"))
    with pytest.raises(ModelError, match=r"another one than this policy's: .*Use the same rank, alpha and targets"):
        build(tiny_dense, {"rank": 4, "target_modules": ["q_proj"]}).restore_from_path(str(tmp_path / "adapter"))
    with pytest.raises(ModelError, match="holds a whole model, and this policy has an adapter"):
        module.restore_from_path(str(tmp_path / "whole"))
    with pytest.raises(ModelError, match=r"holds an adapter, and this policy has none.*export --merge"):
        build(tiny_dense, None).restore_from_path(str(tmp_path / "adapter"))
    with pytest.raises(ModelError, match=r"the state lacks .* of this policy's tensors"):
        module.set_state(build(tiny_dense, None).get_state())


def test_an_adapter_of_another_library_is_trained_on_where_it_is_plain(tiny_dense: str, tmp_path: Path) -> None:
    module = build(tiny_dense, {"rank": 4})
    move(module)
    module.save_to_path(str(tmp_path))
    (tmp_path / ADAPTER_BASE).unlink()
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({**config, "lora_dropout": 0.1}))
    again = build(tiny_dense, {"adapter": str(tmp_path)})
    assert torch.equal(again.policy_parameters()[0], module.policy_parameters()[0])
    assert not any(isinstance(part, torch.nn.Dropout) and part.p for part in again.modules())
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(ModelError, match="use_dora is set; only plain LoRA can be trained"):
        build(tiny_dense, {"adapter": str(tmp_path)})
    (tmp_path / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"there is no adapter_model\.safetensors"):
        build(tiny_dense, {"adapter": str(tmp_path)})


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens is set"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is set"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices is set"),
        ({"a_kind_of_next_year": {"x": 1}}, "a_kind_of_next_year is set"),
        ({"init_lora_weights": "orthogonal", "use_dora": False, "loftq_config": {}, "a_kind_of_next_year": None}, None),
    ],
)
def test_what_makes_an_adapter_more_than_plain_lora_is_refused(
    tiny_dense: str, tmp_path: Path, said: dict[str, Any], complaint: str | None
) -> None:
    module = build(tiny_dense, {"rank": 4})
    module.save_to_path(str(tmp_path))
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps({**config, **said}))
    if complaint is None:
        assert build(tiny_dense, {"adapter": str(tmp_path)}).adapter is not None
        return
    with pytest.raises(ModelError, match=f"{complaint}; only plain LoRA can be trained"):
        adapter_config(tmp_path)


def test_a_base_that_passes_no_gradient_on_is_refused(tiny_dense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora import Linear

    forward = Linear.forward
    monkeypatch.setattr(Linear, "forward", lambda self, *args, **kwargs: forward(self, *args, **kwargs).detach())
    with pytest.raises(ModelError, match=r"28 of the 28 parameters of the adapter got no gradient, 'model\.layers\.0"):
        build(tiny_dense, {"rank": 4})

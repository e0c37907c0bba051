"""Compiled decoder layers: the same log-probabilities and gradients, from one program for rows of any length."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gspo_rllib import columns
from gspo_rllib.errors import ModelError
from gspo_rllib.modules import CausalLMModule
from tests.modules.adapted_policies import POLICIES as SHARED
from tests.modules.adapted_policies import build, move

POLICIES = {**SHARED, "bfloat16": ("tiny_dense", None, {"precision": "bfloat16"})}
ROWS = [(60, 64), (20, 30), (33,), (7, 9, 11), (50, 3)]
"""The first is the longest, so only its pass is watched."""


def _row(segments: tuple[int, ...]) -> dict[str, Any]:
    """All but the first token of each segment are sampled; two segments share their beginning."""
    ids = torch.randint(3, 250, (sum(segments),), generator=torch.Generator().manual_seed(sum(segments)))
    loss = torch.cat([torch.arange(n - 1) + sum(segments[:i]) for i, n in enumerate(segments)])
    shared = {columns.SEGMENT_PREFIXES: [-1, 0]} if len(segments) == 2 else {}
    begins = [segments[0] if shared and i else 0 for i in range(len(segments))]
    return {
        columns.TOKEN_IDS: ids,
        columns.POSITION_IDS: torch.cat([torch.arange(n) + at for n, at in zip(segments, begins, strict=True)]),
        columns.SEGMENT_LENGTHS: list(segments),
        columns.LOSS_POSITIONS: loss,
        columns.LOSS_TOKEN_IDS: ids[loss + 1],
        **shared,
    }


def _passes(module: CausalLMModule) -> list[dict[str, torch.Tensor]]:
    """For each row what it is scored with, and the gradient."""
    found = []
    for segments in ROWS:
        module.zero_grad()
        out = module.forward_train(_row(segments))
        sum(value.square().sum() for value in out.values()).backward()
        gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        found.append({name: value.detach() for name, value in out.items()} | gradients)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_compiled_scores_and_learns_as_what_is_not(
    policy: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)  # which all other tests have
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    name, lora, more = POLICIES[policy]
    path = request.getfixturevalue(name)
    modules = [build(path, lora, **more, **({"compiled": ["eager", None]} if on else {})) for on in (False, True)]
    for module in modules:
        move(module)
    for expected, got in zip(*map(_passes, modules), strict=True):
        assert expected.keys() == got.keys()
        for part, value in expected.items():
            assert torch.equal(value, got[part]), part
    frames = torch._dynamo.utils.counters["frames"]
    assert 0 < frames["ok"] == frames["total"]
    # A layer's attention cuts it into parts; another program for every layer or length would be many times as many.
    assert policy == "mixture" or frames["ok"] <= 2 * len(ROWS)


def test_a_module_that_only_samples_is_not_compiled(tiny_dense: str) -> None:
    module = CausalLMModule(inference_only=True, model_config={"path": tiny_dense, "compiled": ["eager", None]})
    assert "compiled" not in module.model.config._attn_implementation


def test_rows_that_are_not_packed_are_refused(tiny_dense: str) -> None:
    with pytest.raises(
        ModelError, match=r"Qwen3ForCausalLM cannot be compiled: it is scored with .*torch_compile_learner"
    ):
        build(tiny_dense, None, packing=False, compiled=["eager", None])

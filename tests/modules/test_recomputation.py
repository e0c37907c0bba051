"""A budget for activations: as few layers as needed compute theirs again, and the gradient stays what it was."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from gspo_rllib import columns
from gspo_rllib.errors import SettingError
from gspo_rllib.modules import CausalLMModule, recomputation
from gspo_rllib.modules.model_config import check_model_config
from gspo_rllib.modules.recomputation import Depth, activations_kept
from tests.modules.adapted_policies import POLICIES, build, move

TOKENS = 160
LIMIT = "max_activation_gb"


def _row(segments: tuple[int, ...] = (TOKENS - 64, 64)) -> dict[str, Any]:
    """A row of segments, the second of which continues the first: all but the first token of each is sampled."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 250, (sum(segments),), generator=generator)
    loss = torch.cat([torch.arange(n - 1) + sum(segments[:i]) for i, n in enumerate(segments)])
    return {
        columns.TOKEN_IDS: ids,
        columns.POSITION_IDS: torch.cat([torch.arange(n) + (segments[0] if i else 0) for i, n in enumerate(segments)]),
        columns.SEGMENT_LENGTHS: list(segments),
        columns.SEGMENT_PREFIXES: [-1, 0][: len(segments)],
        columns.LOSS_POSITIONS: loss,
        columns.LOSS_TOKEN_IDS: ids[loss + 1],
    }


def _gradient(module: CausalLMModule) -> dict[str, torch.Tensor]:
    row = _row()
    out = module.forward_train(row)
    weight = torch.linspace(0.5, 1.5, len(row[columns.LOSS_POSITIONS]))
    loss = (weight * out[columns.LOGP]).sum() + 0.1 * out[columns.ENTROPY].sum()
    if columns.VALUES in out:
        loss = loss + out[columns.VALUES].square().sum()
    loss.backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _budgets(module: CausalLMModule) -> dict[Depth, float]:
    """For each depth a budget, in GB, under which the first layers of this row forget so much."""
    module.forward_train(_row())
    costs = module.recomputation._costs
    assert costs is not None
    at = costs.at(TOKENS)
    ways = (at, at.with_attention_kept(), at.in_tiles(costs.at(recomputation.TILE)))
    peaks = [sizes.peak(number) for sizes in ways for number in range(len(at.kept) + 1)]
    return {module.recomputation._cheapest(costs, TOKENS, peak)[1]: 1e-9 * peak * (1 + 1e-9) for peak in peaks}


@pytest.mark.parametrize(
    "policy", [pytest.param(name, marks=[pytest.mark.slow] if name == "adapter" else []) for name in POLICIES]
)
def test_a_gradient_is_the_same_whatever_is_recomputed(
    policy: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recomputation, "TILE", 32)
    name, lora, more = POLICIES[policy]
    path = request.getfixturevalue(name)

    def made(**settings: Any) -> CausalLMModule:
        module = build(path, lora, **more, **settings)
        move(module)
        if module.critic is not None:
            torch.nn.init.normal_(module.critic.value_head.weight, generator=torch.Generator().manual_seed(5))
        return module

    expected = _gradient(made())
    budgets = _budgets(made(max_activation_gb=1e-9))
    assert budgets.keys() | {Depth.ALL} == set(Depth)
    for depth, budget in budgets.items():
        module = made(max_activation_gb=budget)
        got = _gradient(module)
        assert module.recomputation.depths[0] is depth
        assert got.keys() == expected.keys()
        scale = max(float(gradient.abs().max()) for gradient in expected.values())
        for parameter, gradient in expected.items():
            difference = float((got[parameter] - gradient).abs().max())
            # Tiles add up a matrix's gradient in another order; all else is bit for bit the same.
            assert difference <= (1e-6 * scale if depth is Depth.ALL_IN_TILES else 0.0), (depth, parameter)


def _held(module: CausalLMModule, row: dict[str, Any]) -> int:
    """Bytes that are held between the forward and the backward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    module.forward_train(row)  # what is observed is observed
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        out = module.forward_train(row)
    held = sum(storage.nbytes() for storage in storages.values())
    del out
    return held


def test_what_is_held_stays_below_the_budget_and_near_what_was_worked_out(tiny_dense: str) -> None:
    row = _row((400,))
    whole = build(tiny_dense, None, max_activation_gb=1.0)
    kept = _held(whole, row)
    assert whole.recomputation.num_recomputed == 0
    sizes = whole.recomputation._costs.at(400)
    assert kept == pytest.approx(float(sizes.whole.sum()) + sizes.last - 2 * sizes.entering[-1], rel=0.1)
    for share in (0.9, 0.75):
        budget = share * sizes.peak(0)
        module = build(tiny_dense, None, max_activation_gb=budget / 1e9)
        assert _held(module, row) <= budget
        assert module.recomputation.num_recomputed > 0


def test_longer_rows_recompute_more_and_the_first_layers_do(tiny_dense: str) -> None:
    module = build(tiny_dense, None, max_activation_gb=1.0)
    module.forward_train(_row((64,)))
    budget = 1.05 * module.recomputation._costs.at(64).peak(0)
    module.recomputation._budget = budget
    seen = []
    for tokens in (64, 70, 500):
        module.forward_train(_row((tokens,)))
        seen.append([depth is not Depth.NOTHING for depth in module.recomputation.depths])
    assert seen[0] == [False, False]
    assert seen[1] == [True, False]
    # What the last layer forgets is wanted first, so that forgetting it saves next to nothing.
    assert seen[2] == [True, False]
    assert module.recomputation.depths[0] is Depth.ALL  # a row of less than a tile gains nothing by tiles


def test_a_plan_that_was_made_since_changes_no_gradient(tiny_dense: str) -> None:
    """Two passes before a backward pass: each is computed again as it was computed."""
    gradients = []
    for tiny in (1.0, 1e-9):
        module = build(tiny_dense, None, max_activation_gb=1e-9)
        first = module.forward_train(_row())[columns.LOGP]
        module.recomputation._budget = tiny * 1e9
        second = module.forward_train(_row((100,)))[columns.LOGP]
        (first.sum() + second.sum()).backward()
        gradients.append([p.grad for p in module.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_nothing_is_planned_without_a_gradient_nor_where_activations_are_kept(tiny_dense: str) -> None:
    module = build(tiny_dense, None, max_activation_gb=1e-9)
    with torch.no_grad():
        module.forward_train(_row())
    assert module.recomputation._costs is None
    calls: list[str] = []
    module.model.base_model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append("layer"))
    with activations_kept():
        out = module._forward(_row())
    out[columns.LOGP].sum().backward()
    assert calls == ["layer"]


def test_a_row_that_does_not_fit_is_trained_and_said_once(tiny_dense: str, caplog: pytest.LogCaptureFixture) -> None:
    module = build(tiny_dense, None, max_activation_gb=1e-6)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert module.forward_train(_row())[columns.LOGP].isfinite().all()
    (said,) = (r.getMessage() for r in caplog.records if LIMIT in r.getMessage())
    assert "A row of 160 tokens needs about" in said
    assert f"rl_module.model_config['{LIMIT}'] is 1e-06" in said


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), 2e6, "2", True, [2.0]])
def test_an_illegal_limit_is_refused(value: Any, tiny_dense: str) -> None:
    with pytest.raises(SettingError, match=r"model_config\['max_activation_gb'\] is .*; allowed: float"):
        check_model_config({"path": tiny_dense, LIMIT: value})


def test_a_limit_beside_recomputing_everything_is_refused(tiny_dense: str) -> None:
    with pytest.raises(SettingError, match="Leave one of them out"):
        check_model_config({"path": tiny_dense, LIMIT: 2.0, "activation_checkpointing": True})


def test_a_model_that_does_not_say_which_its_layers_are_is_refused() -> None:
    with pytest.raises(SettingError, match=r"max_activation_gb'\] is 2, but Linear does not say .* set it to None"):
        recomputation.Recomputation([torch.nn.Linear(2, 2)], 2e9)

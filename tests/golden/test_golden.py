"""What other libraries' own loss code returns, reproduced by naming their settings; and the paper's definition."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gspo_rllib.ops import policy_loss, trajectory_mean_advantages
from tests.golden.settings import AGGREGATED, SETTINGS

GOLDEN = json.loads((pathlib.Path(__file__).with_name("gspo_peers.json")).read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}
CELLS = [(implementation, name) for implementation, results in GOLDEN["results"].items() for name in results]


def _loss(implementation: str, case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    logp = torch.tensor(case["logp_new"], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor(case["mask"]).bool()
    advantages = torch.tensor(case.get("advantages_tok", case.get("advantages")), dtype=torch.float64)
    if implementation in AGGREGATED and advantages.ndim == 2:
        advantages = trajectory_mean_advantages(advantages, mask)
    options = SETTINGS[implementation].items()
    loss, statistics = policy_loss(
        logp,
        torch.tensor(case["logp_old"], dtype=torch.float64),
        advantages,
        mask,
        clip_low=case["eps_low"],
        clip_high=case["eps_high"],
        **{key: value(mask) if isinstance(value, Callable) else value for key, value in options},
    )
    loss.backward()
    assert logp.grad is not None
    return loss.detach(), logp.grad, statistics


def test_every_implementation_in_the_file_has_settings():
    assert set(SETTINGS) == set(GOLDEN["results"])


@pytest.mark.parametrize(("implementation", "name"), CELLS)
def test_an_implementation_is_reproduced_by_naming_its_settings(implementation, name):
    expected = GOLDEN["results"][implementation][name]
    tolerance = 1e-10 if implementation.startswith("paper") else 1e-6
    loss, grad, _ = _loss(implementation, CASES[name])
    assert loss.item() == pytest.approx(expected["loss"], rel=tolerance, abs=tolerance)
    expected_grad = torch.tensor(expected["grad"], dtype=torch.float64)
    torch.testing.assert_close(grad, expected_grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", sorted(GOLDEN["results"]["paper"]))
def test_the_ratio_and_what_is_clipped_are_the_papers(name):
    _, _, statistics = _loss("paper", CASES[name])
    rows = [row for row in GOLDEN["results"]["paper"][name]["per_seq"] if row["clipped"] is not None]
    counted = statistics["counted_B"]
    clipped = (statistics["clipped_low_B"] + statistics["clipped_high_B"])[counted]
    assert clipped.tolist() == [float(row["clipped"]) for row in rows]
    ratio = torch.tensor([row["s"] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(statistics["ratio_B"][counted], ratio, rtol=1e-10, atol=0)
    torch.testing.assert_close(statistics["abs_log_ratio_B"][counted], ratio.log().abs(), rtol=1e-8, atol=1e-12)


def test_gspo_token_gives_the_golden_value_and_gradient_too():
    """Equal advantages along a sequence: eq. 11 and 18 of the paper say that GSPO-token is then GSPO."""
    for name, expected in GOLDEN["results"]["paper"].items():
        loss, grad, _ = _loss("paper_gspo_token", CASES[name])
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-10, abs=1e-10)
        expected_grad = torch.tensor(expected["grad"], dtype=torch.float64)
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("level", ["sequence", "sequence_token", "token"])
def test_the_clamp_on_the_log_ratio_binds_above_and_never_below(level):
    """log s = 12 counts as 10 and has no gradient; log s = -12 stays e^-12 = 6.144e-6, gradient too."""
    logp = torch.tensor([[12.0], [-12.0]], dtype=torch.float64, requires_grad=True)
    loss, _ = policy_loss(
        logp,
        torch.zeros(2, 1, dtype=torch.float64),
        torch.tensor([1.0, 1.0], dtype=torch.float64),
        torch.ones(2, 1, dtype=torch.bool),
        importance_sampling_level=level,
        surrogate="policy_gradient",
        max_log_ratio=10.0,
    )
    low, high = 6.14421235e-6, 22026.4657948
    assert loss.item() == pytest.approx(-(low + high) / 2, rel=1e-9)
    assert torch.autograd.grad(loss, logp)[0].flatten().tolist() == [0.0, pytest.approx(-low / 2, rel=1e-6)]

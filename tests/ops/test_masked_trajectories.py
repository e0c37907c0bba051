"""A trajectory that is masked or dropped weighs nothing under any objective: not in the loss, nor by being counted."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gspo_rllib.ops import IMPORTANCE_SAMPLING_LEVELS, REDUCTIONS, SURROGATES, policy_loss

OBJECTIVES = list(itertools.product(IMPORTANCE_SAMPLING_LEVELS, REDUCTIONS))
NAN = float("nan")


def _run(surrogate: str, level: str, reduction: str, rows: dict[str, torch.Tensor]) -> Any:
    logp = rows["logp"].clone().requires_grad_()
    loss, statistics = policy_loss(
        logp, rows["old"], rows["advantage"], rows["mask"], surrogate=surrogate, importance_sampling_level=level,
        reduction=reduction, turn_ids_BT=rows["turns"], weights_BT=rows["weights"], clip_low=0.1, clip_high=0.2,
        token_sum_length=4,
    )  # fmt: skip
    return loss.detach(), torch.autograd.grad(loss, logp)[0], statistics


def _rows(seed: int, count: int, width: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old = -normal(count, width).abs()
    mask = torch.rand(count, width, generator=generator) < 0.7
    mask[:, 0] = True
    return {
        "logp": old + 0.3 * normal(count, width),
        "old": old,
        "advantage": normal(count),
        "mask": mask,
        "turns": (torch.rand(count, width, generator=generator) < 0.4).long().cumsum(dim=1),
        "weights": normal(count, width).abs(),
    }


def _masked(width: int = 5) -> dict[str, torch.Tensor]:
    """A row of which no token counts; everything else about it is broken."""
    broken = torch.full((1, width), NAN, dtype=torch.float64)
    return {
        "logp": broken, "old": broken, "advantage": broken[0, :1], "mask": torch.zeros(1, width).bool(),
        "turns": torch.full((1, width), 9), "weights": broken,
    }  # fmt: skip


def _together(*parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("surrogate", SURROGATES)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**31), count=st.integers(1, 4), before=st.booleans())
def test_a_masked_trajectory_changes_neither_the_loss_nor_a_gradient_nor_a_denominator(surrogate, seed, count, before):
    rows, masked = _rows(seed, count), _masked()
    batch = _together(masked, rows) if before else _together(rows, masked)
    kept = torch.arange(count) + before
    for level, reduction in OBJECTIVES:
        loss, grad, statistics = _run(surrogate, level, reduction, rows)
        with_masked, grad_with_masked, more = _run(surrogate, level, reduction, batch)
        # To the last bits: where a row lies decides which lanes of a vectorised exp round it.
        torch.testing.assert_close(with_masked, loss, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(grad_with_masked[kept], grad, rtol=1e-13, atol=1e-14)
        assert bool((grad_with_masked[count * (not before)] == 0).all()), (level, reduction)
        assert not bool(more["counted_B"][count * (not before)]) and bool(statistics["counted_B"].all())


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_nothing_but_masked_trajectories_is_a_loss_of_exactly_nothing(surrogate):
    for level, reduction in OBJECTIVES:
        loss, grad, statistics = _run(surrogate, level, reduction, _together(_masked(), _masked()))
        assert loss.item() == 0.0 and bool((grad == 0).all()), (level, reduction)
        assert not bool(statistics["counted_B"].any())
        assert all(bool((value == 0).all()) for name, value in statistics.items() if "clip" in name)


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_a_trajectory_that_a_correction_drops_has_no_gradient_but_stays_in_the_denominator(surrogate):
    """Weight 0 takes its terms out; the mean is still over all, so a dropped trajectory makes no other weigh more."""
    rows = _rows(3, 3)
    dropped = {**rows, "weights": rows["weights"].clone()}
    dropped["weights"][1] = 0.0
    for level, reduction in OBJECTIVES:
        _, grad, _ = _run(surrogate, level, reduction, rows)
        _, grad_dropped, _ = _run(surrogate, level, reduction, dropped)
        assert bool((grad_dropped[1] == 0).all()), (level, reduction)
        assert torch.equal(grad_dropped[[0, 2]], grad[[0, 2]]), (level, reduction)

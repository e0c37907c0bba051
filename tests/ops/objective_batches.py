"""Small random batches for the objective, and one call that takes a batch to its loss and gradient."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st

from gspo_rllib.ops import IMPORTANCE_SAMPLING_LEVELS, REDUCTIONS, SURROGATES, policy_loss

PARTS = list(itertools.product(IMPORTANCE_SAMPLING_LEVELS, SURROGATES, REDUCTIONS))
every_objective = pytest.mark.parametrize(("level", "surrogate", "reduction"), PARTS)
few_examples = settings(max_examples=3)
CLIP = {"clip_low": 0.1, "clip_high": 0.2}


@dataclasses.dataclass
class Batch:
    logp: torch.Tensor
    old: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    turn_ids: torch.Tensor
    weights: torch.Tensor

    def map(self, change: Any) -> Batch:
        return Batch(**{name: change(value) for name, value in vars(self).items()})

    def count(self, reduction: str) -> int:
        if reduction == "token_mean":
            return int(self.mask.sum())
        if reduction == "turn_mean":
            rows, columns = self.mask.nonzero(as_tuple=True)
            return len({(int(row), int(self.turn_ids[row, column])) for row, column in zip(rows, columns, strict=True)})
        return int(self.mask.any(dim=1).sum())


@st.composite
def batches(draw: st.DrawFn, *, empty_rows: bool = True, width: int | None = None) -> Batch:
    rows = draw(st.integers(1, 4))
    width = width or draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logp = -normal(rows, width).abs()
    mask = torch.rand(rows, width, generator=generator) < 0.7
    if not empty_rows:
        mask[:, 0] = True
    steps = torch.rand(rows, width, generator=generator) < 0.4
    return Batch(
        logp=logp,
        old=logp + 0.3 * normal(rows, width),
        advantages=normal(rows, width) if draw(st.booleans()) else normal(rows),
        mask=mask,
        turn_ids=steps.long().cumsum(dim=1),
        weights=normal(rows, width).abs(),
    )


def run(batch: Batch, level: str, surrogate: str = "clip", reduction: str = "trajectory_mean", **options: Any) -> Any:
    logp = batch.logp.clone().requires_grad_()
    loss, statistics = policy_loss(
        logp,
        batch.old,
        batch.advantages,
        batch.mask,
        importance_sampling_level=level,
        surrogate=surrogate,
        reduction=reduction,
        turn_ids_BT=batch.turn_ids,
        weights_BT=batch.weights,
        **{**CLIP, **options},
    )
    return loss.detach(), torch.autograd.grad(loss, logp)[0], statistics


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def one_turn(
    logp: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor | None = None
) -> Batch:
    """One turn, no off-policy weights."""
    mask = torch.ones_like(logp, dtype=torch.bool) if mask is None else mask
    return Batch(logp, old, advantages, mask, torch.zeros_like(mask, dtype=torch.long), torch.ones_like(logp))

"""Statistics of one update, as sums and counts: exact over micro-batches, minibatches and ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from gspo_rllib.types import TokenTrajectory

# Means over trajectories or tokens leave out trajectories with a zero advantage: they need no forward pass.

LOSS = "loss"
"""Negative objective of a minibatch, mean over the update's minibatches."""
RATIO_MEAN = "ratio_mean"
"""Importance ratio at the chosen level, mean over trajectories."""
CLIP_FRACTION = "clip_fraction"
"""Fraction of trajectories (of tokens, at token level) whose gradient the clip removed."""
CLIP_FRACTION_LOW = "clip_fraction_low"
"""The part of it below the range, with a negative advantage."""
CLIP_FRACTION_HIGH = "clip_fraction_high"
"""The part of it above the range, with a positive advantage."""
KL_TO_BEHAVIOR = "kl_to_behavior"
"""KL(engine's policy || policy being trained) in nats per sampled token (k3), mean over the update."""
ENTROPY = "entropy"
"""Nats per sampled token."""
ADVANTAGE_ABS_MEAN = "advantage_abs_mean"
"""Mean |advantage| over trajectories; 0 when every group agrees."""
LOGP_GAP_MAX = "logp_gap_max"
"""Largest |engine - learner| log-probability (nats) in the first minibatch, where both have the same weights."""
SEQUENCE_GAP_MEAN = "sequence_gap_mean"
"""Mean |log s| between engine and learner at the same weights: the noise floor a clip range must exceed."""
STALENESS = "staleness"
"""Weights versions between sampling and this update, mean over trajectories; 0 when on policy."""
GRAD_NORM = "grad_norm"
"""Norm of a step's gradient before clipping, mean over steps."""
NUM_STEPS = "num_optimizer_steps"
"""Optimiser steps taken."""
NUM_STEPS_SKIPPED = "num_optimizer_steps_skipped"
"""Optimiser steps not taken because the gradient was not finite."""
NUM_TRAJECTORIES = "num_trajectories"
"""Trajectories trained on."""
NUM_ZERO_ADVANTAGE = "num_zero_advantage_trajectories"
"""Trajectories whose whole group had the same return; they add nothing to the gradient but count in the mean."""
NUM_TOKENS = "num_tokens"
"""Tokens in the trained trajectories, prompts included."""
NUM_SAMPLED_TOKENS = "num_sampled_tokens"
"""Tokens the policy sampled; only these carry loss."""

UPDATE_MEANS = (
    LOSS, RATIO_MEAN, CLIP_FRACTION, CLIP_FRACTION_LOW, CLIP_FRACTION_HIGH, KL_TO_BEHAVIOR, ENTROPY,
    ADVANTAGE_ABS_MEAN, SEQUENCE_GAP_MEAN, STALENESS, GRAD_NORM,
)  # fmt: skip
UPDATE_COUNTS = (NUM_TRAJECTORIES, NUM_ZERO_ADVANTAGE, NUM_TOKENS, NUM_SAMPLED_TOKENS)
PER_RANK_COUNTS = (NUM_STEPS, NUM_STEPS_SKIPPED)
UPDATE_MAXIMA = (LOGP_GAP_MAX,)


class UpdateStatistics:
    """Accumulates ``(sum, count)`` pairs and maxima until the update is over."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = defaultdict(float)
        self._maxima: dict[str, float] = defaultdict(float)

    @property
    def num_steps(self) -> int:
        """Optimiser steps taken or skipped so far."""
        return int(self._sums[NUM_STEPS] + self._sums[NUM_STEPS_SKIPPED])

    def add_mean(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Adds ``count`` observations that sum to ``total`` to the mean called ``name``."""
        self._sums[name] += float(total)
        self._counts[name] += float(count)

    def add_max(self, name: str, value: Tensor | float) -> None:
        """Takes part in the maximum called ``name`` (>= 0)."""
        self._maxima[name] = max(self._maxima[name], float(value))

    def add_trajectories(self, trajectories: Sequence[TokenTrajectory]) -> None:
        """What the update trains on, counted once whatever the number of epochs."""
        self._sums[NUM_TRAJECTORIES] += len(trajectories)
        self._sums[NUM_ZERO_ADVANTAGE] += sum(t.advantage == 0.0 for t in trajectories)
        self._sums[NUM_TOKENS] += sum(t.num_tokens for t in trajectories)
        self._sums[NUM_SAMPLED_TOKENS] += sum(t.num_loss_tokens for t in trajectories)
        self.add_mean(ADVANTAGE_ABS_MEAN, sum(abs(t.advantage) for t in trajectories), len(trajectories))

    def add_step(self, *, grad_norm: float, taken: bool) -> None:
        """One optimiser step, or one that was skipped because its gradient was not finite."""
        if taken:
            self.add_mean(GRAD_NORM, grad_norm, 1)
        self._sums[NUM_STEPS if taken else NUM_STEPS_SKIPPED] += 1

    def compute(self, *, distributed: bool, device: torch.device | str) -> dict[str, float]:
        """The value of every statistic, the same on every rank."""
        # Fixed names: every rank must contribute the same rows, also one that saw no trajectory.
        names = (*UPDATE_MEANS, *UPDATE_COUNTS, *PER_RANK_COUNTS)
        table = torch.tensor([[self._sums[n], self._counts[n]] for n in names], dtype=torch.float64, device=device)
        peaks = torch.tensor([self._maxima[n] for n in UPDATE_MAXIMA], dtype=torch.float64, device=device)
        ranks = 1
        if distributed:
            ranks = torch.distributed.get_world_size()
            torch.distributed.all_reduce(table)
            torch.distributed.all_reduce(peaks, op=torch.distributed.ReduceOp.MAX)
        values = dict(zip(UPDATE_MAXIMA, peaks.tolist(), strict=True))
        for name, (total, count) in zip(names, table.tolist(), strict=True):
            if name in UPDATE_COUNTS:
                values[name] = total
            elif name in PER_RANK_COUNTS:
                values[name] = total / ranks
            elif count:
                values[name] = total / count
        return values

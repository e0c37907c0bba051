"""Statistics of one update, as sums and counts: exact over micro-batches, minibatches and ranks."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gspo_rllib.learners.quantiles import NUM_BINS, binned, quantile
from gspo_rllib.ops import SpreadMoments
from gspo_rllib.types import TokenTrajectory

# Means over trajectories or tokens leave out trajectories with a zero advantage: they need no forward pass.

LOSS = "loss"
"""Negative objective of a minibatch, mean over the update's minibatches."""
RATIO_MEAN = "ratio_mean"
"""Importance ratio at the chosen level, mean over trajectories."""
EFFECTIVE_SAMPLE_SIZE = "effective_sample_size"
"""(sum ratio)^2 / (n * sum ratio^2) over trajectories: 1 when all weigh the same, towards 0 when few dominate."""
ABS_LOG_RATIO_MEAN = "abs_log_ratio_mean"
"""Mean |log s| of trajectories after the first optimiser step: how far a clip range lets the policy move."""
ABS_LOG_RATIO_BY_LENGTH = "abs_log_ratio_by_length"
"""Mean |log s| after the first optimiser step, by sampled tokens; entry ``64`` holds trajectories of 64 to 127."""
ABS_LOG_RATIO_QUANTILES = "abs_log_ratio_quantiles"
"""|log s| of trajectories after the first optimiser step: entry ``p90`` is what nine tenths are not above, to 2 %."""
RATIO_QUANTILES = "ratio_quantiles"
"""Importance ratios after the first optimiser step, before any clip, each trajectory's, turn's or token's once: entry
``p90`` is what nine tenths are not above, with an error of 2 % of its logarithm."""
CLIP_FRACTION = "clip_fraction"
"""Fraction of a trajectory's tokens whose gradient the clip removed (all or none under a sequence ratio), mean over
trajectories."""
CLIP_FRACTION_LOW = "clip_fraction_low"
"""The part of ``clip_fraction`` that is below the range, with a negative advantage."""
CLIP_FRACTION_HIGH = "clip_fraction_high"
"""The part of ``clip_fraction`` that is above the range, with a positive advantage."""
KL_TO_BEHAVIOR = "kl_to_behavior"
"""KL(engine's policy || policy being trained) in nats per sampled token (k3), mean over the update."""
ENTROPY = "entropy"
"""Entropy of the policy being trained, in nats per sampled token."""
ADVANTAGE_ABS_MEAN = "advantage_abs_mean"
"""Mean |advantage| over trajectories; 0 when every group agrees."""
LOGP_GAP_MAX = "logp_gap_max"
"""Largest |engine - learner| log-probability (nats) in the first minibatch, where both have the same weights."""
SEQUENCE_GAP_MEAN = "sequence_gap_mean"
"""Mean |log s| between engine and learner at the same weights: the noise floor a clip range must exceed."""
SEQUENCE_GAP_BY_LENGTH = "sequence_gap_by_length"
"""``sequence_gap_mean`` by sampled tokens; entry ``64`` holds trajectories of 64 to 127."""
OLD_LOGP_RECOMPUTED = "old_log_probs_recomputed"
"""1 where the ratio's denominator was the learner's own before its first step, 0 where it was the engine's."""
SCORING_ROWS = "scoring_rows"
"""What a forward pass of the learner holds: 0 packed rows in which groups may share prompts, 1 packed rows, 2 padded
rows, 3 one segment; the first of these that is exact for the model and allowed by the settings."""
SCORING_HEAD = "scoring_head"
"""Where log-probs come from: 0 the head in blocks on sampled tokens, 1 the model's own logits of sampled tokens, 2 its
own logits of all tokens; the first that is exact for the model."""
KL_TO_REFERENCE = "kl_to_reference"
"""KL(policy being trained || reference) in nats per sampled token, by the configured estimator."""
CORRECTION_WEIGHT_MEAN = "correction_weight_mean"
"""Off-policy weight between engine and learner, mean over sampled tokens; 1 without a correction."""
CORRECTION_MASKED_FRACTION = "correction_masked_fraction"
"""Fraction of sampled tokens whose off-policy weight is 0."""
VF_LOSS = "vf_loss"
"""Squared error of the critic, mean over the update's minibatches (RLlib's name)."""
VF_EXPLAINED_VAR = "vf_explained_var"
"""1 - Var(target - value) / Var(target) over sampled tokens (RLlib's name); 1 is perfect, 0 a constant."""
CLIP_RANGE_MEAN = "clip_range_mean"
"""How far below 1 the ratio could go, mean over trajectories; only where each one has a range of its own."""
CLIP_SCALE = "clip_scale"
"""What ``clip_low`` and ``clip_high`` were multiplied with to reach the target clip fraction."""
KL_TO_OLD = "kl_to_old"
"""KL(policy before the update || policy) in nats per sampled token (k3) on the minibatch after which the update ended;
only with a limit on it."""
ROUTER_DRIFT = "router_drift"
"""Share of sampled tokens that a mixture of experts sends to another set of experts after the update than before it,
mean over layers, of the first minibatch; only where it is asked for."""
ROUTER_GAP = "router_gap"
"""The same share between the engine's pass over eight of the trajectories and the learner's, before the update; only
where ``router_drift`` is asked for and the engine can tell."""
STALENESS = "staleness"
"""Weights versions between sampling and this update, mean over trajectories; 0 when on policy."""
GRAD_NORM = "grad_norm"
"""Norm of a step's gradient before clipping, mean over steps."""
NUM_STEPS = "num_optimizer_steps"
"""Optimiser steps taken."""
NUM_STEPS_SKIPPED = "num_optimizer_steps_skipped"
"""Optimiser steps not taken because the gradient was not finite."""
NUM_STEPS_UNDONE = "num_optimizer_steps_undone"
"""Optimiser steps taken, and then undone because they went beyond ``target_kl``."""
NUM_MINIBATCHES = "num_minibatches"
"""Minibatches the update got to before it ended, those whose step was not taken too."""
ENDED_BY_KL = "ended_by_target_kl"
"""1 where ``target_kl`` ended the update, 0 where its minibatches did."""
NUM_TRAJECTORIES = "num_trajectories"
"""Trajectories trained on."""
NUM_ZERO_ADVANTAGE = "num_zero_advantage_trajectories"
"""Trajectories whose whole group had the same return; they add nothing to the gradient but count in the mean."""
NUM_TOKENS = "num_tokens"
"""Tokens in the trained trajectories, prompts included."""
NUM_SAMPLED_TOKENS = "num_sampled_tokens"
"""Tokens the policy sampled; only these carry loss."""

LENGTH_BUCKETS = tuple(2**power for power in range(21))
"""Lower edges of the length buckets, in sampled tokens; the last one is open."""
BY_LENGTH = tuple(
    f"{name}/{edge}" for name in (ABS_LOG_RATIO_BY_LENGTH, SEQUENCE_GAP_BY_LENGTH) for edge in LENGTH_BUCKETS
)

PERCENTAGES = (10, 50, 90)
"""Which quantiles are reported, as entries ``p10``, ``p50`` and ``p90``."""
DISTRIBUTIONS = (ABS_LOG_RATIO_QUANTILES, RATIO_QUANTILES)
"""What quantiles are taken of."""

LOG_RATIO_MOMENTS = {kind: tuple(f"{kind}_{name}" for name in SpreadMoments._fields) for kind in ("step", "noise")}
"""Means that are not reported, ``SpreadMoments`` of log-ratios after one optimiser step, and at equal weights."""

_RATIO_SQUARED = "ratio_squared"
_VF_TARGET, _VF_TARGET_SQUARED, _VF_ERROR, _VF_ERROR_SQUARED = (
    "vf_target", "vf_target_squared", "vf_error", "vf_error_squared",
)  # fmt: skip
_DERIVED_FROM = (_RATIO_SQUARED, _VF_TARGET, _VF_TARGET_SQUARED, _VF_ERROR, _VF_ERROR_SQUARED)
_INTERMEDIATE = (*_DERIVED_FROM, *LOG_RATIO_MOMENTS["step"], *LOG_RATIO_MOMENTS["noise"])

UPDATE_MEANS = (
    LOSS, RATIO_MEAN, CLIP_FRACTION, CLIP_FRACTION_LOW, CLIP_FRACTION_HIGH, KL_TO_BEHAVIOR, ENTROPY,
    ADVANTAGE_ABS_MEAN, ABS_LOG_RATIO_MEAN, SEQUENCE_GAP_MEAN, STALENESS, GRAD_NORM, OLD_LOGP_RECOMPUTED,
    KL_TO_REFERENCE, CORRECTION_WEIGHT_MEAN, CORRECTION_MASKED_FRACTION, VF_LOSS, CLIP_RANGE_MEAN, KL_TO_OLD,
    ENDED_BY_KL, ROUTER_DRIFT, *_INTERMEDIATE, *BY_LENGTH,
)  # fmt: skip
UPDATE_COUNTS = (NUM_TRAJECTORIES, NUM_ZERO_ADVANTAGE, NUM_TOKENS, NUM_SAMPLED_TOKENS)
PER_RANK_COUNTS = (NUM_STEPS, NUM_STEPS_SKIPPED, NUM_STEPS_UNDONE, NUM_MINIBATCHES)
UPDATE_MAXIMA = (LOGP_GAP_MAX, SCORING_ROWS, SCORING_HEAD)


class UpdateStatistics:
    """Accumulates ``(sum, count)`` pairs and maxima until the update is over.

    Args:
        more_means: Names of means in addition to ``UPDATE_MEANS``; the same on every rank.
    """

    def __init__(self, more_means: Sequence[str] = ()) -> None:
        self._means = (*UPDATE_MEANS, *more_means)
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = defaultdict(float)
        self._maxima: dict[str, float] = defaultdict(float)
        self._bins: dict[str, Tensor] = {}

    @property
    def num_steps(self) -> int:
        """Optimiser steps taken or skipped so far."""
        return int(self._sums[NUM_STEPS] + self._sums[NUM_STEPS_SKIPPED])

    @property
    def num_steps_taken(self) -> int:
        """Optimiser steps taken so far."""
        return int(self._sums[NUM_STEPS])

    def add_mean(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Adds ``count`` observations that sum to ``total`` to the mean called ``name``.

        Raises:
            ValueError: A name that is not reported, so that the value would be lost.
        """
        if name not in self._means:
            raise ValueError(
                f"the statistic {name!r} is unknown, so it would not be reported; name it in the learner class's "
                f"own_statistics, e.g. own_statistics = ({name!r},)"
            )
        self._sums[name] += float(total)
        self._counts[name] += float(count)

    def add_max(self, name: str, value: Tensor | float) -> None:
        """Takes part in the maximum called ``name`` (>= 0)."""
        self._maxima[name] = max(self._maxima[name], float(value))

    def add_trajectories(self, trajectories: Sequence[TokenTrajectory]) -> None:
        """What the update trains on, counted once whatever the number of epochs."""
        self._sums[NUM_TRAJECTORIES] += len(trajectories)
        self._sums[NUM_ZERO_ADVANTAGE] += sum(not t.advantages.any() for t in trajectories)
        self._sums[NUM_TOKENS] += sum(t.num_tokens for t in trajectories)
        self._sums[NUM_SAMPLED_TOKENS] += sum(t.num_loss_tokens for t in trajectories)
        sizes = [float(np.abs(t.advantages).mean()) for t in trajectories if t.num_loss_tokens]
        self.add_mean(ADVANTAGE_ABS_MEAN, sum(sizes), len(sizes))

    def add_ratios(self, ratio_B: Tensor) -> None:
        """Importance ratios of trajectories."""
        self.add_mean(RATIO_MEAN, ratio_B.sum(), len(ratio_B))
        self.add_mean(_RATIO_SQUARED, ratio_B.double().square().sum(), len(ratio_B))

    def add_by_length(self, name: str, value_B: Tensor, length_B: Tensor) -> None:
        """One value per trajectory, to be averaged within buckets of similar length (in sampled tokens, >= 1)."""
        bucket_B = length_B.clamp(1, LENGTH_BUCKETS[-1]).log2().floor().long()
        size = len(LENGTH_BUCKETS)
        sums = torch.zeros(size, dtype=torch.float64, device=value_B.device).index_add_(0, bucket_B, value_B.double())
        counts = torch.bincount(bucket_B, minlength=size)
        for edge, total, count in zip(LENGTH_BUCKETS, sums.tolist(), counts.tolist(), strict=True):
            if count:
                self.add_mean(f"{name}/{edge}", total, count)

    def add_log_ratios(self, name: str, log_ratios: Tensor, weights: Tensor) -> None:
        """Log-ratios (nats) whose quantiles are reported, each with how much it counts; one of ``DISTRIBUTIONS``."""
        counts = binned(log_ratios, weights)
        self._bins[name] = self._bins[name] + counts if name in self._bins else counts

    def add_moments(self, kind: str, sums: SpreadMoments, count: float) -> None:
        """Sums over ``count`` ratios, see ``spread_sums``; ``kind`` is one of ``LOG_RATIO_MOMENTS``."""
        for name, total in zip(LOG_RATIO_MOMENTS[kind], sums, strict=True):
            self.add_mean(name, total, count)

    def add_values(self, value_L: Tensor, target_L: Tensor) -> None:
        """What the critic predicted, and what it should have."""
        error_L = (target_L - value_L).double()
        for name, total in (
            (_VF_TARGET, target_L.double().sum()),
            (_VF_TARGET_SQUARED, target_L.double().square().sum()),
            (_VF_ERROR, error_L.sum()),
            (_VF_ERROR_SQUARED, error_L.square().sum()),
        ):
            self.add_mean(name, total, len(target_L))

    def add_step(self, *, grad_norm: float, taken: bool) -> None:
        """One optimiser step, or one that was skipped because its gradient was not finite."""
        if taken:
            self.add_mean(GRAD_NORM, grad_norm, 1)
        self._sums[NUM_STEPS if taken else NUM_STEPS_SKIPPED] += 1

    def add_count(self, name: str) -> None:
        """One more of ``PER_RANK_COUNTS``; every rank counts alike."""
        self._sums[name] += 1

    def compute(self, *, distributed: bool, device: torch.device | str) -> dict[str, float]:
        """The value of every statistic, the same on every rank."""
        # Fixed names: every rank must contribute the same rows, also one that saw no trajectory.
        names = (*self._means, *UPDATE_COUNTS, *PER_RANK_COUNTS)
        table = torch.tensor([[self._sums[n], self._counts[n]] for n in names], dtype=torch.float64, device=device)
        peaks = torch.tensor([self._maxima[n] for n in UPDATE_MAXIMA], dtype=torch.float64, device=device)
        nothing = torch.zeros(NUM_BINS, dtype=torch.float64, device=device)
        bins = torch.stack([self._bins.get(name, nothing).to(device) for name in DISTRIBUTIONS])
        ranks = 1
        if distributed:
            ranks = torch.distributed.get_world_size()
            torch.distributed.all_reduce(table)
            torch.distributed.all_reduce(bins)
            torch.distributed.all_reduce(peaks, op=torch.distributed.ReduceOp.MAX)
        values = dict(zip(UPDATE_MAXIMA, peaks.tolist(), strict=True))
        for name, (total, count) in zip(names, table.tolist(), strict=True):
            if name in UPDATE_COUNTS:
                values[name] = total
            elif name in PER_RANK_COUNTS:
                values[name] = total / ranks
            elif count:
                values[name] = total / count
        return _derive(values) | _quantiles(bins.cpu())


def _quantiles(bins: Tensor) -> dict[str, float]:
    """Name and entry to quantile, of what was measured."""
    found: dict[str, float] = {}
    for name, counts in zip(DISTRIBUTIONS, bins, strict=True):
        if counts.any():
            for percentage in PERCENTAGES:
                value = quantile(counts, percentage / 100)
                found[f"{name}/p{percentage}"] = math.exp(value) if name == RATIO_QUANTILES else value
    return found


def _derive(values: dict[str, float]) -> dict[str, float]:
    """Replaces moments by the statistics that are computed from them."""
    moments = {name: values.pop(name) for name in _DERIVED_FROM if name in values}
    if moments.get(_RATIO_SQUARED):
        values[EFFECTIVE_SAMPLE_SIZE] = values[RATIO_MEAN] ** 2 / moments[_RATIO_SQUARED]
    if _VF_TARGET in moments:
        variance = moments[_VF_TARGET_SQUARED] - moments[_VF_TARGET] ** 2
        unexplained = moments[_VF_ERROR_SQUARED] - moments[_VF_ERROR] ** 2
        values[VF_EXPLAINED_VAR] = 1.0 - unexplained / variance if variance > 1e-12 else 0.0
    return values

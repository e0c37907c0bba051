"""Combinations of settings that are not what they are called: refused, or warned about, with the remedy.

Every one was seen in a published implementation or recipe, where it silently changed the objective.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from gspo_rllib.algorithms.policy_gradient.settings import TURN_ESTIMATORS, TrainingSettings

TOKEN_SCALE = 0.1
"""Clip range from which on a length-normalised ratio hardly ever leaves it."""

SEQUENCE_SCALE = 0.01
"""Clip range under which a token's ratio leaves it at every update."""

_CLIPPED = ("clip", "dual_clip")


def refusals(settings: TrainingSettings, *, recomputes_old_log_probs: bool) -> Iterator[str]:
    """What cannot mean what it says.

    Args:
        settings: The settings.
        recomputes_old_log_probs: Whether the ratio's denominator is the learner's own.
    """
    return itertools.chain(
        _advantage_refusals(settings),
        _group_refusals(settings),
        _clip_refusals(settings),
        _penalty_refusals(settings),
        _correction_refusals(settings, recomputes_old_log_probs=recomputes_old_log_probs),
    )


def _advantage_refusals(s: TrainingSettings) -> Iterator[str]:
    per_turn, per_token = s.advantage_estimator in TURN_ESTIMATORS, s.advantage_estimator == "gae"
    averaged = s.advantage_aggregation == "trajectory_mean"
    level = s.importance_sampling_level
    if (per_turn or per_token) and level == "sequence" and not averaged:
        yield (
            f"importance_sampling_level='sequence' with advantage_estimator={s.advantage_estimator!r}: the gradient of "
            "every token would carry the trajectory's mean advantage, so the finer credit is lost. Use "
            "importance_sampling_level='sequence_token' (GSPO-token), or say so: "
            "advantage_aggregation='trajectory_mean'."
        )
    if per_token and level == "turn" and not averaged:
        yield (
            "importance_sampling_level='turn' with advantage_estimator='gae': the gradient of every token would carry "
            "its turn's mean advantage, so the finer credit is lost. Use 'sequence_token' or 'token'."
        )
    if (s.advantage_estimator == "reward_parts") != bool(s.reward_part_weights):
        yield (
            f"advantage_estimator is {s.advantage_estimator!r} and reward_part_weights is {s.reward_part_weights!r}; "
            'they go together: advantage_estimator="reward_parts", reward_part_weights={"correct": 1.0, "format": 0.2}.'
        )


def _group_refusals(s: TrainingSettings) -> Iterator[str]:
    if s.group_size == 1 and s.advantage_estimator != "gae":
        yield (
            "group_size is 1; allowed: int, >= 2. The advantage compares the trajectories of one task with each other, "
            'so one alone has none; try 8. Only advantage_estimator="gae" does without a group.'
        )
    if s.group_size == 1 and s.zero_variance_groups != "keep":
        yield (
            f"zero_variance_groups={s.zero_variance_groups!r} with group_size=1: no group of one has any variance, so "
            "nothing would be left. Use 'keep'."
        )
    if s.advantage_estimator == "reward_parts" and s.truncated_trajectories == "fail":
        yield (
            "truncated_trajectories='fail' has no effect with advantage_estimator='reward_parts', which reads the "
            "parts and not the return; use 'mask' or 'keep', and let the environment report failing parts."
        )


def _clip_refusals(s: TrainingSettings) -> Iterator[str]:
    if s.surrogate == "dual_clip" and s.dual_clip <= 1.0 + s.clip_high:
        yield (
            f"dual_clip is {s.dual_clip:g}, inside the clip range that ends at {1 + s.clip_high:g}; allowed: above it"
        )
    if s.clip_scaling != "none" and s.surrogate not in _CLIPPED:
        yield f"clip_scaling={s.clip_scaling!r} has no effect on surrogate={s.surrogate!r}; use 'none'."
    if s.clip_scaling == "length" and s.importance_sampling_level not in ("sequence", "sequence_token"):
        yield (
            f"clip_scaling='length' with importance_sampling_level={s.importance_sampling_level!r}: only the noise of "
            "a ratio over the whole trajectory shrinks with its length. Use a sequence level, or clip_scaling='none'."
        )
    if s.token_sum_length is not None and s.reduction != "token_sum":
        yield f"token_sum_length has no effect on reduction={s.reduction!r}; use 'token_sum', or leave it out."


def _penalty_refusals(s: TrainingSettings) -> Iterator[str]:
    shaped = s.overlong_tokens is not None or (s.kl_coeff and s.kl_placement == "reward")
    if s.advantage_estimator == "reward_parts" and shaped:
        yield (
            "overlong_tokens and kl_placement='reward' change the reward, but advantage_estimator='reward_parts' "
            "reads the parts alone. Use kl_placement='loss', and let the environment report a part for length."
        )
    if s.kl_coeff and s.kl_estimator == "k1" and s.kl_placement == "loss":
        yield (
            "kl_estimator='k1' in the loss has a gradient whose expectation is 0: it penalises nothing. Use 'k2' or "
            "'k3' there, or kl_placement='reward'."
        )
    if s.reference_path is not None and not s.kl_coeff:
        yield "reference_path has no effect while kl_coeff is 0; set kl_coeff, or leave reference_path out."
    if s.overlong_tokens is not None and s.overlong_buffer > s.overlong_tokens:
        yield (
            f"overlong_buffer is {s.overlong_buffer}, more than overlong_tokens {s.overlong_tokens}; allowed: at most "
            "it"
        )


def _correction_refusals(s: TrainingSettings, *, recomputes_old_log_probs: bool) -> Iterator[str]:
    if s.rollout_correction != "none" and not recomputes_old_log_probs:
        yield (
            f"rollout_correction={s.rollout_correction!r} with the engine's log-probs below the ratio: the weight is "
            'always 1. Set old_log_probs="learner".'
        )
    if s.rollout_correction_low > s.rollout_correction_high:
        yield (
            f"rollout_correction_low is {s.rollout_correction_low:g}, above rollout_correction_high "
            f"{s.rollout_correction_high:g}; allowed: low <= high"
        )


def cautions(s: TrainingSettings) -> Iterator[str]:
    """What is not what it is usually called.

    Args:
        s: The settings.
    """
    return itertools.chain(_objective_cautions(s), _staleness_cautions(s))


def _staleness_cautions(s: TrainingSettings) -> Iterator[str]:
    if s.max_staleness and s.old_log_probs == "engine":
        yield (
            f"old_log_probs='engine' with max_staleness={s.max_staleness}: the ratio of a stale trajectory is away "
            "from 1 before the first step, while the clip range is made for what one iteration moves. Use "
            "old_log_probs='learner' (or 'auto'), which measures the clip from the policy before the update, and "
            "rollout_correction='truncate' for what lies between that policy and the one that sampled."
        )
    elif s.max_staleness and s.rollout_correction == "none":
        yield (
            f"max_staleness={s.max_staleness} with rollout_correction='none': nothing accounts for the difference "
            "between the policy that sampled and the one before the update. Use rollout_correction='truncate' with "
            "rollout_correction_level='sequence_mean', the decoupled objective with one weight per trajectory."
        )


def _objective_cautions(s: TrainingSettings) -> Iterator[str]:
    level, clipped = s.importance_sampling_level, s.surrogate in _CLIPPED
    steps = s.num_minibatches * s.num_epochs
    widest = max(s.clip_low, s.clip_high)
    weight = "number of turns" if s.reduction == "turn_mean" else "length"
    if level.startswith("sequence") and s.reduction != "trajectory_mean":
        yield (
            f"reduction={s.reduction!r} with a sequence ratio weighs a trajectory by its {weight}; the paper's GSPO "
            "weighs all the same: reduction='trajectory_mean'."
        )
    if clipped and steps == 1:
        yield (
            "num_minibatches=1 with num_epochs=1 takes one step per iteration: the ratio is always 1, so nothing is "
            "ever clipped and this is not GSPO. The paper uses num_minibatches=4."
        )
    if s.surrogate == "policy_gradient" and steps > 1:
        yield (
            f"surrogate='policy_gradient' takes {steps} steps per iteration without any clip: nothing bounds how far "
            "the policy moves from the one that sampled. Use num_minibatches=1, or surrogate='clip'."
        )
    if clipped and level.startswith("sequence") and widest >= TOKEN_SCALE:
        yield (
            f"clip_low={s.clip_low:g}, clip_high={s.clip_high:g} is a token-level range: a length-normalised sequence "
            "ratio hardly ever leaves it, so nothing is clipped. The paper uses 3e-4 and 4e-4."
        )
    if clipped and level == "token" and widest <= SEQUENCE_SCALE:
        yield (
            f"clip_low={s.clip_low:g}, clip_high={s.clip_high:g} is a sequence-level range: nearly every token's ratio "
            "leaves it at the first step. GRPO uses 0.2 and 0.28."
        )
    if s.rollout_correction != "none" and s.rollout_correction_level == "sequence_product":
        yield (
            "rollout_correction_level='sequence_product' multiplies the ratios of all tokens: the longer a "
            "trajectory, the surer it leaves any fixed range, so long ones are cut off or dropped. 'sequence_mean' "
            "does not depend on length."
        )
    finer = s.advantage_estimator in (*TURN_ESTIMATORS, "reward_parts")
    if finer and s.zero_variance_groups != "keep" and s.zero_variance_metric == "return":
        yield (
            f"zero_variance_groups={s.zero_variance_groups!r} compares returns, but equal returns need not mean equal "
            f"advantages with advantage_estimator={s.advantage_estimator!r}: groups that could teach something are "
            "left out. Use 'keep', or zero_variance_metric='success'."
        )
    if s.advantage_estimator == "gae" and s.zero_variance_groups != "keep":
        yield (
            f"zero_variance_groups={s.zero_variance_groups!r} with a critic leaves out trajectories that the critic "
            "could learn from; 'keep' trains on them."
        )

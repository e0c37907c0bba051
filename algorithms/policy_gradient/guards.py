"""Combinations of settings that are not what they are called: refused, or warned about, with the remedy.

Every one was seen in a published implementation or recipe, where it silently changed the objective.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from gspo_rllib.algorithms.policy_gradient.choices import (
    ADVANTAGE_AGGREGATIONS,
    CLIP_SCALINGS,
    KL_IN_LOSS,
    LEARNER_RECOMPUTES,
    ROLLOUT_CORRECTIONS,
    SCHEDULES,
)
from gspo_rllib.algorithms.policy_gradient.idle_settings import changed
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.connectors import ADVANTAGE_ESTIMATORS
from gspo_rllib.driver.selection import COMPARES_RETURNS, REPLACES_REWARDS, ZERO_VARIANCE_GROUPS
from gspo_rllib.ops import (
    CORRECTION_LEVELS,
    IMPORTANCE_SAMPLING_LEVELS,
    KL_ESTIMATORS,
    REDUCTIONS,
    SURROGATES,
    Span,
    clip_span,
)

TOKEN_SCALE = 0.1
"""Clip range from which on a length-normalised ratio hardly ever leaves it."""

SEQUENCE_SCALE = 0.01
"""Clip range under which a token's ratio leaves it at every update."""


def refusals(settings: TrainingSettings, *, recomputes_old_log_probs: bool) -> Iterator[str]:
    """One message for each combination of settings that would not do what the settings are called.

    Args:
        settings: The training settings.
        recomputes_old_log_probs: Whether the ratio's denominator is the learner's own.
    """
    return itertools.chain(
        _advantage_refusals(settings),
        _group_refusals(settings),
        _clip_refusals(settings),
        _penalty_refusals(settings),
        _correction_refusals(settings, recomputes_old_log_probs=recomputes_old_log_probs),
        _update_refusals(settings),
        _replay_refusals(settings, recomputes_old_log_probs=recomputes_old_log_probs),
        _schedule_refusals(settings),
    )


def _advantage_refusals(s: TrainingSettings) -> Iterator[str]:
    advantage, level = ADVANTAGE_ESTIMATORS[s.advantage_estimator], s.importance_sampling_level
    mixed = IMPORTANCE_SAMPLING_LEVELS[level].gradient_span
    # Tokens that share a ratio get the mean of their advantages, so finer ones are lost. Averaging them first says that
    # this is meant.
    loses_credit = advantage.span > mixed and ADVANTAGE_AGGREGATIONS[s.advantage_aggregation] is None
    if loses_credit and mixed is Span.TRAJECTORY:
        yield (
            f"importance_sampling_level={level!r} with advantage_estimator={s.advantage_estimator!r}: the gradient of "
            "every token would carry the trajectory's mean advantage, so the finer credit is lost. Use "
            "importance_sampling_level='sequence_token' (GSPO-token), or say so: "
            "advantage_aggregation='trajectory_mean'."
        )
    if loses_credit and mixed is Span.TURN:
        yield (
            f"importance_sampling_level={level!r} with advantage_estimator={s.advantage_estimator!r}: the gradient of "
            "every token would carry its turn's mean advantage, so the finer credit is lost. Use 'sequence_token' or "
            "'token'."
        )
    if advantage.reads_reward_parts != bool(s.reward_part_weights):
        yield (
            f"advantage_estimator is {s.advantage_estimator!r} and reward_part_weights is {s.reward_part_weights!r}; "
            'they go together: advantage_estimator="reward_parts", reward_part_weights={"correct": 1.0, "format": 0.2}.'
        )


def _group_refusals(s: TrainingSettings) -> Iterator[str]:
    advantage = ADVANTAGE_ESTIMATORS[s.advantage_estimator]
    if s.group_size == 1 and advantage.needs_group:
        yield (
            "group_size is 1; allowed: int, >= 2. The advantage compares the trajectories of one task with each other, "
            'so one alone has none; try 8. Only advantage_estimator="gae" does without a group.'
        )
    if s.group_size == 1 and ZERO_VARIANCE_GROUPS[s.zero_variance_groups].leaves_out:
        yield (
            f"zero_variance_groups={s.zero_variance_groups!r} with group_size=1: no group of one has any variance, so "
            "nothing would be left. Use 'keep'."
        )
    if advantage.reads_reward_parts and REPLACES_REWARDS[s.truncated_trajectories]:
        yield (
            f"truncated_trajectories={s.truncated_trajectories!r} has no effect with "
            f"advantage_estimator={s.advantage_estimator!r}, which reads the parts and not the return; use 'mask' or "
            "'keep', and let the environment report failing parts."
        )


def _clip_refusals(s: TrainingSettings) -> Iterator[str]:
    surrogate, scaling = SURROGATES[s.surrogate], CLIP_SCALINGS[s.clip_scaling]
    span = clip_span(s.importance_sampling_level, s.surrogate)
    if surrogate.has_ceiling and s.dual_clip <= 1.0 + s.clip_high:
        yield (
            f"dual_clip is {s.dual_clip:g}, inside the clip range that ends at {1 + s.clip_high:g}; allowed: above it"
        )
    if scaling.scales and not surrogate.clips_gradient:
        yield f"clip_scaling={s.clip_scaling!r} has no effect on surrogate={s.surrogate!r}; use 'none'."
    if scaling.by_length and span is not Span.TRAJECTORY:
        yield (
            f"clip_scaling={s.clip_scaling!r} with importance_sampling_level={s.importance_sampling_level!r} and "
            f"surrogate={s.surrogate!r}: only the noise of a ratio that is clipped over the whole trajectory shrinks "
            "with its length. Use a sequence level with surrogate='clip', or clip_scaling='none'."
        )
    if scaling.measures and surrogate.clips_gradient and span is Span.TOKEN:
        yield (
            f"clip_scaling={s.clip_scaling!r} with importance_sampling_level={s.importance_sampling_level!r} and "
            f"surrogate={s.surrogate!r}: a range of single tokens does not depend on length, so there is nothing to "
            f"measure; {surrogate.token_range}. Use a sequence or turn level with surrogate='clip', or "
            "clip_scaling='none'."
        )
    if scaling.measures and s.max_staleness and LEARNER_RECOMPUTES[s.old_log_probs] is False:
        yield (
            f"clip_scaling={s.clip_scaling!r} with max_staleness={s.max_staleness} and "
            f"old_log_probs={s.old_log_probs!r}: what would be measured is the age of the data, and a wide range would "
            "make itself wider. Use old_log_probs='learner' (or 'auto')."
        )
    if s.token_sum_length is not None and not REDUCTIONS[s.reduction].needs_length:
        yield f"token_sum_length has no effect on reduction={s.reduction!r}; use 'token_sum', or leave it out."


def _penalty_refusals(s: TrainingSettings) -> Iterator[str]:
    in_loss = KL_IN_LOSS[s.kl_placement]
    shaped = s.overlong_tokens is not None or (s.kl_coeff and not in_loss)
    if ADVANTAGE_ESTIMATORS[s.advantage_estimator].reads_reward_parts and shaped:
        yield (
            "overlong_tokens and kl_placement='reward' change the reward, but "
            f"advantage_estimator={s.advantage_estimator!r} reads the parts alone. Use kl_placement='loss', and let "
            "the environment report a part for length."
        )
    if s.kl_coeff and in_loss and not KL_ESTIMATORS[s.kl_estimator].penalises_in_loss:
        yield (
            f"kl_estimator={s.kl_estimator!r} in the loss has a gradient whose expectation is 0: it penalises "
            "nothing. Use 'k2' or 'k3' there, or kl_placement='reward'."
        )
    if s.reference_path is not None and not s.kl_coeff:
        yield "reference_path has no effect while kl_coeff is 0; set kl_coeff, or leave reference_path out."
    if s.overlong_tokens is not None and s.overlong_buffer > s.overlong_tokens:
        yield (
            f"overlong_buffer is {s.overlong_buffer}, more than overlong_tokens {s.overlong_tokens}; allowed: at most "
            "it"
        )


def _correction_refusals(s: TrainingSettings, *, recomputes_old_log_probs: bool) -> Iterator[str]:
    if ROLLOUT_CORRECTIONS[s.rollout_correction] is not None and not recomputes_old_log_probs:
        yield (
            f"rollout_correction={s.rollout_correction!r} with the engine's log-probs below the ratio: the weight is "
            'always 1. Set old_log_probs="learner".'
        )
    if s.rollout_correction_low > s.rollout_correction_high:
        yield (
            f"rollout_correction_low is {s.rollout_correction_low:g}, above rollout_correction_high "
            f"{s.rollout_correction_high:g}; allowed: low <= high"
        )


def _schedule_refusals(s: TrainingSettings) -> Iterator[str]:
    if SCHEDULES[s.schedule] and not s.max_staleness:
        yield (
            "schedule='fixed_lag' with max_staleness=0: sampling and learning take turns, and such a run is a function "
            "of its config and seed anyway. Set max_staleness=1, or leave the schedule out."
        )
    if SCHEDULES[s.schedule] and s.recorded_groups is not None:
        yield (
            "schedule='fixed_lag' with recorded_groups: nothing is sampled, so there is nothing that could lag. Leave "
            "one of the two out."
        )
    if SCHEDULES[s.schedule] and ZERO_VARIANCE_GROUPS[s.zero_variance_groups].replaces:
        yield (
            f"schedule='fixed_lag' with zero_variance_groups={s.zero_variance_groups!r}: how many groups a batch lacks "
            "is known only when the weights that sampled it are gone. Use zero_variance_groups='drop', or "
            "schedule='free'."
        )


def _update_refusals(s: TrainingSettings) -> Iterator[str]:
    sampled = s.groups_per_iteration * s.group_size
    if s.undo_overshoot and s.target_kl is None:
        yield "undo_overshoot has no effect without target_kl; set target_kl, e.g. 0.01, or leave it out."
    if s.target_kl is not None and not s.undo_overshoot and s.num_minibatches * s.num_epochs == 1:
        yield (
            f"target_kl={s.target_kl:g} with num_minibatches=1 and num_epochs=1: the first step is always taken and "
            "there is no other. Use num_minibatches=4, or undo_overshoot=True."
        )
    if s.min_informative_trajectories > sampled:
        yield (
            f"min_informative_trajectories is {s.min_informative_trajectories}, but an iteration has only {sampled} "
            "trajectories (groups_per_iteration x group_size); allowed: at most that"
        )


def _replay_refusals(s: TrainingSettings, *, recomputes_old_log_probs: bool) -> Iterator[str]:
    if s.routing_replay and s.num_minibatches * s.num_epochs == 1:
        yield (
            "routing_replay with num_minibatches=1 and num_epochs=1: the first step's experts are those of the policy "
            "before it, and there is no other. Use num_minibatches=4, or leave it out."
        )
    if s.routing_replay and not recomputes_old_log_probs and (s.max_staleness or s.recorded_groups is not None):
        yield (
            f"routing_replay with old_log_probs={s.old_log_probs!r} and data of older policies: the ratio would "
            "compare with one policy's log-probs and hold another one's experts. Set old_log_probs='learner'."
        )


def cautions(s: TrainingSettings) -> Iterator[str]:
    """One message for each combination of settings that works but is not what is usually meant.

    Args:
        s: The training settings.
    """
    return itertools.chain(_objective_cautions(s), _staleness_cautions(s))


def _staleness_cautions(s: TrainingSettings) -> Iterator[str]:
    if s.max_staleness and LEARNER_RECOMPUTES[s.old_log_probs] is False:
        yield (
            f"old_log_probs={s.old_log_probs!r} with max_staleness={s.max_staleness}: the ratio of a stale "
            "trajectory is away from 1 before the first step, while the clip range is made for what one iteration "
            "moves. Use old_log_probs='learner' (or 'auto'), which measures the clip from the policy before the "
            "update, and rollout_correction='truncate' for what lies between that policy and the one that sampled."
        )
    elif s.max_staleness and ROLLOUT_CORRECTIONS[s.rollout_correction] is None:
        yield (
            f"max_staleness={s.max_staleness} with rollout_correction={s.rollout_correction!r}: nothing accounts "
            "for the difference between the policy that sampled and the one before the update. Use "
            "rollout_correction='truncate' with rollout_correction_level='sequence_mean', the decoupled "
            "objective with one weight per trajectory."
        )


def _objective_cautions(s: TrainingSettings) -> Iterator[str]:
    surrogate, reduction = SURROGATES[s.surrogate], REDUCTIONS[s.reduction]
    steps = s.num_minibatches * s.num_epochs
    if IMPORTANCE_SAMPLING_LEVELS[s.importance_sampling_level].span is Span.TRAJECTORY and reduction.weighs_by:
        yield (
            f"reduction={s.reduction!r} with a sequence ratio weighs a trajectory by its {reduction.weighs_by}; the "
            "paper's GSPO weighs all the same: reduction='trajectory_mean'."
        )
    if surrogate.clips_gradient and steps == 1:
        yield (
            "num_minibatches=1 with num_epochs=1 takes one step per iteration: the ratio is always 1, so nothing is "
            "ever clipped and this is not GSPO. The paper uses num_minibatches=4."
        )
    if not surrogate.bounds_policy and steps > 1:
        yield (
            f"surrogate={s.surrogate!r} takes {steps} steps per iteration without any clip: nothing bounds how far "
            "the policy moves from the one that sampled. Use num_minibatches=1, or surrogate='clip'."
        )
    if CLIP_SCALINGS[s.clip_scaling].measures:
        yield from _unused_range(s, f"clip_scaling={s.clip_scaling!r}")
    elif not surrogate.has_range:
        yield from _unused_range(s, f"surrogate={s.surrogate!r}")
    elif surrogate.clips_gradient:
        yield from _range_cautions(s)
    if (
        ROLLOUT_CORRECTIONS[s.rollout_correction] is not None
        and CORRECTION_LEVELS[s.rollout_correction_level].grows_with_length
    ):
        yield (
            f"rollout_correction_level={s.rollout_correction_level!r} multiplies the ratios of all tokens: the longer "
            "a trajectory, the surer it leaves any fixed range, so long ones are cut off or dropped. 'sequence_mean' "
            "does not depend on length."
        )
    if ZERO_VARIANCE_GROUPS[s.zero_variance_groups].leaves_out:
        yield from _zero_variance_cautions(s)


def _unused_range(s: TrainingSettings, by: str) -> Iterator[str]:
    if names := [name for name, _ in changed(s, ("clip_low", "clip_high"))]:
        yield f"{' and '.join(names)}: {by} has no use for a clip range."


def _range_cautions(s: TrainingSettings) -> Iterator[str]:
    span, widest = clip_span(s.importance_sampling_level, s.surrogate), max(s.clip_low, s.clip_high)
    if span is Span.TRAJECTORY and widest >= TOKEN_SCALE:
        yield (
            f"clip_low={s.clip_low:g}, clip_high={s.clip_high:g} is a token-level range: a length-normalised sequence "
            "ratio hardly ever leaves it, so nothing is clipped. The paper uses 3e-4 and 4e-4."
        )
    if span is Span.TOKEN and widest <= SEQUENCE_SCALE:
        yield (
            f"clip_low={s.clip_low:g}, clip_high={s.clip_high:g} is a sequence-level range: nearly every token's ratio "
            f"leaves it at the first step. {SURROGATES[s.surrogate].token_range}."
        )


def _zero_variance_cautions(s: TrainingSettings) -> Iterator[str]:
    advantage = ADVANTAGE_ESTIMATORS[s.advantage_estimator]
    if advantage.needs_group and not advantage.follows_returns and COMPARES_RETURNS[s.zero_variance_metric]:
        yield (
            f"zero_variance_groups={s.zero_variance_groups!r} compares returns, but equal returns need not mean equal "
            f"advantages with advantage_estimator={s.advantage_estimator!r}: groups that could teach something are "
            "left out. Use 'keep', or zero_variance_metric='success'."
        )
    if advantage.needs_critic:
        yield (
            f"zero_variance_groups={s.zero_variance_groups!r} with a critic leaves out trajectories that the critic "
            "could learn from; 'keep' trains on them."
        )

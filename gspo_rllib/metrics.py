"""Names of the metrics this project adds to RLlib's, each with its meaning.

RLlib's own names (``num_episodes``, ``episode_return_mean``, ``episode_len_mean``, ``weights_seq_no``, …) keep their
RLlib meaning; a step is a turn. All of these describe what was sampled since metrics were last collected, and appear
under ``env_runners/`` in a training result and under ``evaluation/env_runners/`` in an evaluation.

This module imports nothing.
"""

from __future__ import annotations

SUCCESS_MEAN = "success_mean"
"""Fraction of trajectories whose last ``info["success"]`` was true. One cut short without saying so has failed; one
that ended by itself without saying so does not count."""

SUCCESS_GROUP_SQUARE_MEAN = "success_group_square_mean"
"""Mean over groups of the square of their share of successes. Trajectories of a group are of one task, so a mean over
groups is what ``success_mean`` is as sure as: its standard error is sqrt((this - success_mean²) / (num_groups - 1))."""

ESTIMATES = "estimates"
"""``accuracy``, ``pass@k`` and ``maj@k`` over tasks, each with ``value`` and the ends ``low`` and ``high`` of its 95 %
bootstrap interval; evaluation only, and only where the environment reports success."""

EPOCH = "epoch"
"""How many times every task of the environment had been drawn before the latest group's; training only, and only where
the environment counts its tasks."""

CURRICULUM_STAGE = "curriculum_stage"
"""Position of the stage of ``training.curriculum`` that groups are drawn for; as many as there are stages when the
environment itself is. A result has it at its top, where a curriculum is set."""

NUM_GROUPS = "num_groups"
"""Complete groups sampled."""

NUM_TOKENS_SAMPLED = "num_tokens_sampled"
"""Tokens the policy sampled in complete groups."""

TOKENS_PER_S = "tokens_per_s"
"""``num_tokens_sampled`` per second of an iteration's sampling (``env_runner_sampling_timer``); training only."""

NUM_TOKENS_PROMPTED = "num_tokens_prompted"
"""Tokens of observations and chat frames in complete groups, each counted once."""

NUM_TOKENS_CACHED = "num_tokens_cached"
"""Prompt tokens whose keys and values the engine reused instead of computing them, summed over turns."""

NUM_TOKENS_DISCARDED = "num_tokens_discarded"
"""Tokens sampled for trajectories that failed or whose group was discarded."""

ENGINE_BUSY_S = "engine_busy_s"
"""Seconds spent inside ``engine.step``."""

ENV_S = "env_s"
"""Seconds environments took to answer, or agents between replies, summed over those, which overlap."""

SAMPLE_S = "sample_s"
"""Seconds of wall time inside ``sample``, or in which groups were being played beside it."""

NUM_WEIGHT_UPDATES = "num_weight_updates"
"""Times new weights were taken up while groups were being played."""

WEIGHT_UPDATE_S = "weight_update_s"
"""Seconds in which turns were held back for new weights, or these were loaded, while groups were being played."""

NUM_TURNS_MIXED_VERSIONS = "num_turns_mixed_versions"
"""Turns sampled by more than one version of the weights, those of discarded trajectories included."""

TURN_TOKENS_MEAN = "turn_tokens_mean"
"""Tokens the policy sampled per turn."""

NUM_NEW_SEGMENTS = "num_new_segments"
"""Times a conversation outgrew the context and went on in a new segment, or an agent's call began one; see
docs/agents.md."""

SEGMENTS_MEAN = "segments_mean"
"""Contexts of a trajectory: 1 where its conversation only grew."""

NUM_FIELDS_PASSED_OVER = "num_fields_passed_over"
"""Times an agent's client sent a field that has no effect; one entry per field, unknown ones as ``other``."""

NUM_TURNS_CUT = "num_turns_cut"
"""Turns that ended because they ran out of tokens (finish reason ``"length"``)."""

NUM_INVALID_ACTIONS = "num_invalid_actions"
"""Turns whose ``info["valid_action"]`` was false."""

NUM_TRUNCATED = "num_truncated"
"""Trajectories cut short; one entry per cause: ``turns``, ``context``, and what an environment says it was."""

ENV_METRICS = "env_metrics"
"""What environments report in ``info["metrics"]``: one entry per name, its last value in a trajectory, mean over the
trajectories that report it."""

NUM_TRAJECTORY_FAILURES = "num_trajectory_failures"
"""Trajectories that failed; one entry per kind: ``raised``, ``timeout``, ``invalid`` (the environment's doing),
``context`` (the first prompt leaves no room for a reply), ``engine`` (it refused, or returned unusable samples)."""

NUM_TRAJECTORY_RETRIES = "num_trajectory_retries"
"""Failed trajectories started again with the same task."""

NUM_GROUPS_REPLACED = "num_groups_replaced"
"""Groups discarded and started again with another task."""

NUM_GROUPS_RAGGED = "num_groups_ragged"
"""Complete groups that lack a member whose retries were spent; only with ``ragged_groups``."""

NUM_GROUPS_GIVEN_UP = "num_groups_given_up"
"""Groups that were asked for and could not be completed."""

NUM_GROUPS_MIXED_TASKS = "num_groups_mixed_tasks"
"""Groups whose members saw different first observations, or answers to the same first reply, although they were reset
with one seed."""

NUM_VERSION_REFUSALS = "num_version_refusals"
"""Calls of ``sample`` that returned nothing because the engine did not hold the weights version asked for."""

NUM_GROUPS_ZERO_VARIANCE = "num_groups_zero_variance"
"""Groups in which all trajectories did equally well, so that comparing them teaches nothing; training only."""

NUM_GROUPS_DROPPED = "num_groups_dropped"
"""Complete groups left out of the update: those of zero variance, unless they are kept, and those of which truncation
left no trajectory; training only."""

NUM_GROUPS_RESAMPLED = "num_groups_resampled"
"""Extra groups asked for in place of those that were dropped or given up; training only."""

NUM_TRAJECTORIES_TRUNCATED_MASKED = "num_trajectories_truncated_masked"
"""Truncated trajectories taken out of their groups before the update; training only."""

NUM_TRAJECTORIES_TRUNCATED_FAILED = "num_trajectories_truncated_failed"
"""Truncated trajectories trained as failures, whatever the environment rewarded them with; training only."""

NUM_ITERATIONS_IDLE = "num_iterations_idle"
"""Consecutive iterations, up to this one, without a trajectory that has an advantage; training only."""

GROUP_SELECTION = "group_selection"
"""Top-level key of a training result: the counts above that say ``training only``."""

NUM_GROUPS_STALE_DROPPED = "num_groups_stale_dropped"
"""Complete groups with a token older than ``max_staleness`` when they would have been trained; never trained."""

NUM_GROUPS_IN_FLIGHT = "num_groups_in_flight"
"""Groups that were being played, or about to be, when the update began."""

GROUP_WAIT_S = "group_wait_s"
"""Seconds the learners had nothing to do because too few groups were finished."""

NUM_TRAJECTORIES_BEHAVIOR_UNKNOWN = "num_trajectories_behavior_unknown"
"""Recorded trajectories without log-probabilities: their ratio starts at 1 whatever wrote the text; of ``train_on``."""

GROUP_STREAM = "group_stream"
"""Top-level key of a training result with ``max_staleness`` above 0: the three before the last; and of ``train_on``."""

NUM_NODES = "num_nodes"
"""Nodes of the Ray cluster that are alive; of ``cluster``."""

NUM_HEALTHY_ENV_RUNNERS = "num_healthy_env_runners"
"""Remote env runners that answered when they were last called; of ``cluster``."""

CLUSTER = "cluster"
"""Top-level key of a training result: nodes and env runners at the end of the iteration, the two before."""

NUM_LEARNER_REBUILDS = "num_learner_rebuilds"
"""How often the learners were built again since the run was started, because one was lost; of ``recovery``."""

NUM_UPDATES_REPEATED = "num_updates_repeated"
"""How many updates were made once more for that, from the batches they had been made with; of ``recovery``."""

RECOVERY = "recovery"
"""Top-level key of a training result whose learners have processes of their own: the two before."""

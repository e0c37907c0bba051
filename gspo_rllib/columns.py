"""Names and shapes of what a micro-batch holds; the learner builds it, the module and the loss read it.

One micro-batch is one packed row: the segments of several trajectories one after another, without padding.

    T  tokens in the row          S  segments (contiguous contexts; attention never crosses them)
    L  sampled tokens in the row  B  trajectories (the ratio and the advantage belong to these)

A trajectory normally is one segment. It has several when its history was edited between turns; they keep one
trajectory index, so the ratio still spans them, and they are never split between micro-batches.

Trajectories of a group may share their prompt: then it is a segment of its own, a prefix, and the first segments of
these trajectories are branches that hold only what follows it. A branch attends to itself and to its prefix.
"""

from __future__ import annotations

TOKEN_IDS = "token_ids"
"""int64 [T]: the ids of the row."""

POSITION_IDS = "position_ids"
"""int64 [T]: position of each id in its own context; restarts at 0, in a branch at the length of its prefix."""

SEGMENT_LENGTHS = "segment_lengths"
"""list of S ints: tokens of each segment, in row order; sums to T."""

SEGMENT_PREFIXES = "segment_prefixes"
"""list of S ints: index of the segment that each one continues, or -1; absent from a row that shares nothing."""

LOSS_POSITIONS = "loss_positions"
"""int64 [L]: index in the row of the token *before* each sampled token: the hidden state that predicts it. Branches
that start with a sampled token share their prefix's last index."""

LOSS_TOKEN_IDS = "loss_token_ids"
"""int64 [L]: the sampled ids."""

BEHAVIOR_LOGP = "behavior_logp"
"""float32 [L]: log-probability (nats) the engine sampled each id with."""

OLD_LOGP = "old_logp"
"""float32 [L]: log-probability (nats) of each id before this iteration's first update: the ratio's denominator."""

TRAJECTORY_INDEX = "trajectory_index"
"""int64 [L]: which of the row's trajectories each sampled token belongs to, 0 … B-1, non-decreasing."""

TURN_INDEX = "turn_index"
"""int64 [L]: turn of the trajectory, counting from 0."""

ADVANTAGES = "advantages"
"""float32 [L]: advantage of each sampled token; equal within a trajectory or turn where credit goes to those."""

VALUE_TARGETS = "value_targets"
"""float32 [L]: what the critic is to predict before each sampled token; absent without a critic."""

REFERENCE_LOGP = "reference_logp"
"""float32 [L]: log-probability (nats) of each sampled id under the frozen reference policy; absent without one."""

BEHAVIOR_VERSION = "behavior_version"
"""int64 [B]: oldest weights version any turn of the trajectory was sampled with."""

TRAJECTORIES = "trajectories"
"""list of ``TokenTrajectory``: what the learner connector hands to the micro-batcher."""

ROUTING = "routing"
"""lists, of each router and call of it, of ``Choice``: where the policy before the update sent the row's tokens; only
where a mixture of experts is held to it."""

LOGP = "logp"
"""float32 [L], output of the module: log-probability of each sampled id under the policy being trained."""

ENTROPY = "entropy"
"""float32 [L], output of the module: entropy (nats) of each sampled token's distribution."""

VALUES = "values"
"""float32 [L], output of a module with a critic: value of the state in which each sampled id was chosen."""

PLAN = "plan"
"""``MinibatchPlan``: how many trajectories, turns and tokens the whole optimiser step trains on, over all ranks."""

EMPTY = "empty"
"""True in the placeholder of a rank without a trajectory; its single token has no loss and is in no statistic."""

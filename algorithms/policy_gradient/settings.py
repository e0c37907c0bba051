"""Every knob of training, once: default, range, unit, effect and the source of the default."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from gspo_rllib.algorithms.policy_gradient.choices import (
    ADVANTAGE_AGGREGATIONS,
    CLIP_SCALINGS,
    KL_IN_LOSS,
    LEARNER_RECOMPUTES,
    ROLLOUT_CORRECTIONS,
)
from gspo_rllib.connectors import ADVANTAGE_ESTIMATORS
from gspo_rllib.driver.selection import COMPARES_RETURNS, REPLACES_REWARDS, ZERO_VARIANCE_GROUPS
from gspo_rllib.knobs import Settings, knob
from gspo_rllib.ops import (
    CORRECTION_LEVELS,
    IMPORTANCE_SAMPLING_LEVELS,
    KL_ESTIMATORS,
    REDUCTIONS,
    SURROGATES,
)

_PAPER = "arXiv:2507.18071v2 §5.1"
_SAPO = "arXiv:2511.20347"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings(Settings):
    """``.training(...)``."""

    SECTION: ClassVar[str] = "training"

    group_size: int = knob(
        8,
        "Trajectories per task (K); the advantage compares them with each other, so only gae does with 1.",
        low=1,
        source="verl, TRL",
    )
    groups_per_iteration: int = knob(
        16, "Tasks per iteration (G); an iteration trains on G·K trajectories.", low=1, source="ours"
    )
    num_minibatches: int = knob(
        4, "Optimiser steps an iteration's groups are split into; with 1 the ratio is always 1.", low=1, source=_PAPER
    )
    num_epochs: int = knob(1, "Passes over an iteration's groups.", low=1, source="arXiv:2507.18071v2, one pass")
    # The objective: advantage x ratio scope x surrogate x reduction + regularisers; see docs/objectives.md.
    advantage_estimator: str = knob(
        "group_z_score",
        "How returns become advantages: within the group per trajectory (group_z_score, group_mean, leave_one_out, "
        "reward_parts), within the group per turn (turn_returns, step_groups), or by a critic per token (gae).",
        choices=tuple(ADVANTAGE_ESTIMATORS),
        source="arXiv:2507.18071v2 eq. 6",
    )
    gamma: float = knob(
        1.0,
        "Discount: per turn in turn_returns and step_groups, per sampled token in gae.",
        low=0.0,
        high=1.0,
        source="verl: undiscounted",
    )
    lambda_: float = knob(
        1.0, "Decay of gae per sampled token; 1 is the return minus the value.", low=0.0, high=1.0, source="RLlib's PPO"
    )
    step_advantage_weight: float = knob(
        1.0, "Weight of the step advantage in step_groups.", low=0.0, source="arXiv:2505.10978"
    )
    reward_part_weights: dict[str, Any] | None = knob(
        None, 'Parts of info["reward_parts"] and their weights; needed by, and only for, reward_parts.', source="ours"
    )
    advantage_aggregation: str = knob(
        "none",
        "trajectory_mean replaces advantages per token or turn by their mean over the trajectory's tokens, as AReaL "
        "does under a sequence ratio.",
        choices=tuple(ADVANTAGE_AGGREGATIONS),
        source="ours",
    )
    importance_sampling_level: str = knob(
        "sequence",
        "What one importance ratio spans: the trajectory, the same with per-token gradients, a turn, or a token.",
        choices=tuple(IMPORTANCE_SAMPLING_LEVELS),
        source="arXiv:2507.18071v2 eq. 7",
    )
    surrogate: str = knob(
        "clip",
        "What is maximised for one ratio and one advantage: clip and dual_clip (PPO's), cispo, sapo, "
        "policy_gradient (no clip), or log_clip (the ratio is made of token ratios that were clipped one by one).",
        choices=tuple(SURROGATES),
        source="arXiv:2507.18071v2 eq. 5",
    )
    clip_low: float = knob(
        3e-4,
        "How far below 1 the ratio may go before its gradient stops; of clip, dual_clip and cispo. Of log_clip: how "
        "far below 0 a token's log-ratio may go.",
        low=0.0,
        high=1.0,
        source=_PAPER,
    )
    clip_high: float = knob(
        4e-4,
        "How far above 1 the ratio may go before its gradient stops; of clip, dual_clip and cispo. Of log_clip: how "
        "far above 0 a token's log-ratio may go.",
        low=0.0,
        source=_PAPER,
    )
    clip_scaling: str = knob(
        "none",
        "length multiplies the clip range by sqrt(clip_reference_length / sampled tokens) of each trajectory; target "
        "moves it after every update towards clip_target_fraction.",
        choices=tuple(CLIP_SCALINGS),
        source="ours; length after arXiv:2509.09177",
    )
    clip_reference_length: int = knob(
        1024, "Length at which clip_scaling=length leaves the range as it is.", unit="tokens", low=1, source="ours"
    )
    clip_target_fraction: float = knob(
        0.15, "Clip fraction that clip_scaling=target aims at.", low=0.0, high=0.9, low_open=True, source=_PAPER
    )
    dual_clip: float = knob(
        3.0,
        "Largest ratio a negative advantage is multiplied with; of dual_clip.",
        low=1.0,
        low_open=True,
        source="verl",
    )
    sapo_temperature_positive: float = knob(
        1.0, "Sharpness of sapo's gate where the advantage is positive.", low=0.0, low_open=True, source=_SAPO
    )
    sapo_temperature_negative: float = knob(
        1.05, "Sharpness of sapo's gate where the advantage is negative.", low=0.0, low_open=True, source=_SAPO
    )
    reduction: str = knob(
        "trajectory_mean",
        "What the objective is a mean over: trajectories (each the mean of its tokens), turns (likewise), tokens, or "
        "trajectories as token sums over token_sum_length.",
        choices=tuple(REDUCTIONS),
        source="arXiv:2507.18071v2 eq. 5",
    )
    token_sum_length: int | None = knob(
        None,
        "Constant a trajectory's token sum is divided by; of token_sum. None takes the context length.",
        unit="tokens",
        low=1,
        source="arXiv:2503.20783v2: the generation budget",
    )
    entropy_coeff: float = knob(
        0.0, "Entropy bonus, in objective per nat and sampled token.", low=0.0, source="arXiv:2507.18071v2: none"
    )
    kl_coeff: float = knob(
        0.0, "Penalty on the divergence from a frozen reference policy, per nat.", low=0.0, source="the authors: none"
    )
    kl_estimator: str = knob(
        "k3",
        "How one token's divergence is estimated: k1, k2 or k3.",
        choices=tuple(KL_ESTIMATORS),
        source="arXiv:2402.03300v3 eq. 4",
    )
    kl_placement: str = knob(
        "loss",
        "Where the penalty goes: into the loss token by token, or off the rewards before the advantages.",
        choices=tuple(KL_IN_LOSS),
        source="arXiv:2402.03300v3",
    )
    reference_path: str | None = knob(
        None, "Model folder or hub name of the reference; None takes the model training starts from.", source="ours"
    )
    vf_loss_coeff: float = knob(1.0, "Weight of the critic's loss; of gae.", low=0.0, source="RLlib's PPO")
    vf_clip_param: float = knob(
        10.0, "Largest squared error of the critic that has a gradient; of gae.", low=0.0, low_open=True, source="RLlib"
    )
    vf_lr: float | None = knob(
        None, "AdamW's learning rate of the critic; None takes lr.", low=0.0, source="ours; verl takes ten times lr"
    )
    # Off-policy: what stands below the ratio, and what corrects for the engine's own log-probs.
    old_log_probs: str = knob(
        "auto",
        "Denominator of the ratio: the engine's log-probs, or the learner's own before its first step. auto takes the "
        "engine's while their measured noise is below a tenth of the clip range (before it is measured: where both "
        "compute in float32), and the learner's own with stale data or a rollout correction.",
        choices=tuple(LEARNER_RECOMPUTES),
        source="ours: bf16 noise is about ten times the clip range",
    )
    max_staleness: int = knob(
        0,
        "Most updates between the policy that sampled a group's oldest token and the one that is trained on it. With "
        "0, sampling and learning take turns; above, they overlap: a group that takes long is waited for, and one that "
        "is older all the same is dropped.",
        unit="versions",
        low=0,
        source="ours: on-policy; the bound is AReaL's, arXiv:2505.24298",
    )
    rollout_correction: str = knob(
        "none",
        "What is done with the weight between the engine's log-probs and the learner's before its first step: truncate "
        "multiplies the objective by it, cut off at rollout_correction_high; mask drops what is outside the range.",
        choices=tuple(ROLLOUT_CORRECTIONS),
        source="arXiv:2507.18071v2: none",
    )
    rollout_correction_level: str = knob(
        "token",
        "What one such weight spans: a token, or a trajectory (geometric mean or product over its tokens).",
        choices=tuple(CORRECTION_LEVELS),
        source="verl",
    )
    rollout_correction_low: float = knob(0.5, "Smallest weight that mask keeps.", low=0.0, source="verl, IcePop")
    rollout_correction_high: float = knob(
        2.0, "Largest weight: cut off by truncate, dropped by mask.", low=0.0, low_open=True, source="verl"
    )
    # Groups.
    zero_variance_groups: str = knob(
        "keep",
        "Groups in which all trajectories did equally well: kept with advantage 0, dropped, or replaced by further "
        "groups (dynamic sampling).",
        choices=tuple(ZERO_VARIANCE_GROUPS),
        source="arXiv:2507.18071v2: kept",
    )
    zero_variance_metric: str = knob(
        "return",
        'What must differ within a group: the return the environment gave, or info["success"].',
        choices=tuple(COMPARES_RETURNS),
        source="DAPO: the outcome",
    )
    max_resampled_groups: int = knob(
        32, "Most extra groups an iteration samples for resample.", unit="groups", low=1, source="ours"
    )
    truncated_trajectories: str = knob(
        "keep",
        "Trajectories that were cut short: kept, masked (in no statistic, loss or denominator), or counted as failures "
        "(their return is truncated_return).",
        choices=tuple(REPLACES_REWARDS),
        source="arXiv:2507.18071v2: kept",
    )
    truncated_return: float = knob(0.0, "Return of a trajectory that fail counts as a failure.", source="ours")
    overlong_tokens: int | None = knob(
        None,
        "Sampled tokens from which a trajectory's return loses 1; None for no penalty.",
        unit="tokens",
        low=1,
        source="arXiv:2503.14476v2 eq. 13",
    )
    overlong_buffer: int = knob(
        64, "Tokens below overlong_tokens over which that loss grows from 0.", unit="tokens", low=1, source="ours"
    )
    # The update.
    max_tokens_per_micro_batch: int = knob(
        16384,
        "Token budget of one forward and backward pass; changes memory and speed, never the gradient.",
        unit="tokens",
        low=1,
        source="ours",
    )
    lr: float | list[Any] = knob(
        1e-6, "AdamW's learning rate, or an RLlib schedule [[timestep, lr], ...].", low=0.0, source="verl's GSPO recipe"
    )
    grad_clip: float | None = knob(
        1.0,
        "Largest gradient norm of an optimiser step; None for no limit.",
        low=0.0,
        low_open=True,
        source="verl, TRL",
    )
    weight_decay: float = knob(0.01, "AdamW's decay of matrices; vectors are not decayed.", low=0.0, source="verl")
    adam_betas: tuple[float, ...] | list[Any] = knob(
        (0.9, 0.999), "AdamW's averaging of gradient and squared gradient.", source="torch"
    )
    adam_epsilon: float = knob(1e-8, "Added to AdamW's denominator.", low=0.0, low_open=True, source="torch")

"""Every knob of training, once: default, range, unit, effect and the source of the default."""

from __future__ import annotations

from typing import Any, Literal, get_args

from gspo_rllib.algorithms.policy_gradient.choices import (
    ADVANTAGE_AGGREGATIONS,
    CLIP_SCALINGS,
    KL_IN_LOSS,
    LEARNER_RECOMPUTES,
    ROLLOUT_CORRECTIONS,
    SCHEDULES,
)
from gspo_rllib.connectors import ADVANTAGE_ESTIMATORS
from gspo_rllib.driver.recorded import Behavior
from gspo_rllib.driver.selection import (
    COMPARES_RETURNS,
    REPLACES_REWARDS,
    ZERO_VARIANCE_GROUPS,
    GroupSelection,
    TruncatedTrajectories,
    ZeroVarianceGroups,
    ZeroVarianceMetric,
)
from gspo_rllib.env_runners.settings import GroupSettings
from gspo_rllib.knobs import knob, settings_dataclass
from gspo_rllib.learners.settings import HIGHEST_LR, UpdateSettings
from gspo_rllib.ops import (
    CORRECTION_LEVELS,
    IMPORTANCE_SAMPLING_LEVELS,
    KL_ESTIMATORS,
    REDUCTIONS,
    SURROGATES,
    CorrectionLevel,
    CorrectionMode,
    ImportanceSamplingLevel,
    KLEstimator,
    Reduction,
    Surrogate,
)
from gspo_rllib.value_forms import text, weights

_PPO = "arXiv:1707.06347v2"
_GRPO = "arXiv:2402.03300v3"
_SAPO = "arXiv:2511.20347"


@settings_dataclass
class TrainingSettings(UpdateSettings, GroupSettings):
    """``.training(...)``.

    The defaults are what most implementations share (PPO's clipped surrogate, GRPO's group advantage, what verl and TRL
    do). Each algorithm has a table of its paper's values, with their sources, also where they equal these. The
    properties are computed from the knobs alone, so a config, which has the same knobs, has the properties too.
    """

    num_minibatches: int = knob(
        4, "Optimiser steps an iteration's groups are split into; with 1 the ratio is always 1.", low=1, source="verl"
    )
    num_epochs: int = knob(1, "Passes over an iteration's groups.", low=1, source="verl, TRL")
    min_informative_trajectories: int = knob(
        0,
        "Fewest trajectories with an advantage in a minibatch: minibatches are cut by these, and as many are joined as "
        "it takes. 0 cuts by groups, whatever they can teach.",
        unit="trajectories",
        low=0,
        source="ours",
    )
    # The objective: advantage x ratio scope x surrogate x reduction + regularisers; see docs/objectives.md.
    advantage_estimator: str = knob(
        "group_z_score",
        "How returns become advantages: within the group per trajectory (group_z_score, group_mean, leave_one_out, "
        "reward_parts), within the group per turn (turn_returns, step_groups), or by a critic per token (gae).",
        choices=tuple(ADVANTAGE_ESTIMATORS),
        source=f"{_GRPO} §4.1.2",
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
        1.0, "Weight of the step advantage in step_groups.", low=0.0, high=1e6, source="arXiv:2505.10978"
    )
    reward_part_weights: dict[str, Any] | None = knob(
        None,
        'Parts of info["reward_parts"] and their weights; needed by, and only for, reward_parts.',
        form=weights,
        source="ours",
    )
    advantage_aggregation: str = knob(
        "none",
        "trajectory_mean replaces advantages per token or turn by their mean over the trajectory's tokens, as AReaL "
        "does under a sequence ratio.",
        choices=tuple(ADVANTAGE_AGGREGATIONS),
        source="ours",
    )
    importance_sampling_level: ImportanceSamplingLevel = knob(
        "token",
        "What one importance ratio spans: the trajectory, the same with per-token gradients, a turn, or a token.",
        choices=tuple(IMPORTANCE_SAMPLING_LEVELS),
        source=f"{_PPO} eq. 7",
    )
    surrogate: Surrogate = knob(
        "clip",
        "What is maximised for one ratio and one advantage: clip and dual_clip (PPO's), cispo, sapo, "
        "policy_gradient (no clip), or log_clip (the ratio is made of token ratios that were clipped one by one).",
        choices=tuple(SURROGATES),
        source=f"{_PPO} eq. 7",
    )
    clip_low: float = knob(
        0.2,
        "How far below 1 the ratio may go before its gradient stops; used by clip, dual_clip and cispo. With log_clip: "
        "how far below 0 a token's log-ratio may go.",
        low=0.0,
        high=1.0,
        source=f"{_PPO} §6.1",
    )
    clip_high: float = knob(
        0.2,
        "How far above 1 the ratio may go before its gradient stops; used by clip, dual_clip and cispo. With log_clip: "
        "how far above 0 a token's log-ratio may go.",
        low=0.0,
        high=1e6,
        source=f"{_PPO} §6.1",
    )
    clip_scaling: str = knob(
        "none",
        "length multiplies the clip range by sqrt(clip_reference_length / sampled tokens) of each trajectory; target "
        "moves it after every update towards clip_target_fraction; deviations takes, instead of clip_low and "
        "clip_high, clip_deviations standard deviations of what one optimiser step does to log s, as the run measures "
        "it for every length.",
        choices=tuple(CLIP_SCALINGS),
        source="ours; length after arXiv:2509.09177",
    )
    clip_reference_length: int = knob(
        1024, "Length at which clip_scaling=length leaves the range as it is.", unit="tokens", low=1, source="ours"
    )
    clip_target_fraction: float = knob(
        0.15,
        "Clip fraction that clip_scaling=target aims at.",
        low=0.0,
        high=0.9,
        low_open=True,
        source="arXiv:2507.18071v2 §5.1",
    )
    clip_deviations: float = knob(
        2.0,
        "Half the width of clip_scaling=deviations, in standard deviations of one optimiser step.",
        low=0.0,
        high=1e6,
        low_open=True,
        source="ours: docs/objectives.md",
    )
    dual_clip: float = knob(
        3.0,
        "Largest ratio a negative advantage is multiplied with; used by dual_clip.",
        low=1.0,
        high=1e6,
        low_open=True,
        source="verl",
    )
    sapo_temperature_positive: float = knob(
        1.0, "Sharpness of sapo's gate where the advantage is positive.", low=0.0, high=1e6, low_open=True, source=_SAPO
    )
    sapo_temperature_negative: float = knob(
        1.05,
        "Sharpness of sapo's gate where the advantage is negative.",
        low=0.0,
        high=1e6,
        low_open=True,
        source=_SAPO,
    )
    reduction: Reduction = knob(
        "trajectory_mean",
        "What the objective is a mean over: trajectories (each the mean of its tokens), turns (each the mean of its "
        "tokens), tokens, or trajectories (each the sum of its tokens divided by token_sum_length).",
        choices=tuple(REDUCTIONS),
        source=f"{_GRPO} eq. 3",
    )
    token_sum_length: int | None = knob(
        None,
        "Constant a trajectory's token sum is divided by; used by token_sum. None takes the context length.",
        unit="tokens",
        low=1,
        source="arXiv:2503.20783v2: the generation budget",
    )
    entropy_coeff: float = knob(
        0.0, "Entropy bonus, in objective per nat and sampled token.", low=0.0, high=1e6, source="TRL: none"
    )
    kl_coeff: float = knob(
        0.0, "Penalty on the divergence from a frozen reference policy, per nat.", low=0.0, high=1e6, source="TRL: none"
    )
    kl_estimator: KLEstimator = knob(
        "k3",
        "How one token's divergence is estimated: k1, k2 or k3.",
        choices=tuple(KL_ESTIMATORS),
        source=f"{_GRPO} eq. 4",
    )
    kl_placement: str = knob(
        "loss",
        "Where the penalty goes: into the loss token by token, or off the rewards before the advantages.",
        choices=tuple(KL_IN_LOSS),
        source=_GRPO,
    )
    reference_path: str | None = knob(
        None,
        "Model folder or hub name of the reference; None takes the model training starts from: with LoRA the policy "
        "with its adapter off, which costs no copy.",
        form=text,
        source="ours",
    )
    vf_loss_coeff: float = knob(
        1.0, "Weight of the critic's loss; used by gae.", low=0.0, high=1e6, source="RLlib's PPO"
    )
    vf_clip_param: float = knob(
        10.0,
        "Largest squared error of the critic that has a gradient; used by gae.",
        low=0.0,
        high=1e12,
        low_open=True,
        source="RLlib",
    )
    vf_lr: float | None = knob(
        None,
        "AdamW's learning rate of the critic; used by gae. None takes lr.",
        low=0.0,
        high=HIGHEST_LR,
        source="ours; verl takes ten times lr",
    )
    # Off-policy: the denominator of the ratio, and the correction for the engine's own log-probs.
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
    schedule: str = knob(
        "free",
        "With max_staleness above 0: free trains whatever is finished first; fixed_lag has the batch of each update "
        "sampled whole by the policy max_staleness updates before, so that a run is a function of its config and seed.",
        choices=tuple(SCHEDULES),
        source="ours",
    )
    recorded_groups: str | None = knob(
        None,
        "A JSONL file of groups that were made elsewhere, trained on in place of sampled ones: groups_per_iteration of "
        "them in each iteration, from the beginning again after the last. None samples.",
        source="ours",
    )
    recorded_behavior: Behavior = knob(
        "recorded",
        "Whose log-probs are the ratio's denominator for recorded_groups: those in the file, or for trajectories "
        "without any (unknown) the learner's own, so that their ratio starts at 1 whatever wrote the text.",
        choices=get_args(Behavior),
        source="ours",
    )
    rollout_correction: Literal["none"] | CorrectionMode = knob(
        "none",
        "What is done with the weight between the engine's log-probs and the learner's before its first step: truncate "
        "multiplies the objective by it, cut off at rollout_correction_high; mask drops what is outside the range.",
        choices=tuple(ROLLOUT_CORRECTIONS),
        source="verl: none",
    )
    rollout_correction_level: CorrectionLevel = knob(
        "token",
        "What one weight of rollout_correction spans: a token, or a trajectory (geometric mean or product over its "
        "tokens).",
        choices=tuple(CORRECTION_LEVELS),
        source="verl",
    )
    rollout_correction_low: float = knob(
        0.5, "Smallest weight that mask keeps.", low=0.0, high=1e6, source="verl, IcePop"
    )
    rollout_correction_high: float = knob(
        2.0, "Largest weight: cut off by truncate, dropped by mask.", low=0.0, high=1e6, low_open=True, source="verl"
    )
    # Groups.
    zero_variance_groups: ZeroVarianceGroups = knob(
        "keep",
        "Groups in which all trajectories did equally well: kept with advantage 0, dropped, or replaced by further "
        "groups (dynamic sampling).",
        choices=tuple(ZERO_VARIANCE_GROUPS),
        source=f"{_GRPO}: kept",
    )
    zero_variance_metric: ZeroVarianceMetric = knob(
        "return",
        'What must differ within a group: the return the environment gave, or info["success"].',
        choices=tuple(COMPARES_RETURNS),
        source="DAPO: the outcome",
    )
    max_resampled_groups: int = knob(
        32, "Most extra groups an iteration samples; used by resample.", unit="groups", low=1, source="ours"
    )
    truncated_trajectories: TruncatedTrajectories = knob(
        "keep",
        "Trajectories that were cut short: kept, masked (in no statistic, loss or denominator), or counted as failures "
        "(their return is truncated_return).",
        choices=tuple(REPLACES_REWARDS),
        source="verl, TRL: kept",
    )
    truncated_return: float = knob(
        0.0, "Return of a truncated trajectory; used by fail.", low=-1e6, high=1e6, source="ours"
    )
    overlong_tokens: int | None = knob(
        None,
        "Sampled tokens from which a trajectory's return loses 1; None for no penalty.",
        unit="tokens",
        low=1,
        source="arXiv:2503.14476v2 eq. 13",
    )
    overlong_buffer: int = knob(
        64, "Tokens before overlong_tokens over which the penalty grows from 0.", unit="tokens", low=1, source="ours"
    )

    @property
    def uses_critic(self) -> bool:
        """Whether a critic is trained."""
        return ADVANTAGE_ESTIMATORS[self.advantage_estimator].needs_critic

    @property
    def penalises_in_loss(self) -> bool:
        """Whether the divergence from the reference is part of the loss."""
        return self.kl_coeff > 0.0 and KL_IN_LOSS[self.kl_placement]

    @property
    def is_off_policy(self) -> bool:
        """Whether the policy that sampled may be another one than the policy before the update."""
        return ROLLOUT_CORRECTIONS[self.rollout_correction] is not None or self.max_staleness > 0

    @property
    def old_log_probs_are_fixed(self) -> bool:
        """Whether settings alone say whose log-probs are the ratio's denominator, whatever the measured noise."""
        return LEARNER_RECOMPUTES[self.old_log_probs] is not None or self.is_off_policy

    @property
    def group_selection(self) -> GroupSelection:
        """Which of the sampled groups and trajectories are trained on."""
        return GroupSelection(
            zero_variance_groups=self.zero_variance_groups,
            zero_variance_metric=self.zero_variance_metric,
            truncated_trajectories=self.truncated_trajectories,
            truncated_return=self.truncated_return,
        )

    @property
    def returns_decide_advantages(self) -> bool:
        """Whether a group whose returns are equal, as the environment gave them, has no advantage."""
        shaped = self.overlong_tokens is not None or (self.kl_coeff > 0.0 and not self.penalises_in_loss)
        return ADVANTAGE_ESTIMATORS[self.advantage_estimator].follows_returns and not shaped

    @property
    def resampling_budget(self) -> int:
        """Most extra groups an iteration samples."""
        return self.max_resampled_groups if ZERO_VARIANCE_GROUPS[self.zero_variance_groups].replaces else 0


def recomputes_old_log_probs(settings: TrainingSettings, *, exact: bool) -> bool:
    """Whether the ratio's denominator is the learner's own log-probs, as far as settings say.

    Args:
        settings: The training settings.
        exact: Whether engine and learner compute in float32, and weights are sent in it.
    """
    recomputes = LEARNER_RECOMPUTES[settings.old_log_probs]
    return recomputes if recomputes is not None else settings.is_off_policy or not exact

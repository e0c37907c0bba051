"""Settings that another one has no use for: set all the same, they would be accepted and ignored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.algorithms.policy_gradient.choices import CLIP_SCALINGS, ROLLOUT_CORRECTIONS
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.connectors import ADVANTAGE_ESTIMATORS, AdvantageTraits
from gspo_rllib.driver.selection import REPLACES_REWARDS, ZERO_VARIANCE_GROUPS
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.knobs import Settings, default_of
from gspo_rllib.ops import SURROGATES


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """What some settings are for.

    Attributes:
        of: Names of the settings.
        by: The setting that decides whether they are used.
        values: The values of it that use them, in words.
        holds: Whether these settings use them.
    """

    of: tuple[str, ...]
    by: str
    values: str
    holds: Callable[[TrainingSettings], bool]


def _estimators(has: Callable[[AdvantageTraits], bool]) -> str:
    return ", ".join(repr(name) for name, traits in ADVANTAGE_ESTIMATORS.items() if has(traits))


USES = (
    Use(
        ("gamma",),
        "advantage_estimator",
        _estimators(lambda traits: traits.discounts),
        lambda s: ADVANTAGE_ESTIMATORS[s.advantage_estimator].discounts,
    ),
    Use(
        ("step_advantage_weight",),
        "advantage_estimator",
        _estimators(lambda traits: traits.weighs_steps),
        lambda s: ADVANTAGE_ESTIMATORS[s.advantage_estimator].weighs_steps,
    ),
    Use(
        ("lambda_", "vf_loss_coeff", "vf_clip_param", "vf_lr"),
        "advantage_estimator",
        _estimators(lambda traits: traits.needs_critic),
        lambda s: s.uses_critic,
    ),
    Use(("clip_reference_length",), "clip_scaling", "'length'", lambda s: CLIP_SCALINGS[s.clip_scaling].by_length),
    Use(("clip_target_fraction",), "clip_scaling", "'target'", lambda s: CLIP_SCALINGS[s.clip_scaling].towards_target),
    Use(("clip_deviations",), "clip_scaling", "'deviations'", lambda s: CLIP_SCALINGS[s.clip_scaling].measures),
    Use(("curriculum_success",), "curriculum", "a list of stages", lambda s: bool(s.curriculum)),
    Use(("recorded_behavior",), "recorded_groups", "a file", lambda s: s.recorded_groups is not None),
    Use(("dual_clip",), "surrogate", "'dual_clip'", lambda s: SURROGATES[s.surrogate].has_ceiling),
    Use(
        ("sapo_temperature_positive", "sapo_temperature_negative"),
        "surrogate",
        "'sapo'",
        lambda s: SURROGATES[s.surrogate].gates,
    ),
    Use(
        ("zero_variance_metric",),
        "zero_variance_groups",
        "'drop', 'resample'",
        lambda s: ZERO_VARIANCE_GROUPS[s.zero_variance_groups].leaves_out,
    ),
    Use(
        ("max_resampled_groups",),
        "zero_variance_groups",
        "'resample'",
        lambda s: ZERO_VARIANCE_GROUPS[s.zero_variance_groups].replaces,
    ),
    Use(
        ("truncated_return",), "truncated_trajectories", "'fail'", lambda s: REPLACES_REWARDS[s.truncated_trajectories]
    ),
    Use(("overlong_buffer",), "overlong_tokens", "a number of tokens", lambda s: s.overlong_tokens is not None),
    Use(
        ("rollout_correction_level", "rollout_correction_high"),
        "rollout_correction",
        "'truncate', 'mask'",
        lambda s: ROLLOUT_CORRECTIONS[s.rollout_correction] is not None,
    ),
    Use(
        ("rollout_correction_low",),
        "rollout_correction",
        "'mask'",
        lambda s: ROLLOUT_CORRECTIONS[s.rollout_correction] == "mask",
    ),
)
"""What some choices alone use. Parameters of a penalty whose coefficient is 0 are no mistake: a sweep may go there."""


def unread_settings(generation: GenerationSettings, agent: AgentSettings) -> Iterator[str]:
    """One message for each setting of sampling or of an agent that was changed and that nothing reads.

    Args:
        generation: The settings of sampling.
        agent: The agent's settings.
    """
    readers: tuple[tuple[GenerationSettings | AgentSettings, bool, str, tuple[str, ...]], ...] = (
        (generation, generation.edits_history, "context_overflow='sliding_window' or 'summarize'", ("segment_share",)),
        (generation, generation.asks_for_summaries, "context_overflow='summarize'", ("max_summary_tokens",)),
        (
            agent,
            agent.plays,
            "an agent",
            ("history", "trajectory_timeout_s", "idle_timeout_s", "call_timeout_s"),
        ),
    )
    for settings, is_read, reader, names in readers:
        for name, value in () if is_read else changed(settings, names):
            yield (
                f"{settings.SECTION}.{name} is {value!r}, which has no effect without {reader}. Set that, or leave "
                f"{name} out."
            )


def changed(settings: Settings, names: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Those of some settings that are not at their defaults, with their values.

    Args:
        settings: A section's settings.
        names: Which of them.

    Example:
        >>> list(changed(TrainingSettings(clip_low=0.5), ["clip_low", "clip_high"]))
        [('clip_low', 0.5)]
    """
    defaults = {field.name: default_of(field) for field in dataclasses.fields(settings)}
    for name in names:
        if (value := getattr(settings, name)) != defaults[name]:
            yield name, value


def idle_settings(settings: TrainingSettings) -> Iterator[str]:
    """One message for each setting that was changed and does nothing.

    Args:
        settings: The training settings.
    """
    for use in USES:
        for name, value in () if use.holds(settings) else changed(settings, use.of):
            yield (
                f"{name} is {value!r}, which has no effect with {use.by}={getattr(settings, use.by)!r}; only "
                f"{use.values} has a use for it. Change {use.by}, or leave {name} out."
            )

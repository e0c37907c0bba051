"""A setting that another one has no use for is refused where it was changed, and accepted where it is used."""

from __future__ import annotations

import dataclasses

import pytest

from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.algorithms import ALGORITHMS
from gspo_rllib.algorithms.policy_gradient.idle_settings import USES, idle_settings, unread_settings
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.env_runners.settings import GenerationSettings

USED_WITH = {
    "gamma": {"advantage_estimator": "turn_returns"},
    "step_advantage_weight": {"advantage_estimator": "step_groups"},
    "lambda_": {"advantage_estimator": "gae"},
    "vf_loss_coeff": {"advantage_estimator": "gae"},
    "vf_clip_param": {"advantage_estimator": "gae"},
    "vf_lr": {"advantage_estimator": "gae"},
    "clip_reference_length": {"clip_scaling": "length"},
    "clip_target_fraction": {"clip_scaling": "target"},
    "clip_deviations": {"clip_scaling": "deviations"},
    "dual_clip": {"surrogate": "dual_clip"},
    "sapo_temperature_positive": {"surrogate": "sapo"},
    "sapo_temperature_negative": {"surrogate": "sapo"},
    "zero_variance_metric": {"zero_variance_groups": "drop"},
    "max_resampled_groups": {"zero_variance_groups": "resample"},
    "truncated_return": {"truncated_trajectories": "fail"},
    "overlong_buffer": {"overlong_tokens": 100},
    "curriculum_success": {"curriculum": [{"rooms": 6}]},
    "recorded_behavior": {"recorded_groups": "a file"},
    "rollout_correction_level": {"rollout_correction": "mask"},
    "rollout_correction_low": {"rollout_correction": "mask"},
    "rollout_correction_high": {"rollout_correction": "truncate"},
}
CHANGED = {
    "zero_variance_metric": "success",
    "recorded_behavior": "unknown",
    "rollout_correction_level": "sequence_mean",
    "vf_lr": 1e-4,
}


@pytest.mark.parametrize("name", [name for use in USES for name in use.of])
def test_a_changed_setting_is_refused_exactly_where_it_does_nothing(name):
    default = getattr(TrainingSettings(), name)
    if name in CHANGED:
        changed = {name: CHANGED[name]}
    else:
        changed = {name: default + 1 if isinstance(default, int) else default * 0.9 + 0.01}
    (problem,) = idle_settings(TrainingSettings(**changed))
    (by,) = USED_WITH[name]
    assert problem.startswith(f"{name} is ") and f"no effect with {by}=" in problem
    assert str(USED_WITH[name][by]) in problem or by in ("overlong_tokens", "curriculum")
    assert not list(idle_settings(TrainingSettings(**changed, **USED_WITH[name])))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_defaults_of_no_algorithm_are_refused(algorithm):
    assert not list(idle_settings(ALGORITHMS[algorithm].get_default_config().training_settings()))


def test_parameters_of_a_penalty_that_is_off_are_no_mistake():
    assert not list(idle_settings(dataclasses.replace(TrainingSettings(), kl_estimator="k2", kl_placement="reward")))


@pytest.mark.parametrize(
    ("generation", "agent", "reader"),
    [
        ({"segment_share": 0.4}, {}, {"context_overflow": "sliding_window"}),
        ({"max_summary_tokens": 9}, {}, {"context_overflow": "summarize"}),
        ({"max_summary_tokens": 9, "context_overflow": "sliding_window"}, {}, {"context_overflow": "summarize"}),
        ({}, {"history": "as_sent"}, {"play": "my:agent"}),
        ({}, {"trajectory_timeout_s": 9.0}, {"play": "my:agent"}),
        ({}, {"idle_timeout_s": 9.0}, {"play": "my:agent"}),
        ({}, {"call_timeout_s": 9.0}, {"play": "my:agent"}),
    ],
)
def test_what_no_sampling_and_no_agent_reads_is_refused(generation, agent, reader):
    (problem,) = unread_settings(GenerationSettings(**generation), AgentSettings(**agent))
    (name,) = (generation | agent).keys() - {"context_overflow"}
    assert f".{name} is {(generation | agent)[name]!r}, which has no effect without " in problem
    if "play" in reader:
        agent = agent | reader
    else:
        generation = generation | reader
    assert not list(unread_settings(GenerationSettings(**generation), AgentSettings(**agent)))

"""Every combination that is not what it is called is refused, or warned about; its nearest honest neighbour is not."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import logging
import re
from typing import Any

import pytest

from gspo_rllib.algorithms import ALGORITHMS, GSPOConfig
from gspo_rllib.algorithms.policy_gradient import guards
from gspo_rllib.errors import SettingError


@dataclasses.dataclass(frozen=True)
class Guard:
    """Settings that trigger exactly one guard.

    Attributes:
        name: What the guard is about.
        settings: What triggers it, beside the defaults.
        near: The smallest change that makes it honest; must trigger nothing.
        says: Parts of the message: what was got, and the remedy.
    """

    name: str
    settings: dict[str, Any]
    near: dict[str, Any]
    says: tuple[str, ...]


GAE = {"advantage_estimator": "gae", "importance_sampling_level": "token", "clip_low": 0.2, "clip_high": 0.2}
TURNS = {"advantage_estimator": "turn_returns", "importance_sampling_level": "sequence_token"}
PARTS = {"advantage_estimator": "reward_parts", "reward_part_weights": {"correct": 1.0}}
CORRECTED = {"rollout_correction": "mask", "old_log_probs": "learner"}
DECOUPLED = {"rollout_correction": "truncate", "rollout_correction_level": "sequence_mean"}

MODEL = "a model's folder"

REFUSED = (
    Guard("a group of one", {"group_size": 1}, {"group_size": 2}, ("group_size is 1", "try 8", '"gae"')),
    Guard(
        "a group of one without a critic",
        {"group_size": 1, "advantage_estimator": "leave_one_out"},
        {"group_size": 1, **GAE},
        ("group_size is 1", ">= 2"),
    ),
    Guard(
        "turn credit under a sequence ratio",
        {"advantage_estimator": "turn_returns"},
        {"advantage_estimator": "turn_returns", "advantage_aggregation": "trajectory_mean"},
        ("'turn_returns'", "'sequence_token'", "advantage_aggregation='trajectory_mean'"),
    ),
    Guard(
        "step credit under a sequence ratio",
        {"advantage_estimator": "step_groups"},
        {"advantage_estimator": "step_groups", "importance_sampling_level": "turn"},
        ("'step_groups'", "'sequence_token'"),
    ),
    Guard(
        "token credit under a sequence ratio",
        {"advantage_estimator": "gae"},
        {"advantage_estimator": "gae", "importance_sampling_level": "sequence_token"},
        ("importance_sampling_level='sequence'", "'gae'", "'sequence_token'"),
    ),
    Guard(
        "token credit under a turn ratio",
        {"advantage_estimator": "gae", "importance_sampling_level": "turn"},
        {"advantage_estimator": "turn_returns", "importance_sampling_level": "turn"},
        ("importance_sampling_level='turn'", "'gae'", "'sequence_token' or 'token'"),
    ),
    Guard(
        "reward parts without weights",
        {"advantage_estimator": "reward_parts"},
        PARTS,
        ("'reward_parts'", "reward_part_weights is None", '"format": 0.2'),
    ),
    Guard(
        "weights without reward parts",
        {"reward_part_weights": {"correct": 2.0}},
        {},
        ("'group_z_score'", "{'correct': 2.0}", 'advantage_estimator="reward_parts"'),
    ),
    Guard(
        "dropping every group of one",
        {**GAE, "group_size": 1, "zero_variance_groups": "drop"},
        {**GAE, "group_size": 1, "zero_variance_groups": "keep"},
        ("zero_variance_groups='drop'", "group_size=1", "Use 'keep'"),
    ),
    Guard(
        "a lag of nothing",
        {"schedule": "fixed_lag"},
        {"schedule": "fixed_lag", "max_staleness": 1, **DECOUPLED},
        ("schedule='fixed_lag'", "max_staleness=0", "Set max_staleness=1"),
    ),
    Guard(
        "a lag of what is not sampled",
        {"schedule": "fixed_lag", "max_staleness": 1, "recorded_groups": "groups.jsonl"},
        {"schedule": "fixed_lag", "max_staleness": 1, **DECOUPLED},
        ("schedule='fixed_lag'", "recorded_groups", "Leave one of the two out"),
    ),
    Guard(
        "other groups for a batch whose weights are gone",
        {"schedule": "fixed_lag", "max_staleness": 1, "zero_variance_groups": "resample"},
        {"schedule": "fixed_lag", "max_staleness": 1, **DECOUPLED, "zero_variance_groups": "drop"},
        ("schedule='fixed_lag'", "zero_variance_groups='resample'", "zero_variance_groups='drop'", "schedule='free'"),
    ),
    Guard(
        "shaped rewards that parts do not see",
        {**PARTS, "overlong_tokens": 100},
        {"overlong_tokens": 100},
        ("overlong_tokens", "'reward_parts'", "kl_placement='loss'"),
    ),
    Guard(
        "a penalty in rewards that parts do not see",
        {**PARTS, "kl_coeff": 0.1, "kl_placement": "reward"},
        {**PARTS, "kl_coeff": 0.1},
        ("kl_placement='reward'", "'reward_parts'", "kl_placement='loss'"),
    ),
    Guard(
        "failed trajectories whose parts still count",
        {**PARTS, "truncated_trajectories": "fail"},
        {**PARTS, "truncated_trajectories": "mask"},
        ("truncated_trajectories='fail'", "'reward_parts'", "use 'mask' or 'keep'"),
    ),
    Guard(
        "k1 in the loss",
        {"kl_coeff": 0.1, "kl_estimator": "k1"},
        {"kl_coeff": 0.1, "kl_estimator": "k1", "kl_placement": "reward"},
        ("kl_estimator='k1' in the loss", "'k2' or 'k3'", "kl_placement='reward'"),
    ),
    Guard(
        "a reference that nothing uses",
        {"reference_path": MODEL},
        {"reference_path": MODEL, "kl_coeff": 0.1},
        ("reference_path", "kl_coeff is 0", "leave reference_path out"),
    ),
    Guard(
        "a correction of nothing",
        {"rollout_correction": "truncate", "old_log_probs": "engine"},
        {"rollout_correction": "truncate"},
        ("rollout_correction='truncate'", "always 1", 'old_log_probs="learner"'),
    ),
    Guard(
        "an empty correction range",
        {**CORRECTED, "rollout_correction_low": 2.5},
        {**CORRECTED, "rollout_correction_low": 2.0},
        ("rollout_correction_low is 2.5", "rollout_correction_high 2", "low <= high"),
    ),
    Guard(
        "a dual clip inside the clip range",
        {"surrogate": "dual_clip", "importance_sampling_level": "token", "clip_high": 2.0},
        {"surrogate": "dual_clip", "importance_sampling_level": "token", "clip_high": 1.9},
        ("dual_clip is 3", "ends at 3", "above it"),
    ),
    Guard(
        "scaling a clip that is not there",
        {"clip_scaling": "target", "surrogate": "sapo"},
        {"clip_scaling": "target", "surrogate": "dual_clip"},
        ("clip_scaling='target'", "surrogate='sapo'", "use 'none'"),
    ),
    Guard(
        "scaling a token's range by the trajectory's length",
        {"clip_scaling": "length", "importance_sampling_level": "turn"},
        {"clip_scaling": "length", "importance_sampling_level": "sequence_token"},
        ("clip_scaling='length'", "'turn'", "Use a sequence level"),
    ),
    Guard(
        "a measured range of a surrogate that has none",
        {"clip_scaling": "deviations", "surrogate": "cispo"},
        {"clip_scaling": "deviations"},
        ("clip_scaling='deviations'", "surrogate='cispo'", "use 'none'"),
    ),
    Guard(
        "a measured range of single tokens",
        {"clip_scaling": "deviations", "importance_sampling_level": "token", "clip_high": 0.2},
        {"clip_scaling": "deviations", "importance_sampling_level": "turn"},
        ("clip_scaling='deviations'", "'token'", "GRPO uses 0.2 and 0.28", "Use a sequence or turn level"),
    ),
    Guard(
        "a range measured on stale data",
        {"clip_scaling": "deviations", "max_staleness": 1, "old_log_probs": "engine"},
        {"clip_scaling": "deviations", "max_staleness": 1, **DECOUPLED},
        ("max_staleness=1", "old_log_probs='engine'", "the age of the data", "'learner'"),
    ),
    Guard("undoing without a limit", {"undo_overshoot": True}, {"target_kl": 0.01}, ("target_kl, e.g. 0.01",)),
    Guard(
        "a limit on an update of one step",
        {"target_kl": 0.01, "num_minibatches": 1},
        {"target_kl": 0.01, "num_minibatches": 1, "num_epochs": 2},
        ("target_kl=0.01", "num_minibatches=1", "undo_overshoot=True"),
    ),
    Guard(
        "experts held in an update of one step",
        {"routing_replay": True, "num_minibatches": 1},
        {"routing_replay": True, "num_minibatches": 1, "num_epochs": 2},
        ("routing_replay", "num_epochs=1", "Use num_minibatches=4"),
    ),
    Guard(
        "experts of another policy than the old log-probs",
        {"routing_replay": True, "max_staleness": 1, "old_log_probs": "engine"},
        {"routing_replay": True, "max_staleness": 1, **DECOUPLED},
        ("routing_replay", "old_log_probs='engine'", "Set old_log_probs='learner'"),
    ),
    Guard(
        "more than there are",
        {"min_informative_trajectories": 129, "groups_per_iteration": 16},
        {"min_informative_trajectories": 128, "groups_per_iteration": 16},
        ("is 129", "only 128", "groups_per_iteration x group_size"),
    ),
    Guard(
        "a length for a reduction that takes none",
        {"token_sum_length": 100},
        {"token_sum_length": 100, "reduction": "token_sum", "importance_sampling_level": "turn"},
        ("token_sum_length", "reduction='trajectory_mean'", "use 'token_sum'"),
    ),
    Guard(
        "a penalty that starts below zero tokens",
        {"overlong_tokens": 64, "overlong_buffer": 65},
        {"overlong_tokens": 64, "overlong_buffer": 64},
        ("overlong_buffer is 65", "overlong_tokens 64", "at most"),
    ),
)

CAUTIONED = (
    Guard(
        "a sequence ratio weighed by length",
        {"reduction": "token_mean"},
        {"reduction": "token_mean", "importance_sampling_level": "turn"},
        ("reduction='token_mean'", "reduction='trajectory_mean'"),
    ),
    Guard(
        "GSPO-token weighed by length",
        {"reduction": "token_sum", "importance_sampling_level": "sequence_token"},
        {"reduction": "trajectory_mean", "importance_sampling_level": "sequence_token"},
        ("reduction='token_sum'", "reduction='trajectory_mean'"),
    ),
    Guard(
        "one step, so no clip",
        {"num_minibatches": 1},
        {"num_minibatches": 1, "num_epochs": 2},
        ("num_minibatches=1 with num_epochs=1", "always 1", "num_minibatches=4"),
    ),
    Guard(
        "many steps without a clip",
        {"surrogate": "policy_gradient", "num_minibatches": 2, "num_epochs": 3},
        {"surrogate": "policy_gradient", "num_minibatches": 1},
        ("surrogate='policy_gradient'", "6 steps", "num_minibatches=1", "surrogate='clip'"),
    ),
    Guard(
        "a range that nothing is clipped by",
        {"surrogate": "sapo", "clip_high": 0.1},
        {"surrogate": "sapo"},
        ("clip_high: surrogate='sapo' has no use for",),
    ),
    Guard(
        "a range beside one that is measured",
        {"clip_scaling": "deviations", "clip_low": 0.03, "clip_high": 0.04},
        {"clip_scaling": "deviations"},
        ("clip_low and clip_high: clip_scaling='deviations' has no use for",),
    ),
    Guard(
        "GRPO's range on a sequence ratio",
        {"clip_low": 0.2, "clip_high": 0.28},
        {"clip_low": 0.2, "clip_high": 0.28, "importance_sampling_level": "token"},
        ("clip_low=0.2, clip_high=0.28", "token-level range", "3e-4 and 4e-4"),
    ),
    Guard(
        "half of GRPO's range on a sequence ratio",
        {"clip_high": 0.1},
        {"clip_high": 0.099},
        ("clip_high=0.1", "token-level range"),
    ),
    Guard(
        "GSPO's range on a token ratio",
        {"importance_sampling_level": "token"},
        {"importance_sampling_level": "token", "clip_high": 0.011},
        ("clip_low=0.0003, clip_high=0.0004", "sequence-level range", "0.2 and 0.28"),
    ),
    Guard(
        "a correction that grows with length",
        {**CORRECTED, "rollout_correction_level": "sequence_product"},
        {**CORRECTED, "rollout_correction_level": "sequence_mean"},
        ("'sequence_product'", "long ones are cut off or dropped", "'sequence_mean'"),
    ),
    Guard(
        "a clip range around a ratio that starts elsewhere",
        {"max_staleness": 1, "old_log_probs": "engine"},
        {"max_staleness": 0, "old_log_probs": "engine"},
        ("old_log_probs='engine'", "max_staleness=1", "old_log_probs='learner'", "rollout_correction='truncate'"),
    ),
    Guard(
        "stale data taken for fresh",
        {"max_staleness": 2},
        {**DECOUPLED, "max_staleness": 2},
        ("max_staleness=2", "rollout_correction='none'", "rollout_correction_level='sequence_mean'"),
    ),
    Guard(
        "equal returns that still teach turns",
        {**TURNS, "zero_variance_groups": "resample"},
        {**TURNS, "zero_variance_groups": "resample", "zero_variance_metric": "success"},
        ("zero_variance_groups='resample'", "'turn_returns'", "zero_variance_metric='success'"),
    ),
    Guard(
        "equal returns of different parts",
        {**PARTS, "zero_variance_groups": "drop"},
        {**PARTS, "zero_variance_groups": "keep"},
        ("zero_variance_groups='drop'", "'reward_parts'", "Use 'keep'"),
    ),
    Guard(
        "trajectories the critic could learn from",
        {**GAE, "zero_variance_groups": "drop"},
        {"zero_variance_groups": "drop"},
        ("zero_variance_groups='drop'", "critic", "'keep'"),
    ),
)

REFUSALS = pytest.mark.parametrize("guard", REFUSED, ids=lambda guard: guard.name)
CAUTIONS = pytest.mark.parametrize("guard", CAUTIONED, ids=lambda guard: guard.name)


def _config(path: str, config: GSPOConfig | None = None) -> GSPOConfig:
    return (
        (config or GSPOConfig())
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0", env_config={"operations": 1})
        .rl_module(model_config={"path": str(path)})
        .generation(engine="transformers", max_tokens_per_turn=8)
    )


def _warned(config: GSPOConfig, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What validating says."""
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="gspo_rllib"):
        config.validate()
    return [record.getMessage() for record in caplog.records if record.name.startswith("gspo_rllib")]


def _templates() -> list[re.Pattern[str]]:
    """One pattern per message written in ``guards``: its words, with anything where a value is put in."""
    patterns = []
    for node in ast.walk(ast.parse(inspect.getsource(guards))):
        if isinstance(node, ast.Yield):
            parts = node.value.values if isinstance(node.value, ast.JoinedStr) else [node.value]
            words = [re.escape(part.value) if isinstance(part, ast.Constant) else ".+" for part in parts]
            patterns.append(re.compile("".join(words)))
    return patterns


def _messages(guard: Guard) -> tuple[list[str], list[str]]:
    """What its settings are refused and cautioned for."""
    settings = GSPOConfig.training_settings(**guard.settings)
    recomputes = settings.old_log_probs == "learner"
    return list(guards.refusals(settings, recomputes_old_log_probs=recomputes)), list(guards.cautions(settings))


@REFUSALS
def test_a_combination_that_cannot_mean_what_it_says_is_refused(guard, tiny_dense):
    with pytest.raises(SettingError) as caught:
        _config(tiny_dense).training(**_there(guard.settings, tiny_dense)).validate()
    message = str(caught.value)
    assert message.startswith("training.")
    for part in guard.says:
        assert part in message


@CAUTIONS
def test_what_is_not_what_it_is_usually_called_is_warned_about_once(guard, tiny_dense, caplog):
    (message,) = _warned(_config(tiny_dense).training(**_there(guard.settings, tiny_dense)), caplog)
    assert message.startswith("training.")
    for part in guard.says:
        assert part in message


def _there(settings, model):
    """The settings, with a model's folder where one is meant."""
    return {name: model if value == MODEL else value for name, value in settings.items()}


@pytest.mark.parametrize("guard", [*REFUSED, *CAUTIONED], ids=lambda guard: guard.name)
def test_its_honest_neighbour_is_silent(guard, tiny_dense, caplog):
    assert _warned(_config(tiny_dense).training(**_there(guard.near, tiny_dense)), caplog) == []


@REFUSALS
def test_a_refusal_is_the_only_one_its_settings_earn(guard):
    assert len(_messages(guard)[0]) == 1


def test_every_guard_is_triggered_here():
    """A guard is a ``yield`` in ``guards``; one whose message none of the settings above causes has no test."""
    said = [message for guard in REFUSED for message in _messages(guard)[0]]
    said += [message for guard in CAUTIONED for message in _messages(guard)[1]]
    templates = _templates()
    assert len(templates) >= 23
    assert [template.pattern for template in templates if not any(map(template.fullmatch, said))] == []
    # No two guards say the same, so none hides behind another's test.
    assert all(sum(template.fullmatch(message) is not None for template in templates) == 1 for message in said)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_defaults_of_every_algorithm_are_neither_refused_nor_warned_about(name, tiny_dense, caplog):
    config = _config(tiny_dense, ALGORITHMS[name].get_default_config())
    assert config.algo_class is ALGORITHMS[name]
    assert _warned(config, caplog) == []


@pytest.mark.parametrize("knob", [{"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.05}], ids=lambda knob: next(iter(knob)))
def test_sampling_from_another_distribution_than_the_learner_scores_is_refused(knob):
    with pytest.raises(SettingError) as caught:
        GSPOConfig().generation(**knob)
    (name,) = knob
    for part in (f"generation.{name}", "another distribution", "ratio would not be one", "Use temperature"):
        assert part in str(caught.value)


def test_evaluation_with_one_trajectory_per_task_is_not_refused(tiny_dense, caplog):
    config = _config(tiny_dense).evaluation(evaluation_interval=1)
    evaluation = config.get_evaluation_config_object()
    assert evaluation.group_size == 1 and evaluation.in_evaluation
    assert _warned(evaluation, caplog) == []


def test_taking_up_weights_within_a_turn_needs_weights_that_change_within_a_turn(tiny_dense, caplog):
    config = _config(tiny_dense).generation(weight_update="token")
    with pytest.raises(SettingError, match=r"weight_update is 'token'.*Use 'turn', or max_staleness=1"):
        config.validate()
    assert _warned(config.training(max_staleness=1, **DECOUPLED), caplog) == []


def test_stale_data_is_scored_by_the_learner_before_its_first_step(tiny_dense):
    assert not _config(tiny_dense).recompute_old_log_probs
    assert _config(tiny_dense).training(max_staleness=1).recompute_old_log_probs
    assert not _config(tiny_dense).training(max_staleness=1, old_log_probs="engine").recompute_old_log_probs


def test_a_correction_is_allowed_wherever_the_learner_recomputes(tiny_dense, caplog):
    """By itself with an engine in bfloat16, and not where the engine's log-probs are asked for."""
    config = _config(tiny_dense).generation(engine_dtype="bfloat16").training(rollout_correction="truncate")
    assert _warned(config, caplog) == []
    with pytest.raises(SettingError, match="the weight is always 1"):
        config.training(old_log_probs="engine").validate()

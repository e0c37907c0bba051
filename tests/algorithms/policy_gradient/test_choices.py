"""Every name has its traits, every trait its name, and who decides asks for the trait and never for the name."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from types import ModuleType
from typing import get_args

import pytest

from gspo_rllib import ops
from gspo_rllib.algorithms.policy_gradient import (
    algorithm,
    choices,
    clip_monitor,
    config,
    guards,
    learner,
    settings,
    validation,
)
from gspo_rllib.connectors import ADVANTAGE_ESTIMATORS, gae, group_advantages
from gspo_rllib.driver import selection
from gspo_rllib.env_runners.settings import UPDATES_WITHIN_TURNS, GenerationSettings
from gspo_rllib.knobs import Settings
from gspo_rllib.learners import language_learner, training_data
from gspo_rllib.ops import Span, clip_span

TABLES = {
    "importance_sampling_level": (ops.ratios.ImportanceSamplingLevel, ops.IMPORTANCE_SAMPLING_LEVELS),
    "surrogate": (ops.surrogates.Surrogate, ops.SURROGATES),
    "reduction": (ops.reductions.Reduction, ops.REDUCTIONS),
    "kl_estimator": (ops.divergences.KLEstimator, ops.KL_ESTIMATORS),
    "rollout_correction_level": (ops.corrections.CorrectionLevel, ops.CORRECTION_LEVELS),
    "zero_variance_groups": (selection.ZeroVarianceGroups, selection.ZERO_VARIANCE_GROUPS),
    "zero_variance_metric": (selection.ZeroVarianceMetric, selection.COMPARES_RETURNS),
    "truncated_trajectories": (selection.TruncatedTrajectories, selection.REPLACES_REWARDS),
    "advantage_estimator": (None, ADVANTAGE_ESTIMATORS),
    "advantage_aggregation": (None, choices.ADVANTAGE_AGGREGATIONS),
    "clip_scaling": (None, choices.CLIP_SCALINGS),
    "kl_placement": (None, choices.KL_IN_LOSS),
    "old_log_probs": (None, choices.LEARNER_RECOMPUTES),
    "rollout_correction": (None, choices.ROLLOUT_CORRECTIONS),
    "weight_update": (None, UPDATES_WITHIN_TURNS),
    "schedule": (None, choices.SCHEDULES),
}
"""Setting -> the type that lists its names, where there is one, and the table."""

OWN_BEHAVIOUR = {"adapter_sync", "engine_dtype", "sync_dtype", "context_overflow", "recorded_behavior"}
"""Choices from which nothing follows elsewhere: the one place that reads them is the one that does them."""


def _choices(kind: type[Settings]) -> dict[str, tuple[str, ...]]:
    knobs = dataclasses.fields(kind)  # type: ignore[arg-type]
    return {knob.name: knob.metadata["choices"] for knob in knobs if knob.metadata["choices"] is not None}


def test_every_choice_has_a_table_and_every_table_is_of_a_choice() -> None:
    allowed = {**_choices(settings.TrainingSettings), **_choices(GenerationSettings)}
    assert set(allowed) - OWN_BEHAVIOUR == set(TABLES)
    for name, (kind, table) in TABLES.items():
        assert allowed[name] == tuple(table), name
        assert kind is None or get_args(kind) == tuple(table), name


def test_the_corrections_are_none_and_the_modes_there_are() -> None:
    assert {"none": None, **{mode: mode for mode in ops.CORRECTION_MODES}} == choices.ROLLOUT_CORRECTIONS


NAMES = {name for _, table in TABLES.values() for name in table}
DECIDE = (
    algorithm, clip_monitor, config, guards, learner, validation,
    language_learner, training_data, group_advantages, gae,
)  # fmt: skip


@pytest.mark.parametrize("module", DECIDE, ids=lambda module: module.__name__.removeprefix("gspo_rllib."))
def test_who_decides_never_compares_with_a_name(module: ModuleType) -> None:
    """A name in a comparison, or given to ``startswith`` and the like: there, a new neighbour would be forgotten."""
    compared = []
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        text_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and "with" in node.func.attr
        if isinstance(node, ast.Compare) or text_method:
            compared += [c for c in ast.walk(node) if isinstance(c, ast.Constant) and c.value in NAMES]
    assert not [(name.lineno, name.value) for name in compared]


@pytest.mark.parametrize("level", ops.IMPORTANCE_SAMPLING_LEVELS)
@pytest.mark.parametrize("surrogate", ["clip", "dual_clip"])
def test_a_clip_on_the_ratio_spans_what_the_ratio_spans(level: str, surrogate: str) -> None:
    expected = {"sequence": Span.TRAJECTORY, "sequence_token": Span.TRAJECTORY, "turn": Span.TURN, "token": Span.TOKEN}
    assert clip_span(level, surrogate) is expected[level]


def test_only_estimators_without_a_group_need_a_critic() -> None:
    critics = {name for name, traits in ADVANTAGE_ESTIMATORS.items() if traits.needs_critic}
    assert critics == {"gae"} == {name for name, traits in ADVANTAGE_ESTIMATORS.items() if not traits.needs_group}

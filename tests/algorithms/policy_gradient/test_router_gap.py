"""Experts of the engine's pass and of the learner's: equal where weights are, and a known share apart by hand."""

from __future__ import annotations

import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.learners.statistics import ROUTER_DRIFT, ROUTER_GAP
from gspo_rllib.types import TrajectoryGroup
from tests.episodes import make_group
from tests.learners.small_learner import learner_config


def _gap(algorithm, group) -> float:
    algorithm._log_router_gap([group])
    return float(algorithm.metrics.peek(("learners", DEFAULT_MODULE_ID, ROUTER_GAP)))


def test_engine_and_learner_are_compared_before_an_update(tiny_moe, ray_local):
    """Of two layers one has its four experts renamed in the engine: no pair is the same, and its output is what it was;
    so half of all tokens and layers differ."""
    algorithm = learner_config(tiny_moe, router_drift=True, lr=1e-3).build_algo()
    try:
        group = TrajectoryGroup("g", make_group("g", 4))
        assert _gap(algorithm, group) == 0.0
        layer = algorithm.env_runner._acquire_engine()._model.model.layers[0].mlp
        before = {name: parameter.data for name, parameter in layer.named_parameters()}
        for parameter in layer.parameters():
            parameter.data = parameter.data.roll(1, dims=0) if parameter.shape[0] == 4 else parameter.data
        assert _gap(algorithm, group) == 0.5
        for name, parameter in layer.named_parameters():
            parameter.data = before[name]
        result = algorithm.train()["learners"][DEFAULT_MODULE_ID]
        assert result[ROUTER_GAP] == 0.0
        assert 0.0 <= result.get(ROUTER_DRIFT, 0.0) <= 1.0  # nothing is trained where all returns are equal
    finally:
        algorithm.stop()


@pytest.mark.parametrize("more", [{"max_staleness": 1, "rollout_correction": "truncate"}, {"router_drift": False}])
def test_nothing_is_compared_where_weights_may_differ_or_nobody_asked(more):
    from gspo_rllib.algorithms import GSPOConfig
    from gspo_rllib.algorithms.policy_gradient.router_gap import ComparesRouting

    compares = ComparesRouting()
    compares._settings = GSPOConfig.training_settings(**{"router_drift": True, **more})
    compares._log_router_gap([TrajectoryGroup("g", make_group("g", 4))])  # asks nobody: there is nobody to ask

"""The reference policy: where the divergence from it starts, and that it pulls back."""

from __future__ import annotations

import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib.learners.training_data import GroupTrainingData
from tests.learners.objectives import SPACES, even_groups, objective_config


def test_the_divergence_from_the_reference_starts_at_zero_and_is_pulled_back(tiny_dense):
    def divergence(kl_coeff):
        config = objective_config(tiny_dense, kl_coeff=kl_coeff, lr=1e-3, old_log_probs="learner")
        learner = config.build_learner(spaces=SPACES)
        values = []
        for _ in range(6):
            data = GroupTrainingData.from_groups(even_groups(1), num_minibatches=1, seed=0)
            results = learner.update(training_data=data, num_epochs=1)
            values.append(results[DEFAULT_MODULE_ID]["kl_to_reference"].peek())
        return values

    free, held = divergence(1e-9), divergence(10.0)
    assert free[0] == pytest.approx(0.0, abs=1e-6) == held[0]
    assert free[-1] > 1e-3
    assert held[-1] < free[-1] / 2

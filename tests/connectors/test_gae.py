"""Generalised advantages, from the critic's values to the tokens of a turn."""

from __future__ import annotations

import numpy as np

from gspo_rllib.algorithms import LanguagePPOConfig
from tests.learners.objectives import objective_config, scored, scored_trajectories


def test_generalised_advantages_of_an_untrained_critic_are_the_standardised_returns_to_go(tiny_dense):
    """Values start at 0, so with lambda 1 a token's advantage is what its trajectory still earns: 1 (2 + 2 tokens),
    then 0 (2 tokens) and 0; standardised: mean 4/6... over [1, 1, 1, 1, 0, 0] = 2/3, std sqrt(2)/3."""
    config = objective_config(tiny_dense, LanguagePPOConfig())
    won, lost = scored_trajectories(config, [scored("a", 0, [0.0, 1.0]), scored("b", 0, [0.0])])
    np.testing.assert_allclose(won.value_targets, [1.0] * 4, atol=1e-6)
    np.testing.assert_allclose(lost.value_targets, [0.0] * 2, atol=1e-6)
    np.testing.assert_allclose(won.advantages, [0.5**0.5] * 4, atol=1e-5)
    np.testing.assert_allclose(lost.advantages, [-(2**0.5)] * 2, atol=1e-5)

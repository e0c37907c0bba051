"""What is taken from the reward of a turn before it is learned from."""

from __future__ import annotations

import numpy as np

from gspo_rllib.types import TURN
from tests.episodes import make_episode
from tests.learners.objectives import objective_config, scored_trajectories


def test_a_penalty_in_the_reward_costs_each_turn_the_log_ratio_of_its_own_tokens(tiny_dense):
    """k1 of a token is log pi - log ref; with coefficient 2 a turn loses twice the sum over its tokens."""
    config = objective_config(tiny_dense, kl_coeff=2.0, kl_estimator="k1", kl_placement="reward")
    episode = make_episode("g", 0, [(4, 3), (2, 2)], 1.0)
    (trajectory,) = scored_trajectories(config, [episode])
    turns = episode.get_extra_model_outputs(TURN)
    first = sum(turns[0].action_logp) - trajectory.reference_logp[:3].sum()
    second = sum(turns[1].action_logp) - trajectory.reference_logp[3:].sum()
    np.testing.assert_allclose(trajectory.turn_rewards, [-2 * first, 1.0 - 2 * second], rtol=1e-5)


def test_the_overlong_penalty_falls_on_the_last_turn(tiny_dense):
    """9 of 10 allowed tokens with a buffer of 4: (6 - 9) / 4 = -0.75; 5 tokens lose nothing; 12 lose 1."""
    config = objective_config(tiny_dense, overlong_tokens=10, overlong_buffer=4)
    episodes = [make_episode("g", i, [(2, 4), (2, n)], 1.0) for i, n in enumerate([5, 1, 8])]
    rewards = [t.turn_rewards.tolist() for t in scored_trajectories(config, episodes)]
    assert rewards == [[0.0, 0.25], [0.0, 1.0], [0.0, 0.0]]

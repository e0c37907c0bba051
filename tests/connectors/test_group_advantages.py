"""Advantages of a group, from its episodes to the tokens of its turns."""

from __future__ import annotations

import numpy as np
import pytest

from gspo_rllib.errors import EnvError
from tests.episodes import make_group
from tests.learners.objectives import objective_config, per_turn, scored, scored_trajectories


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # Returns 1, 0, 0, 0: mean 0.25.
        ("group_mean", [[0.75], [-0.25], [-0.25], [-0.25]]),
        # Each against the mean of the others: 1 - 0 and 0 - 1/3.
        ("leave_one_out", [[1.0], [-1 / 3], [-1 / 3], [-1 / 3]]),
        # Standard deviation of 1, 0, 0, 0 with K - 1: 0.5.
        ("group_z_score", [[1.5], [-0.5], [-0.5], [-0.5]]),
    ],
)
def test_a_return_is_compared_within_its_own_group(tiny_dense, estimator, expected):
    episodes = [scored("a", i, [float(i == 0)]) for i in range(4)] + [scored("b", i, [5.0]) for i in range(4)]
    # Members arrive in any order.
    trajectories = scored_trajectories(objective_config(tiny_dense, advantage_estimator=estimator), episodes[::-1])
    a = sorted((t for t in trajectories if t.group_id == "a"), key=lambda t: t.index)
    np.testing.assert_allclose([per_turn(t) for t in a], expected, atol=1e-5)
    assert all(per_turn(t) == [0.0] for t in trajectories if t.group_id == "b")


def test_every_turn_is_credited_with_what_followed_it(tiny_dense):
    """Rewards (1, 0) and (0, 1): returns-to-go 1, 1 at turn 0 agree; 0, 1 at turn 1 score -0.707 and 0.707."""
    config = objective_config(
        tiny_dense, advantage_estimator="turn_returns", importance_sampling_level="sequence_token"
    )
    first, second = scored_trajectories(config, [scored("a", 0, [1.0, 0.0]), scored("a", 1, [0.0, 1.0])])
    np.testing.assert_allclose(per_turn(first), [0.0, -0.7071], atol=1e-4)
    np.testing.assert_allclose(per_turn(second), [0.0, 0.7071], atol=1e-4)


def test_step_groups_compare_turns_that_answered_the_same_observation(tiny_dense):
    """All observations are "start" or "next": turn 0 is compared with turn 0, the later ones with each other."""
    config = objective_config(
        tiny_dense, advantage_estimator="step_groups", importance_sampling_level="sequence_token",
        step_advantage_weight=1.0,
    )  # fmt: skip
    first, second = scored_trajectories(config, [scored("a", 0, [0.0, 1.0]), scored("a", 1, [0.0, 0.0])])
    # Episode part: returns 1 and 0 -> +-0.7071; step part the same at both turns.
    np.testing.assert_allclose(per_turn(first), [1.4142, 1.4142], atol=1e-4)
    np.testing.assert_allclose(per_turn(second), [-1.4142, -1.4142], atol=1e-4)


def test_reward_parts_are_normalised_one_by_one(tiny_dense):
    """A part a hundred times as large counts the same: z-scores +-0.7071 of each, weighted 1 and 0.5."""
    config = objective_config(
        tiny_dense, advantage_estimator="reward_parts", reward_part_weights={"correct": 1.0, "format": 0.5}
    )
    parts = [[{"correct": 100.0, "format": 0.0}], [{"correct": 0.0, "format": 1.0}]]
    episodes = [scored("a", i, [0.0], parts=part) for i, part in enumerate(parts)]
    advantages = [per_turn(t)[0] for t in scored_trajectories(config, episodes)]
    np.testing.assert_allclose(advantages, [0.3536, -0.3536], atol=1e-4)
    with pytest.raises(EnvError, match="never held 'format'"):
        scored_trajectories(config, [scored("a", i, [0.0], parts=[{"correct": 1.0}]) for i in range(2)])


def test_a_lonely_member_of_a_ragged_group_has_no_advantage(tiny_dense):
    trajectories = scored_trajectories(objective_config(tiny_dense), [scored("a", 2, [1.0]), *(make_group("b", 3))])
    assert per_turn(trajectories[0]) == [0.0]
    assert any(t.advantages.any() for t in trajectories[1:])

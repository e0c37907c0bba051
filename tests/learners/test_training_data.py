"""What an update is cut into: minibatches, and shards for the ranks."""

from __future__ import annotations

import pytest

from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.types import TrajectoryGroup, group_episodes
from tests.learners.small_learner import even_groups


def test_sharding_keeps_groups_whole_and_ranks_balanced():
    groups = even_groups(8)
    data = GroupTrainingData.from_groups(groups, num_minibatches=4, seed=3)
    assert sorted(i for plan in data.minibatches for i in plan.group_ids) == sorted(g.group_id for g in groups)
    assert [plan.num_trajectories for plan in data.minibatches] == [8, 8, 8, 8]
    shards = [shard for shard, _ in data.shard(2)]
    ids = [{g.group_id for g in group_episodes(shard.episodes)} for shard in shards]
    assert not ids[0] & ids[1]
    for shard in shards:
        assert all(len(g.episodes) == 4 for g in group_episodes(shard.episodes))
        for plan in data.minibatches:
            assert len({g.group_id for g in group_episodes(shard.episodes)} & plan.group_ids) == 1


def test_fewer_groups_than_minibatches_still_train_all_of_them():
    data = GroupTrainingData.from_groups(even_groups(2), num_minibatches=4, seed=0)
    assert [len(plan.group_ids) for plan in data.minibatches] == [1, 1]


def _cut(informative, *, groups=None, most=4, least=1, seed=0):
    """Sorted (informative trajectories, trajectories) of each minibatch; those named teach something, others do not."""
    counts = dict(informative)
    groups = groups or even_groups(8)
    data = GroupTrainingData.from_groups(
        groups, num_minibatches=most, seed=seed, min_informative=least,
        num_informative=lambda group: counts.get(group.group_id, 0),
    )  # fmt: skip
    ids = [group_id for plan in data.minibatches for group_id in plan.group_ids]
    assert sorted(ids) == sorted(group.group_id for group in groups)
    return sorted(
        (sum(counts.get(group_id, 0) for group_id in plan.group_ids), plan.num_trajectories)
        for plan in data.minibatches
    )


@pytest.mark.parametrize("seed", range(5))
def test_minibatches_share_what_teaches_evenly_whatever_the_order(seed):
    """Cut by groups, chance puts all four of them into one minibatch now and then."""
    teaching = {f"g{i}": 4 for i in (1, 3, 4, 6)}
    assert _cut(teaching, seed=seed) == [(4, 8)] * 4
    assert _cut(teaching, least=4, seed=seed) == [(4, 8)] * 4


def test_minibatches_with_too_little_to_learn_from_are_joined():
    teaching = {"g1": 4, "g2": 4, "g5": 4}
    assert _cut(teaching, least=4) == [(4, 8), (4, 12), (4, 12)]
    assert _cut(teaching, least=5) == [(12, 32)]
    assert _cut({"g1": 4}, least=1) == _cut({"g1": 4}, least=32) == [(4, 32)]
    assert _cut({}, least=1) == [(0, 32)]


def test_ragged_groups_are_shared_by_what_is_left_of_them():
    groups = even_groups(4)
    ragged = [TrajectoryGroup(g.group_id, g.episodes[:n]) for g, n in zip(groups, (4, 4, 2, 2), strict=True)]
    counts = {g.group_id: len(g.episodes) for g in ragged}
    assert _cut(counts, groups=ragged, most=2) == [(6, 6), (6, 6)]
    assert _cut(counts, groups=ragged, most=3, least=4) == [(4, 4), (4, 4), (4, 4)]


def test_where_nothing_is_asked_minibatches_are_cut_by_groups_as_they_were():
    groups = even_groups(7)
    plain = GroupTrainingData.from_groups(groups, num_minibatches=3, seed=5)
    assert [len(plan.group_ids) for plan in plain.minibatches] == [3, 2, 2]
    blind = GroupTrainingData.from_groups(groups, num_minibatches=3, seed=5, num_informative=lambda group: 0)
    assert blind.minibatches == plain.minibatches
    # All alike: asking changes nothing but the order within a minibatch, which has none.
    asked = GroupTrainingData.from_groups(groups, num_minibatches=3, seed=5, min_informative=1)
    assert asked.minibatches == plain.minibatches

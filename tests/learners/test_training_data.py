"""What an update is cut into: minibatches, and shards for the ranks."""

from __future__ import annotations

from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.types import group_episodes
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

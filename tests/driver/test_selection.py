"""Which sampled groups are trained on: equal outcomes, truncated trajectories, resampling, and what is counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.driver.selection import COUNTS, GroupSelection, sample_until_informative
from gspo_rllib.errors import NoProgressError, SettingError
from gspo_rllib.learners.training_data import GroupTrainingData
from gspo_rllib.types import (
    GROUP,
    TRUNCATED_BY,
    TURN,
    TURN_REWARDS,
    GroupMember,
    TrajectoryGroup,
    Turn,
    group_episodes,
    turn_rewards,
)
from tests.episodes import make_group

SAMPLED_PER_TURN = 4


def played(*rewards: float, truncated: bool = False, **info: Any) -> SingleAgentEpisode:
    """An episode of one turn per reward; ``info`` is its last."""
    episode = SingleAgentEpisode()
    episode.add_env_reset("start")
    for number, reward in enumerate(rewards, start=1):
        last = number == len(rewards)
        turn = Turn(
            prompt_token_ids=np.arange(3, dtype=np.int32),
            action_token_ids=np.arange(SAMPLED_PER_TURN, dtype=np.int32),
            action_logp=np.full(SAMPLED_PER_TURN, -1.0, dtype=np.float32),
            policy_version=0,
            finish_reason="stop",
        )
        episode.add_env_step(
            observation="next", action="say", reward=reward, infos=info if last else {},
            terminated=last and not truncated, truncated=last and truncated, extra_model_outputs={TURN: turn},
        )  # fmt: skip
    if truncated:
        episode.custom_data[TRUNCATED_BY] = "turns"
    return episode


def group(*episodes: SingleAgentEpisode, name: str = "g") -> TrajectoryGroup:
    for index, episode in enumerate(episodes):
        episode.custom_data[GROUP] = GroupMember(name, index, task_seed=0)
    return TrajectoryGroup(name, list(episodes))


def counted(counts: dict[str, int]) -> dict[str, int]:
    """The counts that are not 0, after checking that none is missing."""
    assert sorted(counts) == sorted(COUNTS)
    return {name.removeprefix("num_"): count for name, count in counts.items() if count}


def is_dropped(sampled: TrajectoryGroup, **knobs: Any) -> bool:
    kept, counts = GroupSelection(**({"zero_variance_groups": "drop"} | knobs)).select([sampled])
    assert counted(counts).get("groups_dropped", 0) == 1 - len(kept)
    return not kept


def test_by_default_every_group_is_trained_on_as_it_was_sampled() -> None:
    sampled = [
        group(played(1.0), played(0.0, 0.5, truncated=True), name="mixed"),
        group(played(1.0), played(1.0), name="equal"),
        group(played(1.0, truncated=True), name="alone"),
    ]
    members = [list(g.episodes) for g in sampled]
    kept, counts = GroupSelection().select(sampled)
    assert all(after is before for after, before in zip(kept, sampled, strict=True))
    assert [g.episodes for g in kept] == members
    assert not any(TURN_REWARDS in episode.custom_data for g in kept for episode in g.episodes)
    assert counted(counts) == {"groups_zero_variance": 2}


def test_equal_returns_are_dropped_even_where_their_standard_deviation_is_not_zero() -> None:
    assert np.std([0.1, 0.1, 0.1]) > 0
    assert is_dropped(group(played(0.1), played(0.1), played(0.1)))
    assert is_dropped(group(played(0.1, 0.2), played(0.1, 0.2)))
    assert is_dropped(group(played(0.5, 0.5), played(1.0)))


def test_returns_that_are_only_nearly_equal_are_kept() -> None:
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    assert not is_dropped(group(played(0.1, 0.2, 0.3), played(0.3, 0.2, 0.1)))
    assert not is_dropped(group(played(0.1, 0.2), played(0.3)))
    assert not is_dropped(group(played(0.0), played(0.0), played(1e-300)))


def test_filtering_on_success_ignores_shaped_rewards() -> None:
    def shaped(first: bool, second: bool) -> TrajectoryGroup:
        return group(played(0.9, success=first), played(0.4, success=second))

    assert not is_dropped(shaped(True, True))
    assert is_dropped(shaped(True, True), zero_variance_metric="success")
    assert is_dropped(shaped(False, False), zero_variance_metric="success")
    assert not is_dropped(shaped(True, False), zero_variance_metric="success")
    same_return = group(played(1.0, success=True), played(1.0, success=False))
    assert not is_dropped(same_return, zero_variance_metric="success")


def test_a_group_with_a_member_that_does_not_say_is_compared_by_return() -> None:
    assert not is_dropped(group(played(0.9, success=True), played(0.4)), zero_variance_metric="success")
    assert is_dropped(group(played(0.9, success=True), played(0.9)), zero_variance_metric="success")


def test_a_trajectory_cut_short_without_saying_so_has_not_succeeded() -> None:
    cut = played(0.7, truncated=True)
    assert is_dropped(group(cut, played(0.1, success=False)), zero_variance_metric="success")
    assert not is_dropped(group(cut, played(0.7, success=True)), zero_variance_metric="success")


def test_masked_trajectories_are_in_no_denominator() -> None:
    members = [played(1.0), played(0.0, 0.0, 0.5, truncated=True), played(0.0, 0.0)]
    sampled = group(*members)
    kept, counts = GroupSelection(truncated_trajectories="mask").select([sampled])
    assert counted(counts) == {"trajectories_truncated_masked": 1}
    data = GroupTrainingData.from_groups(kept, num_minibatches=1, seed=0)
    [plan] = data.minibatches
    assert (plan.num_trajectories, plan.num_turns, plan.num_sampled_tokens) == (2, 3, 3 * SAMPLED_PER_TURN)
    [(shard, _)] = data.shard(1)
    assert shard.episodes == [members[0], members[2]]
    assert [e.custom_data[GROUP].index for e in shard.episodes] == [0, 2]
    assert sampled.episodes == members, "the group that was handed in must not change"


def test_masking_decides_before_variance_is_looked_at() -> None:
    cut_apart = [played(1.0), played(1.0), played(0.0, truncated=True)]
    assert not is_dropped(group(*cut_apart))
    assert is_dropped(group(*cut_apart), truncated_trajectories="mask")


def test_a_group_that_masking_leaves_one_member_has_no_variance() -> None:
    sampled = group(played(1.0), played(0.0, truncated=True))
    assert is_dropped(sampled, truncated_trajectories="mask")
    [kept], counts = GroupSelection(truncated_trajectories="mask").select([sampled])
    assert len(kept.episodes) == 1
    assert counted(counts) == {"groups_zero_variance": 1, "trajectories_truncated_masked": 1}


@pytest.mark.parametrize("policy", ["keep", "drop", "resample"])
def test_a_group_that_masking_empties_is_always_left_out(policy: Any) -> None:
    selection = GroupSelection(zero_variance_groups=policy, truncated_trajectories="mask")
    kept, counts = selection.select([group(played(1.0, truncated=True), played(0.0, truncated=True))])
    assert kept == []
    assert counted(counts) == {
        "groups_zero_variance": 1,
        "groups_dropped": 1,
        "trajectories_truncated_masked": 2,
    }


@pytest.mark.parametrize("truncated_return", [0.0, -0.3, 2])
def test_a_truncated_trajectory_that_counts_as_failed_earns_exactly_the_return_set(truncated_return: float) -> None:
    cut, whole = played(0.1, 0.2, 0.7, truncated=True), played(0.1, 0.2)
    selection = GroupSelection(truncated_trajectories="fail", truncated_return=truncated_return)
    [kept], counts = selection.select([group(cut, whole)])
    assert kept.episodes == [cut, whole]
    assert turn_rewards(cut).tolist() == [0.0, 0.0, truncated_return]
    assert turn_rewards(cut).sum() == truncated_return
    assert list(cut.get_rewards()) == [0.1, 0.2, 0.7], "what the environment said must stay readable"
    assert turn_rewards(whole).tolist() == [0.1, 0.2]
    assert counted(counts) == {"trajectories_truncated_failed": 1}


def test_variance_is_that_of_the_rewards_learned_from() -> None:
    assert not is_dropped(group(played(1.0), played(1.0, truncated=True)), truncated_trajectories="fail")
    assert is_dropped(
        group(played(0.2, truncated=True), played(0.9, truncated=True)),
        truncated_trajectories="fail",
        truncated_return=-1.0,
    )


def test_what_counts_as_failed_has_not_succeeded_whatever_its_environment_says() -> None:
    sampled = group(played(1.0, success=True), played(1.0, truncated=True, success=True))
    assert is_dropped(sampled, zero_variance_metric="success")
    assert not is_dropped(sampled, zero_variance_metric="success", truncated_trajectories="fail")


def test_ragged_groups_count_every_member_once_in_every_denominator() -> None:
    lengths = {"a": 3, "b": 2, "c": 1}
    sampled = [
        group(*(played(*[float(i)] * (i + 1)) for i in range(size)), name=name) for name, size in lengths.items()
    ]
    kept, _ = GroupSelection().select(sampled)
    data = GroupTrainingData.from_groups(kept, num_minibatches=3, seed=0)
    counts = {tuple(p.group_ids): (p.num_trajectories, p.num_turns, p.num_sampled_tokens) for p in data.minibatches}
    # Member i plays i + 1 turns: groups of 3, 2 and 1 members play 6, 3 and 1.
    assert counts == {("a",): (3, 6, 24), ("b",): (2, 3, 12), ("c",): (1, 1, 4)}
    shards = [group_episodes(shard.episodes) for shard, _ in data.shard(2)]
    assert sorted((g.group_id, len(g.episodes)) for shard in shards for g in shard) == sorted(lengths.items())


@settings(max_examples=50)
@given(
    outcomes=st.lists(st.lists(st.tuples(st.sampled_from([0.0, 0.5]), st.booleans()), min_size=1, max_size=4)),
    zero_variance=st.sampled_from(["keep", "drop", "resample"]),
    truncated=st.sampled_from(["keep", "mask", "fail"]),
)
def test_every_group_is_kept_in_order_or_counted_as_dropped(
    outcomes: list[list[tuple[float, bool]]], zero_variance: Any, truncated: Any
) -> None:
    sampled = [
        group(*(played(reward, truncated=cut) for reward, cut in members), name=str(number))
        for number, members in enumerate(outcomes)
    ]
    selection = GroupSelection(zero_variance_groups=zero_variance, truncated_trajectories=truncated)
    kept, counts = selection.select(sampled)
    numbers = [int(g.group_id) for g in kept]
    assert numbers == sorted(set(numbers))
    assert len(kept) + counts["num_groups_dropped"] == len(sampled)
    for g in kept:
        assert g.episodes
        if truncated == "mask":
            assert not any(TRUNCATED_BY in e.custom_data for e in g.episodes)
        if zero_variance != "keep":
            rewards = [turn_rewards(e)[-1] for e in g.episodes]
            assert min(rewards) < max(rewards)


@pytest.mark.parametrize(
    ("knobs", "remedy"),
    [
        ({"zero_variance_groups": "dropp"}, "Did you mean 'drop'"),
        ({"zero_variance_metric": "reward"}, "return"),
        ({"truncated_trajectories": True}, "Allowed: fail, keep, mask"),
        ({"truncated_return": float("nan")}, "finite"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_allowed_ones(knobs: dict[str, Any], remedy: str) -> None:
    with pytest.raises(SettingError, match=remedy):
        GroupSelection(**knobs)


class Source:
    """Draws groups whose two members differ only where ``informative`` says so; reports every draw's size."""

    def __init__(self, informative: Sequence[bool], fail_from_draw: int | None = None) -> None:
        self.informative = informative
        self.fail_from_draw = fail_from_draw
        self.draws: list[int] = []
        self.next = 0

    def __call__(self, count: int) -> tuple[list[TrajectoryGroup], list[str]]:
        self.draws.append(count)
        if self.fail_from_draw is not None and len(self.draws) > self.fail_from_draw:
            raise NoProgressError("none of the groups could be completed")
        numbers = range(self.next, self.next + count)
        self.next += count
        groups = [group(played(1.0), played(float(not self.informative[n])), name=str(n)) for n in numbers]
        return groups, [f"draw of {count}"]


def resample(source: Source, wanted: int, budget: int) -> tuple[list[str], list[str], dict[str, int]]:
    select = GroupSelection(zero_variance_groups="resample").select
    kept, reports, counts = sample_until_informative(source, select, wanted=wanted, budget=budget)
    return [g.group_id for g in kept], reports, counted(counts)


def test_groups_without_variance_are_replaced_by_exactly_as_many_others() -> None:
    source = Source([True, False, True, False, False, True, True])
    kept, reports, counts = resample(source, wanted=4, budget=100)
    assert kept == ["0", "2", "5", "6"]
    assert source.draws == [4, 2, 1]
    assert reports == ["draw of 4", "draw of 2", "draw of 1"]
    assert counts == {"groups_zero_variance": 3, "groups_dropped": 3, "groups_resampled": 3}


def test_resampling_stops_at_its_budget() -> None:
    source = Source([False] * 50)
    kept, _, counts = resample(source, wanted=4, budget=6)
    assert kept == []
    assert source.draws == [4, 4, 2]
    assert counts == {"groups_zero_variance": 10, "groups_dropped": 10, "groups_resampled": 6}


def test_enough_informative_groups_cost_no_second_draw() -> None:
    source = Source([True] * 4)
    assert resample(source, wanted=4, budget=6) == (["0", "1", "2", "3"], ["draw of 4"], {})


def test_without_a_budget_there_is_one_draw() -> None:
    source = Source([True, False])
    kept, _, counts = resample(source, wanted=2, budget=0)
    assert (kept, source.draws) == (["0"], [2])
    assert counts == {"groups_zero_variance": 1, "groups_dropped": 1}


def test_groups_that_were_given_up_are_asked_for_again_within_the_budget() -> None:
    asked: list[int] = []

    def loses_one(count: int) -> tuple[list[TrajectoryGroup], list[None]]:
        asked.append(count)
        return [group(*make_group(f"{len(asked)}/{n}", 2), name=f"{len(asked)}/{n}") for n in range(count - 1)], []

    kept, _, counts = sample_until_informative(loses_one, GroupSelection().select, wanted=4, budget=3)
    assert asked == [4, 1, 1, 1]
    assert len(kept) == 3
    assert counts["num_groups_resampled"] == 3


def test_an_environment_that_fails_while_resampling_does_not_cost_what_was_kept() -> None:
    source = Source([True, False, False, True], fail_from_draw=1)
    kept, _, counts = resample(source, wanted=2, budget=100)
    assert (kept, source.draws) == (["0"], [2, 1])
    assert counts == {"groups_zero_variance": 1, "groups_dropped": 1, "groups_resampled": 1}


def test_an_environment_that_fails_from_the_start_is_an_error() -> None:
    with pytest.raises(NoProgressError):
        resample(Source([], fail_from_draw=0), wanted=2, budget=100)


def test_groups_that_only_shaping_tells_apart_are_noticed() -> None:
    shaped = group(played(0.1, success=False), played(0.3, truncated=True), name="shaped")
    real = group(played(0.0, success=False), played(1.0, success=True), name="real")
    silent = group(played(0.1), played(0.3), name="silent")
    by_return = GroupSelection(zero_variance_groups="drop")
    assert by_return.filters_on_shaping([real, shaped])
    assert not by_return.filters_on_shaping([real, silent])
    assert not GroupSelection().filters_on_shaping([shaped])
    assert not GroupSelection(zero_variance_groups="drop", zero_variance_metric="success").filters_on_shaping([shaped])

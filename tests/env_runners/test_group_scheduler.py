"""The group scheduler: complete groups or none, whatever fails in whatever order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gspo_rllib.env_runners.group_scheduler import (
    HOPELESS_GROUPS,
    MAX_LOST_PROCESSES,
    MAX_REPLACEMENTS,
    Assignment,
    GroupScheduler,
)
from gspo_rllib.env_runners.task_order import TaskOrder
from gspo_rllib.errors import SettingError


def scheduler(group_ids: list[str], **changes: object) -> GroupScheduler[Assignment]:
    return GroupScheduler(group_ids, **({"group_size": 3, "run_seed": 0, "role": "train"} | changes))


def drain(groups: GroupScheduler[Assignment]) -> list[Assignment]:
    """Finishes everything that is handed out, each with itself as its trajectory."""
    played = []
    while (assignment := groups.next_assignment()) is not None:
        groups.finish(assignment, assignment)
        played.append(assignment)
    return played


def test_members_of_a_group_share_one_task_and_are_handed_out_together() -> None:
    groups = scheduler(["a", "b"])
    played = drain(groups)
    assert [(a.group_id, a.index, a.attempt, a.replacement) for a in played] == [
        (group, index, 0, 0) for group in "ab" for index in range(3)
    ]
    assert len({a.task_seed for a in played[:3]}) == 1
    assert played[0].task_seed != played[3].task_seed
    assert groups.is_settled


def test_complete_groups_come_in_the_order_asked_for_whatever_finished_first() -> None:
    groups = scheduler(["b", "a"])
    handed = [groups.next_assignment() for _ in range(6)]
    for assignment in reversed(handed):
        assert assignment is not None
        groups.finish(assignment, assignment)
    assert [(name, [a.index for a in members]) for name, members in groups.take_settled().complete] == [
        ("b", [0, 1, 2]),
        ("a", [0, 1, 2]),
    ]


def test_an_incomplete_group_is_not_yielded() -> None:
    groups = scheduler(["a"])
    for _ in range(2):
        assignment = groups.next_assignment()
        assert assignment is not None
        groups.finish(assignment, assignment)
    assert not groups.has_settled
    assert groups.take_settled().complete == []
    assert not groups.is_settled


def test_a_failed_trajectory_is_retried_first_with_its_own_task() -> None:
    groups = scheduler(["a", "b"])
    first = groups.next_assignment()
    assert first is not None
    assert groups.fail(first) == []
    again = groups.next_assignment()
    assert again == Assignment("a", 0, 1, 0, first.task_seed)
    assert groups.take_settled().num_retries == 1


def test_a_trajectory_whose_process_ended_is_played_again_with_its_seeds_at_no_cost() -> None:
    groups = scheduler(["a"], trajectory_retries=0)
    first = groups.next_assignment()
    assert first is not None
    for _ in range(MAX_LOST_PROCESSES):
        assert groups.fail(first, lost_process=True) == []
        again = groups.next_assignment()
        assert again == first
    # A process that ends every time is the environment's doing.
    groups.fail(first, lost_process=True)
    replaced = groups.next_assignment()
    assert replaced is not None
    assert replaced.replacement == 1


def test_a_spent_retry_replaces_the_whole_group_and_cancels_its_running_members() -> None:
    groups = scheduler(["a"])
    first, second = groups.next_assignment(), groups.next_assignment()
    assert first is not None
    assert second is not None
    groups.finish(second, second)
    third = groups.next_assignment()
    groups.fail(first)
    again = groups.next_assignment()
    assert again is not None
    assert groups.fail(again) == [third]
    played = drain(groups)
    assert [(a.index, a.attempt, a.replacement) for a in played] == [(0, 0, 1), (1, 0, 1), (2, 0, 1)]
    assert played[0].task_seed != first.task_seed
    settled = groups.take_settled()
    assert [members for _, members in settled.complete] == [played]
    assert settled.num_replaced == 1


def test_a_task_that_cannot_be_played_is_not_retried() -> None:
    groups = scheduler(["a"])
    first = groups.next_assignment()
    assert first is not None
    groups.fail(first, retry=False)
    replacement = groups.next_assignment()
    assert replacement is not None
    assert (replacement.attempt, replacement.replacement) == (0, 1)
    assert groups.take_settled().num_retries == 0


def test_a_group_that_keeps_failing_is_given_up_after_its_replacements() -> None:
    groups = scheduler(["a", "b"], trajectory_retries=0)
    tasks = []
    while (assignment := groups.next_assignment()) is not None:
        if assignment.group_id == "b":
            groups.finish(assignment, assignment)
            continue
        tasks.append(assignment.task_seed)
        groups.fail(assignment)
    assert len(set(tasks)) == len(tasks) == MAX_REPLACEMENTS + 1
    settled = groups.take_settled()
    assert settled.given_up == ["a"]
    assert [name for name, _ in settled.complete] == ["b"]


def test_when_nothing_ever_finishes_the_remaining_groups_are_not_tried() -> None:
    groups = scheduler([str(n) for n in range(50)], trajectory_retries=0)
    failures = 0
    while (assignment := groups.next_assignment()) is not None:
        groups.fail(assignment)
        failures += 1
    assert failures == HOPELESS_GROUPS * (MAX_REPLACEMENTS + 1)
    assert len(groups.take_settled().given_up) == 50
    assert groups.is_settled


def test_no_other_task_takes_the_place_of_one_that_is_evaluated() -> None:
    order = TaskOrder(20, run_seed=0, shuffled=False)
    names = [f"evaluation/{n}" for n in range(20)]
    groups = scheduler(names, group_size=1, role="evaluation", trajectory_retries=0, tasks=order)
    while (assignment := groups.next_assignment()) is not None:
        if assignment.task_id in ("0", "1", "2", "7"):  # the first three, too, say nothing about all
            groups.fail(assignment)
        else:
            groups.finish(assignment, assignment)
    settled = groups.take_settled()
    assert [a.task_id for _, (a,) in settled.complete] == [str(n) for n in range(20) if n not in (0, 1, 2, 7)]
    assert (settled.given_up, settled.num_replaced) == ([names[n] for n in (0, 1, 2, 7)], 0)


def test_a_ragged_group_goes_on_without_its_lost_member_and_keeps_the_indices() -> None:
    groups = scheduler(["a"], ragged_groups=True)
    handed = [groups.next_assignment() for _ in range(3)]
    first, second, third = (a for a in handed if a is not None)
    groups.finish(third, third)
    assert groups.fail(second) == []
    again = groups.next_assignment()
    assert again == Assignment("a", 1, 1, 0, first.task_seed), "a member is retried before it is lost"
    assert groups.fail(again) == []
    assert not groups.has_settled, "a member is still running"
    groups.finish(first, first)
    settled = groups.take_settled()
    assert settled.complete == [("a", [first, third])]
    assert groups.is_settled
    assert (settled.num_ragged, settled.num_replaced, settled.num_retries) == (1, 0, 1)


def test_a_ragged_group_of_which_two_cannot_finish_is_replaced() -> None:
    groups = scheduler(["a"], ragged_groups=True, trajectory_retries=0)
    handed = [groups.next_assignment() for _ in range(3)]
    first, second, third = (a for a in handed if a is not None)
    assert groups.fail(first) == []
    assert groups.fail(third) == [second]
    played = drain(groups)
    assert [(a.index, a.replacement) for a in played] == [(0, 1), (1, 1), (2, 1)]
    settled = groups.take_settled()
    assert settled.complete == [("a", played)]
    assert (settled.num_ragged, settled.num_replaced) == (0, 1)


@pytest.mark.parametrize("group_size", [1, 2])
def test_no_group_gets_smaller_than_what_can_be_compared(group_size: int) -> None:
    groups = scheduler(["a"], group_size=group_size, ragged_groups=True, trajectory_retries=0)
    first = groups.next_assignment()
    assert first is not None
    groups.fail(first)
    drain(groups)
    [(_, members)] = groups.take_settled().complete
    assert [(a.index, a.replacement) for a in members] == [(index, 1) for index in range(group_size)]


def test_a_task_that_cannot_be_played_replaces_a_ragged_group_too() -> None:
    groups = scheduler(["a"], group_size=5, ragged_groups=True)
    first, second = groups.next_assignment(), groups.next_assignment()
    assert first is not None
    assert groups.fail(first, retry=False) == [second]
    drain(groups)
    settled = groups.take_settled()
    assert [len(members) for _, members in settled.complete] == [5]
    assert (settled.num_ragged, settled.num_replaced) == (0, 1)


def test_ragged_groups_that_never_finish_are_given_up() -> None:
    groups = scheduler([str(n) for n in range(50)], ragged_groups=True)
    failures = 0
    while (assignment := groups.next_assignment()) is not None:
        groups.fail(assignment)
        failures += 1
    # Per task two members fail for good, each after one retry; the third is then not even started.
    assert failures == HOPELESS_GROUPS * (MAX_REPLACEMENTS + 1) * 2 * 2
    settled = groups.take_settled()
    assert len(settled.given_up) == 50
    assert settled.complete == []
    assert groups.is_settled


def test_ragged_groups_that_never_fail_are_played_as_any_other() -> None:
    assert drain(scheduler(["a", "b"], ragged_groups=True)) == drain(scheduler(["a", "b"]))


def test_training_and_evaluation_and_runs_have_different_tasks() -> None:
    def task(**changes: object) -> int:
        assignment = scheduler(["a"], **changes).next_assignment()
        assert assignment is not None
        return assignment.task_seed

    seeds = {task(), task(role="evaluation"), task(run_seed=1)}
    assert len(seeds) == 3
    assert task() in seeds


def test_a_group_asked_for_twice_is_refused() -> None:
    with pytest.raises(SettingError, match="once"):
        scheduler(["a", "a"])


def test_groups_may_be_added_while_others_are_played_and_settled_ones_are_forgotten() -> None:
    groups = scheduler(["c", "b"], group_size=1)
    first = groups.next_assignment()
    assert first is not None
    groups.add_groups(["a"])
    with pytest.raises(SettingError, match="once"):
        groups.add_groups(["b"])
    groups.finish(first, first)
    assert [name for name, _ in groups.take_settled().complete] == ["c"]
    assert not groups.has_settled
    second, third = drain(groups)
    assert (second.group_id, third.group_id) == ("b", "a")
    settled = groups.take_settled()
    assert [name for name, _ in settled.complete] == ["b", "a"]
    assert groups.is_settled
    groups.add_groups(["c"])
    [again] = drain(groups)
    assert again == first, "what a group is asked for does not depend on when"


def test_counts_cover_what_happened_since_the_last_hand_over() -> None:
    groups = scheduler(["a", "b"], group_size=1)
    for expected in ("a", "b"):
        first = groups.next_assignment()
        assert first is not None
        groups.fail(first)
        again = groups.next_assignment()
        assert again is not None
        groups.finish(again, again)
        settled = groups.take_settled()
        assert [name for name, _ in settled.complete] == [expected]
        assert (settled.num_retries, settled.num_replaced, settled.given_up) == (1, 0, [])


@settings(max_examples=200)
@given(
    num_groups=st.integers(1, 6),
    group_size=st.integers(1, 4),
    slots=st.integers(1, 30),
    retries=st.integers(0, 2),
    fail_percent=st.integers(0, 60),
    ragged=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_every_group_is_complete_or_given_up_in_any_order_of_events(
    num_groups: int, group_size: int, slots: int, retries: int, fail_percent: int, ragged: bool, order: random.Random
) -> None:
    names = [str(n) for n in range(num_groups)]
    groups = scheduler(names, group_size=group_size, trajectory_retries=retries, ragged_groups=ragged)
    running: list[Assignment] = []
    lost: set[tuple[str, int, int]] = set()
    while True:
        while len(running) < slots and (assignment := groups.next_assignment()) is not None:
            assert assignment not in running
            running.append(assignment)
        if not running:
            break
        assignment = running.pop(order.randrange(len(running)))
        if order.randrange(100) < fail_percent:
            for cancelled in groups.fail(assignment, retry=order.random() < 0.9):
                running.remove(cancelled)
            if assignment.attempt == retries:
                lost.add((assignment.group_id, assignment.replacement, assignment.index))
        else:
            groups.finish(assignment, assignment)
    assert groups.is_settled
    settled = groups.take_settled()
    complete = dict(settled.complete)
    assert sorted([*complete, *settled.given_up]) == names
    for name, members in complete.items():
        assert {a.group_id for a in members} == {name}
        [(replacement, _)] = {(a.replacement, a.task_seed) for a in members}
        expected = [i for i in range(group_size) if not (ragged and (name, replacement, i) in lost)]
        assert [a.index for a in members] == expected
        assert len(members) >= min(2, group_size)
    assert settled.num_ragged == sum(len(members) < group_size for members in complete.values())

"""Which trajectory to play next, and what becomes of one that failed.

A group is K trajectories of one task and is used whole or not at all. A failed trajectory is retried with the same
task; when its retries are spent, the whole group is discarded and replaced by another task, because dropping only the
failed member would bias the baseline of the others (an evaluation of counted tasks does without it). With
``ragged_groups`` the failed member is dropped all the same, as long as two remain to be compared: cheaper where
trajectories are long, and harmless where failures are accidents.

Everything random is a function of names, never of a process's random state: a task seed of (run seed, role, group,
replacement), as is the task where the environment counts its tasks (see ``task_order``), and a sampling seed of (run
seed, group, replacement, index, attempt, turn). So what is sampled depends neither on how many runners share the
groups, nor on how many trajectories each of them plays at a time.

This module imports neither torch, ray nor gymnasium.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

from gspo_rllib.env_runners.task_order import TaskOrder
from gspo_rllib.errors import SettingError
from gspo_rllib.seeds import derive_seed

Role = Literal["train", "evaluation"]
Trajectory = TypeVar("Trajectory")

MAX_REPLACEMENTS = 3
"""New tasks tried for one group before it is given up. An environment that fails for one task in ten then loses one
group in ten thousand, and one that always fails is reported after 4 tasks, not after hours of time-outs."""

MAX_LOST_PROCESSES = 3
"""Times a trajectory is played again, as if nothing had happened, because its environment's process ended. One that
ends every time is found out by the fourth."""

HOPELESS_GROUPS = 3
"""Groups given up with all their replacements, before any trajectory finished, after which the remaining ones are not
even tried; of groups that are not replaced, as many as tasks would have been tried."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One trajectory to play.

    Attributes:
        group_id: The group that the trajectory belongs to.
        index: Position of the trajectory in the group, 0 … K-1.
        attempt: 0 for the first try, 1 for the first retry, …
        replacement: 0 for the group's first task, 1 after the group was once replaced, …
        task_seed: 31-bit seed for ``reset``; the same for every member and attempt of one replacement.
        task_id: The task to ask ``reset`` for, the same for them, too; None where the seed alone picks it.
    """

    group_id: str
    index: int
    attempt: int
    replacement: int
    task_seed: int
    task_id: str | None = None

    @property
    def name(self) -> str:
        """Unique among all assignments of a run."""
        return f"{self.group_id}/{self.replacement}/{self.index}/{self.attempt}"

    def sampling_seed(self, run_seed: int, turn: int) -> int:
        """63-bit seed for the tokens of one turn."""
        return derive_seed(run_seed, self.group_id, self.replacement, self.index, self.attempt, turn, bits=63)


@dataclass(frozen=True, slots=True)
class Settled(Generic[Trajectory]):
    """Groups that were completed or given up since the last call of ``take_settled``, and what that took.

    Attributes:
        complete: Complete groups in the order they were asked for, members in order of their index. A ragged group has
            fewer than K members; each keeps the index it was played with.
        given_up: Ids of the groups that will not be completed, in the order they were given up.
        num_retries: Trajectories started again with the same task, in any group, settled or not.
        num_replaced: Times a group was discarded for a new task, in any group, settled or not.
        num_ragged: Groups in ``complete`` that lack a member.
    """

    complete: list[tuple[str, list[Trajectory]]]
    given_up: list[str]
    num_retries: int
    num_replaced: int
    num_ragged: int


@dataclass(slots=True)
class _Group(Generic[Trajectory]):
    group_id: str
    number: int
    replacement: int = 0
    finished: dict[int, Trajectory] = field(default_factory=dict)
    running: dict[int, Assignment] = field(default_factory=dict)
    num_lost: int = 0
    lost_processes: Counter[Assignment] = field(default_factory=Counter)

    def is_complete(self, group_size: int) -> bool:
        return bool(self.finished) and len(self.finished) + self.num_lost == group_size


class GroupScheduler(Generic[Trajectory]):
    """Hands out trajectories group by group, takes them back, and yields complete groups.

    It knows a group from when it is added until it is settled (complete or given up) and taken, and may be given more
    groups at any time.

    Args:
        group_ids: The first groups to complete, each once; ``add_groups`` adds more.
        group_size: K, trajectories per group, >= 1.
        run_seed: Root of every seed.
        role: Keeps training and evaluation tasks apart.
        trajectory_retries: How often one trajectory is tried again with the same task, >= 0.
        max_replacements: How many new tasks a group may be given, >= 0; none in an evaluation of tasks that are
            counted, whose score is that of these tasks.
        ragged_groups: Give up a member whose retries are spent alone, and complete its group with the members that
            finished, at least 2 of them; False discards the whole group for a new task.
        tasks: Which of the environment's countable tasks each group plays; None leaves the choice to the seed.

    Raises:
        SettingError: A group id is given twice.
    """

    def __init__(
        self,
        group_ids: Iterable[str],
        *,
        group_size: int,
        run_seed: int,
        role: Role,
        trajectory_retries: int = 1,
        max_replacements: int = MAX_REPLACEMENTS,
        ragged_groups: bool = False,
        tasks: TaskOrder | None = None,
    ) -> None:
        self._group_size = group_size
        self._run_seed = run_seed
        self._role = role
        self._retries = trajectory_retries
        self._max_replacements = 0 if role == "evaluation" and tasks is not None else max_replacements
        self._ragged_groups = ragged_groups
        self._tasks = tasks
        self._groups: dict[str, _Group[Trajectory]] = {}
        self._pending: deque[Assignment] = deque()
        self._num_added = 0
        self._any_finished = False
        self._num_given_up = 0
        self._complete: list[_Group[Trajectory]] = []
        self._given_up: list[str] = []
        self._num_retries = self._num_replaced = 0
        self.add_groups(group_ids)

    def add_groups(self, group_ids: Iterable[str]) -> None:
        """Adds groups to complete, after those that are there.

        Raises:
            SettingError: A group id is given twice, or is not settled yet.
        """
        ids = list(group_ids)
        if len(set(ids)) != len(ids) or self._groups.keys() & ids:
            raise SettingError(f"group_ids: every group may be asked for once, got {ids}.")
        for group_id in ids:
            group = self._groups[group_id] = _Group(group_id, self._num_added)
            self._num_added += 1
            self._pending.extend(self._members(group))

    def next_assignment(self) -> Assignment | None:
        """The next trajectory to start; None when every one is running or settled."""
        if not self._pending:
            return None
        assignment = self._pending.popleft()
        self._groups[assignment.group_id].running[assignment.index] = assignment
        return assignment

    def finish(self, assignment: Assignment, trajectory: Trajectory) -> None:
        """Takes a finished trajectory back."""
        group = self._take_back(assignment)
        group.finished[assignment.index] = trajectory
        self._any_finished = True
        self._settle_if_complete(group)

    def fail(self, assignment: Assignment, *, retry: bool = True, lost_process: bool = False) -> list[Assignment]:
        """Takes a failed trajectory back, to be retried, left out, replaced with its group, or given up with it.

        Args:
            assignment: The trajectory that failed.
            retry: False when the same task can only fail again; its group is then replaced, ragged groups or not.
            lost_process: Whether it failed because a process ended. It is then played again with the same seeds, which
                is none of its retries, unless that has happened ``MAX_LOST_PROCESSES`` times.

        Returns:
            Running trajectories whose group was just discarded: the caller stops playing them and forgets them.
        """
        group = self._take_back(assignment)
        if lost_process and group.lost_processes[assignment] < MAX_LOST_PROCESSES:
            group.lost_processes[assignment] += 1
            self._num_retries += 1
            self._pending.appendleft(assignment)
            return []
        if retry and assignment.attempt < self._retries:
            self._num_retries += 1
            self._pending.appendleft(replace(assignment, attempt=assignment.attempt + 1))
            return []
        if retry and self._can_lose_one(group):
            group.num_lost += 1
            self._settle_if_complete(group)
            return []
        cancelled = self._discard(group)
        if group.replacement < self._max_replacements:
            self._num_replaced += 1
            group.replacement += 1
            self._pending.extendleft(reversed(self._members(group)))
            return cancelled
        self._give_up(group)
        tried = self._num_given_up * (1 + self._max_replacements)
        if not self._any_finished and tried >= HOPELESS_GROUPS * (1 + MAX_REPLACEMENTS):
            for other in list(self._groups.values()):
                cancelled += self._discard(other)
                self._give_up(other)
        return cancelled

    @property
    def is_settled(self) -> bool:
        """Whether every group is complete or given up."""
        return not self._groups

    @property
    def has_settled(self) -> bool:
        """Whether a group was completed or given up since ``take_settled``."""
        return bool(self._complete or self._given_up)

    def take_settled(self) -> Settled[Trajectory]:
        """Hands over what was completed and given up since the last call, and forgets it."""
        groups, self._complete = sorted(self._complete, key=lambda group: group.number), []
        settled = Settled(
            [(group.group_id, [group.finished[index] for index in sorted(group.finished)]) for group in groups],
            self._given_up,
            self._num_retries,
            self._num_replaced,
            sum(bool(group.num_lost) for group in groups),
        )
        self._given_up, self._num_retries, self._num_replaced = [], 0, 0
        return settled

    def _members(self, group: _Group[Trajectory]) -> list[Assignment]:
        seed = derive_seed(self._run_seed, self._role, group.group_id, group.replacement, bits=31)
        task_id = None if self._tasks is None else self._tasks.task(group.group_id, group.replacement)
        return [
            Assignment(group.group_id, index, 0, group.replacement, seed, task_id) for index in range(self._group_size)
        ]

    def _can_lose_one(self, group: _Group[Trajectory]) -> bool:
        # One trajectory has nothing to be compared with, unless groups of one are what was asked for.
        still_possible = self._group_size - group.num_lost - 1
        return self._ragged_groups and still_possible >= min(2, self._group_size)

    def _take_back(self, assignment: Assignment) -> _Group[Trajectory]:
        group = self._groups[assignment.group_id]
        taken = group.running.pop(assignment.index, None)
        assert taken == assignment, f"{assignment} was not handed out, or was cancelled"
        return group

    def _discard(self, group: _Group[Trajectory]) -> list[Assignment]:
        cancelled = list(group.running.values())
        group.running.clear()
        group.finished.clear()
        group.num_lost = 0
        self._pending = deque(a for a in self._pending if a.group_id != group.group_id)
        return cancelled

    def _give_up(self, group: _Group[Trajectory]) -> None:
        del self._groups[group.group_id]
        self._num_given_up += 1
        self._given_up.append(group.group_id)

    def _settle_if_complete(self, group: _Group[Trajectory]) -> None:
        if group.is_complete(self._group_size):
            self._complete.append(self._groups.pop(group.group_id))

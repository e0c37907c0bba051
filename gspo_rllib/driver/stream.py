"""Sampling goes on while the learners train: groups are dispatched to env runners, and finished ones are taken.

A version is the learners' count of updates, and a group is stale when more than η of them lie between its oldest token
and its training. Every iteration takes G groups, and at most (η + 1) · G are ever drawn and not yet taken, so none need
become stale. An iteration takes finished groups, oldest first, and keeps as many of its G places free as older groups
that are still being sampled need to be trained in time. It waits for those, so that long trajectories are trained as
surely as short ones. A group that is stale all the same (after a failure) is dropped and counted; one that an update on
other groups has made stale is sampled again.
"""

from __future__ import annotations

import contextlib
import enum
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from gspo_rllib import metrics as names
from gspo_rllib.driver.admission import Admission
from gspo_rllib.driver.fleet import LOCAL, Fleet
from gspo_rllib.driver.lockstep import no_progress_message
from gspo_rllib.driver.saved_groups import BATCHES, restored_groups, saved_groups
from gspo_rllib.env_runners.group_names import in_order
from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.errors import NoProgressError
from gspo_rllib.runner_calls import RunnerCall, returned
from gspo_rllib.types import TrajectoryGroup, turns
from gspo_rllib.weight_sync import Weights

POLL_S = 0.2
"""Longest a runner waits for a group to finish before it answers; it takes no other call meanwhile."""


class GroupState(enum.Enum):
    """Where a group is between being drawn and being taken."""

    DRAWN = "nobody samples it: it was not dispatched yet, or its runner died"
    IN_FLIGHT = "a runner samples it"
    FINISHED = "its trajectories are here"
    GIVEN_UP = "it cannot be completed"


@dataclass(slots=True, eq=False)
class _Group:
    """A group that was drawn and not yet taken.

    Attributes:
        group_id: Name of the group.
        version: The oldest weights version among its tokens; until it is finished, the oldest there can be.
        state: How far the group has come.
        worker: RLlib's number of the runner that samples or sampled it; None before it is dispatched.
        trajectories: What was sampled; None until it is finished.
        overtaken: Whether there was an update on groups from elsewhere since it was drawn.
    """

    group_id: str
    version: int
    state: GroupState = GroupState.DRAWN
    worker: int | None = None
    trajectories: TrajectoryGroup | None = None
    overtaken: bool = False

    def is_in_flight_on(self, worker: int) -> bool:
        return self.state is GroupState.IN_FLIGHT and self.worker == worker

    def finish(self, trajectories: TrajectoryGroup) -> None:
        self.state, self.trajectories = GroupState.FINISHED, trajectories
        self.version = min(turn.policy_version for episode in trajectories.episodes for turn in turns(episode))

    def lose_runner(self) -> None:
        """It is sampled again, by whoever, as often as that takes: it is not its fault."""
        self.state = GroupState.DRAWN


class GroupStream:
    """A ``GroupSource`` whose groups are sampled while the learners train on others.

    Args:
        runners: RLlib's group of ``LanguageEnvRunner``: remote ones, or the one in this process.
        groups_per_iteration: G, groups an update takes.
        max_staleness: η, versions between a group's oldest token and the learners when it is trained.
        draw: Number of groups -> names of that many groups to sample next.
    """

    def __init__(
        self,
        runners: EnvRunnerGroup,
        *,
        groups_per_iteration: int,
        max_staleness: int,
        draw: Callable[[int], Sequence[str]],
    ) -> None:
        self._runners = Fleet.of(runners)
        self._per_iteration = groups_per_iteration
        self._max_staleness = max_staleness
        self._draw = draw
        self._is_local = self._runners.is_local
        self._groups: dict[str, _Group] = {}
        self._restored: list[TrajectoryGroup] = []
        self._weights: Weights
        self._admission = Admission(self._runners.send)
        self._polls: dict[ray.ObjectRef, int] = {}
        self._errors: list[str] = []
        self._num_stale = 0
        self._waited_s = 0.0

    @property
    def unfinished(self) -> list[str]:
        """See ``GroupSource.unfinished``."""
        return list(self._groups)

    def start(self, weights: Weights) -> None:
        """See ``GroupSource.start``; nothing is sampled before the first ``take``."""
        assert not self._groups, "stop what is in flight before starting again"
        self._weights = weights
        receipts = weights.push(self._runners, force=True)
        self._admission.restart(self._runners.healthy(), {receipt.worker: receipt.process for receipt in receipts})
        for trajectories in self._restored:
            # Where the bound is another now, one that is too old is not dropped, but sampled again.
            group = _Group(trajectories.group_id, weights.version, overtaken=True)
            group.finish(trajectories)
            self._groups[group.group_id] = group
        self._restored = []

    def advance(self, weights: Weights) -> None:
        """See ``GroupSource.advance``: sends the weights and dispatches groups, without waiting for a runner."""
        self._weights = weights
        for worker in self._admission.admitted.difference(self._runners.healthy()):
            # What is offered would not reach it, and it may be back before groups are sent.
            self._lose(worker, f"env runner {worker} was lost")
        weights.offer(self._runners, sorted(self._admission.admitted))
        self._dispatch(self._per_iteration)

    def overtake(self, weights: Weights) -> None:
        """See ``GroupSource.overtake``."""
        for group in self._groups.values():
            group.overtaken = True
        self.advance(weights)

    def take(self, count: int) -> tuple[list[TrajectoryGroup], list[Any]]:
        """See ``GroupSource.take``; none of the groups is older than the bound.

        Raises:
            NoProgressError: ``count`` groups were given up and none finished, or no runner is left.
            EngineError: A runner's engine failed.
            WeightSyncError: The engine of a runner that was restarted samples from another policy.
        """
        started = time.perf_counter()
        taken: list[_Group] = []
        reports: list[Any] = []
        num_given_up = 0
        self._errors = []
        try:
            while (missing := self._missing(count - len(taken), num_given_up)) > 0:
                if chosen := self._choose(missing):
                    taken += chosen
                    continue
                self._dispatch(missing)
                for worker, report in self._collect():
                    reports += [report.metrics] if report.metrics else []
                    self._keep(worker, report)
                num_given_up += self._forget_given_up()
        except BaseException:
            # Interrupted: put back, the chosen groups are there for the next call, or for a checkpoint.
            self._groups = {group.group_id: group for group in taken} | self._groups
            raise
        self._waited_s += time.perf_counter() - started
        if not taken:
            raise NoProgressError(no_progress_message(count, self._runners, self._errors))
        found = {group.group_id: group.trajectories for group in taken if group.trajectories is not None}
        return [found[group_id] for group_id in in_order(found)], reports

    def stop(self) -> list[str]:
        """See ``GroupSource.stop``."""
        self._runners.foreach_env_runner(_stop_sampling, local_env_runner=self._is_local)
        abandoned = self.unfinished
        self._groups.clear()
        self._polls.clear()
        return abandoned

    def get_state(self) -> dict[str, Any]:
        """See ``FixedLag.get_state``: the groups that are finished here, each a batch of its own, and whole."""
        finished = self._in_state(GroupState.FINISHED)
        return {
            BATCHES: [
                {"version": g.version, "group_ids": [g.group_id], "groups": saved_groups([g.trajectories])}
                for g in finished
                if g.trajectories is not None
            ]
        }

    def restore(self, state: Mapping[str, Any]) -> set[str]:
        """See ``FixedLag.restore``: what is saved whole is not sampled again; the names of those groups."""
        self._restored = [group for saved in state.get(BATCHES, []) for group in restored_groups(saved["groups"])]
        return {group.group_id for group in self._restored}

    def readmit(self) -> None:
        """See ``GroupSource.readmit``: runners are sent weights, and admitted, with what is dispatched next."""

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """See ``GroupSource.paused``; every engine has loaded the offered weights by then."""
        self._runners.foreach_env_runner(_pause_sampling, local_env_runner=self._is_local)
        try:
            yield
        finally:
            self._runners.foreach_env_runner(_resume_sampling, local_env_runner=self._is_local)

    def measure(self) -> dict[str, float]:
        """See ``GroupSource.measure``."""
        measured = {
            names.NUM_GROUPS_STALE_DROPPED: self._num_stale,
            names.NUM_GROUPS_IN_FLIGHT: sum(group.state is not GroupState.FINISHED for group in self._groups.values()),
            names.GROUP_WAIT_S: self._waited_s,
        }
        self._num_stale, self._waited_s = 0, 0.0
        return measured

    def _missing(self, places: int, num_given_up: int) -> int:
        """How many groups this iteration still waits for.

        What was given up leaves it with fewer, but takes no place of a group that would be too old later: the next k
        iterations take k · G, and no more.
        """
        left = [group.version + self._max_staleness - self._weights.version for group in self._groups.values()]
        due: int = max(sum(n <= k for n in left) - k * self._per_iteration for k in range(self._max_staleness + 1))
        return max(places - num_given_up, min(due, places))

    def _choose(self, places: int) -> list[_Group]:
        """Takes the finished groups that may have one of this iteration's places, oldest first."""
        waiting = Counter(group.version for group in self._groups.values())
        finished = self._in_state(GroupState.FINISHED)
        chosen: list[_Group] = []
        for group in sorted(finished, key=lambda group: group.version):
            stale = group.version < self._weights.version - self._max_staleness
            if not stale and not self._may_take(group.version, waiting, places - len(chosen)):
                continue
            waiting[group.version] -= 1
            if stale and group.overtaken:
                self._groups[group.group_id] = _Group(group.group_id, self._weights.version)
                continue
            del self._groups[group.group_id]
            if stale:
                self._num_stale += 1
            else:
                chosen.append(group)
        return chosen

    def _may_take(self, version: int, waiting: Counter[int], places: int) -> bool:
        """Whether this iteration can train a group of that version without making an older group stale.

        The next k iterations take k · G groups. So after this iteration at most k · G groups may become stale unless
        they are trained within k iterations.
        """
        time_left = version + self._max_staleness - self._weights.version
        for k in range(time_left):
            due = sum(n for v, n in waiting.items() if v + self._max_staleness <= self._weights.version + k)
            if due - k * self._per_iteration >= places:
                return False
        return places > 0

    def _dispatch(self, missing: int) -> None:
        """Draws as many groups as the bound allows, and sends each one drawn to the runner with the fewest in flight.

        Args:
            missing: Groups that this iteration still has to take.
        """
        room = self._max_staleness * self._per_iteration + missing - len(self._groups)
        for group_id in self._draw(max(room, 0)):
            self._groups[group_id] = _Group(group_id, self._weights.version)
        drawn = self._in_state(GroupState.DRAWN)
        if not drawn:
            return
        workers = self._workers()
        load = Counter(group.worker for group in self._in_state(GroupState.IN_FLIGHT))
        shares: dict[int, list[str]] = defaultdict(list)
        for group in drawn:
            group.worker = min(workers, key=lambda worker: load[worker])
            group.state = GroupState.IN_FLIGHT
            group.version = self._weights.version
            load[group.worker] += 1
            shares[group.worker].append(group.group_id)
        for worker, group_ids in shares.items():
            self._runners.send(worker, _Sample(group_ids))

    def _collect(self) -> list[tuple[int, SampleReport]]:
        """The reports that runners have ready; waits until any one runner has one."""
        if self._is_local:
            runner: Any = self._runners.local_env_runner
            return [(LOCAL, runner.take_finished(POLL_S))]
        sampling = {group.worker for group in self._in_state(GroupState.IN_FLIGHT) if group.worker is not None}
        for worker in sampling.difference(self._polls.values()):
            self._polls[self._runners.send(worker, _poll)] = worker
        admissions = self._admission.pending
        waiting = {**self._polls, **admissions}
        reports = []
        for ref in self._runners.first_ready(waiting):
            if ref in admissions:
                self._admission.settle(ref, self._answer(admissions[ref], ref), self._weights)
                continue
            worker = self._polls.pop(ref)
            answer = self._answer(worker, ref)
            if answer is None:
                continue
            process, report = answer
            if self._admission.processes.get(worker) != process:
                # Ray has restarted it: its unreported samples are lost, and groups sent to it since are sent again too.
                self._runners.send(worker, _stop_sampling)
                self._lose(worker, f"env runner {worker} died and was restarted")
                continue
            reports.append((worker, report))
        return reports

    def _answer(self, worker: int, ref: ray.ObjectRef) -> Any:
        """What a runner answered; None where it died."""
        answer, lost = self._runners.answer(worker, ref)
        if lost is None:
            return returned([answer])[0]
        self._lose(worker, lost)
        return None

    def _keep(self, worker: int, report: SampleReport) -> None:
        self._errors += [message for message in report.errors if message not in self._errors]
        # A runner taken for dead may still answer for a group that was dispatched again: it is not in flight there.
        for finished in report.groups:
            group = self._groups.get(finished.group_id)
            if group is not None and group.is_in_flight_on(worker):
                group.finish(finished)
        for group_id in report.given_up:
            group = self._groups.get(group_id)
            if group is not None and group.is_in_flight_on(worker):
                group.state = GroupState.GIVEN_UP

    def _forget_given_up(self) -> int:
        given_up = self._in_state(GroupState.GIVEN_UP)
        for group in given_up:
            del self._groups[group.group_id]
        return len(given_up)

    def _lose(self, worker: int, message: str) -> None:
        self._admission.expel(worker)
        self._errors.append(message)
        for group in self._groups.values():
            if group.is_in_flight_on(worker):
                group.lose_runner()

    def _in_state(self, state: GroupState) -> list[_Group]:
        return [group for group in self._groups.values() if group.state is state]

    def _workers(self) -> list[int]:
        """Numbers of the runners that groups can be sent to; waits for one to be restarted if there is none.

        Raises:
            NoProgressError: No runner is left, and none is restarted in time.
        """
        while True:
            self._runners.await_one(self._errors)
            healthy = self._runners.healthy()
            if not self._is_local:
                self._admission.ask(healthy, self._weights)
            if workers := [worker for worker in healthy if worker in self._admission.admitted]:
                return workers
            pending = self._admission.pending
            for ref in self._runners.first_ready(pending):
                self._admission.settle(ref, self._answer(pending[ref], ref), self._weights)


@dataclass(frozen=True, slots=True)
class _Sample:
    group_ids: list[str]

    def __call__(self, runner: Any) -> None:
        runner.sample_in_background(self.group_ids)


def _pause_sampling(runner: Any) -> None:
    runner.pause_sampling()


def _resume_sampling(runner: Any) -> None:
    runner.resume_sampling()


def _stop_sampling(runner: Any) -> None:
    runner.stop_sampling()


def _take_finished(runner: Any) -> tuple[int, SampleReport]:
    runner.raise_engine_failure()  # of a call that nobody waits for
    return os.getpid(), runner.take_finished(POLL_S)


_poll = RunnerCall(_take_finished)

"""Sampling while learning, by number: each batch is sampled whole by the policy that is a fixed number of batches old.

Batch t is sampled by the learners' weights before batch t - lag was trained; the first ones by the weights there are at
the start. Which weights that is, and which groups, does not depend on who was fast: a run is a function of its config
and seed, however many runners it has, and whatever becomes of them.

Env runners are asked for a batch as soon as its weights are there, and play it after those they were asked for before.
So a runner that is done goes on with the next batch, while the learners train on an earlier one. The runner in this
process plays a batch when it is taken: the numbers are the same, and nothing overlaps.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics.metrics_logger import MetricsLogger

from gspo_rllib import metrics as names
from gspo_rllib.driver.fleet import LOCAL, Fleet
from gspo_rllib.driver.lockstep import no_progress_message
from gspo_rllib.driver.saved_groups import BATCHES, WHOLE_BATCHES, restored_groups, saved_groups
from gspo_rllib.env_runners.rollout_stats import RolloutStats
from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.errors import NoProgressError, RunnersLostError
from gspo_rllib.runner_calls import RunnerCall, returned
from gspo_rllib.types import TrajectoryGroup
from gspo_rllib.weight_sync import Receipt, Weights

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Batch:
    """The groups of one update.

    Attributes:
        group_ids: Names, in the order they were drawn.
        version: The one of the weights that sample all of them.
        weights: Those weights; None where everything is here already.
        groups: Those that are complete, by name.
        settled: Names of those that are complete or given up.
        reports: The metrics of what was sampled, and the runner's number.
        pending: Answers that are to come, the runners they come from, and the names they are about.
    """

    group_ids: list[str]
    version: int
    weights: Weights | None
    groups: dict[str, TrajectoryGroup] = field(default_factory=dict)
    settled: set[str] = field(default_factory=set)
    reports: list[tuple[int, Any]] = field(default_factory=list)
    pending: dict[ray.ObjectRef, tuple[int, list[str]]] = field(default_factory=dict)

    def settle(self, worker: int, asked: Iterable[str], report: SampleReport) -> None:
        self.groups.update({group.group_id: group for group in report.groups})
        self.settled.update(asked)
        self.reports.append((worker, report.metrics))

    @property
    def missing(self) -> list[str]:
        """Names of those that are still to be sampled, whether somebody does or not."""
        return [group_id for group_id in self.group_ids if group_id not in self.settled]

    @property
    def complete(self) -> list[TrajectoryGroup]:
        """What there is, in the order drawn."""
        return [self.groups[group_id] for group_id in self.group_ids if group_id in self.groups]


class FixedLag:
    """A ``GroupSource`` whose batches are sampled a fixed number of batches ahead of the update they are for.

    Args:
        runners: RLlib's group of ``LanguageEnvRunner``: remote ones, or the one in this process.
        groups_per_iteration: G, groups of a batch.
        lag: How many batches lie between the weights that sample a batch and the update on it, at least 1.
        draw: Number of groups -> names of that many groups to sample next.
    """

    def __init__(
        self,
        runners: EnvRunnerGroup,
        *,
        groups_per_iteration: int,
        lag: int,
        draw: Callable[[int], Sequence[str]],
    ) -> None:
        self._runners = Fleet.of(runners)
        self._per_iteration = groups_per_iteration
        self._lag = lag
        self._draw = draw
        self._batches: deque[_Batch] = deque()
        self._later: deque[list[str]] = deque()
        self._taken: _Batch | None = None
        self._restored: list[Mapping[str, Any]] = []
        self._weights: Weights
        self._errors: list[str] = []
        self._waited_s = 0.0

    @property
    def unfinished(self) -> list[str]:
        """See ``GroupSource.unfinished``."""
        return [i for group_ids in (*(b.group_ids for b in self._batches), *self._later) for i in group_ids]

    def start(self, weights: Weights) -> None:
        """See ``GroupSource.start``; goes on with the batches of ``restore``, if there were any."""
        assert not self._batches, "stop what is in flight before starting again"
        self._weights = weights
        weights.push(self._runners, force=True)
        for saved in self._restored:
            self._batches.append(self._revived(saved))
        self._restored = []
        while len(self._batches) > self._lag + 1:
            # The lag was larger: these are asked for when their turn comes.
            self._later.appendleft(self._batches.pop().group_ids)
        self._sample_too_old_ones_again()

    def take(self, count: int) -> tuple[list[TrajectoryGroup], list[Any]]:
        """See ``GroupSource.take``; the groups of the oldest batch, all of one version.

        Raises:
            NoProgressError: Not a single one could be completed.
            RunnersLostError: No runner is left, and none came back in time; the next call goes on.
        """
        del count  # it is a batch's, always
        self._fill()
        started = time.perf_counter()
        batch = self._batches[0]
        self._complete(batch)
        self._waited_s += time.perf_counter() - started
        self._taken = self._batches.popleft()
        if not batch.groups:
            raise NoProgressError(no_progress_message(len(batch.group_ids), self._runners, self._errors))
        self._errors = []
        # By runner, not by who was first: sums over floats depend on their order.
        return batch.complete, [metrics for _, metrics in sorted(batch.reports, key=lambda report: report[0])]

    def advance(self, weights: Weights) -> None:
        """See ``GroupSource.advance``: asks for the next batch, without waiting for a runner."""
        self._weights = weights
        self._fill()

    def overtake(self, weights: Weights) -> None:
        """See ``GroupSource.overtake``."""
        self._weights = weights
        self._sample_too_old_ones_again()

    def readmit(self) -> None:
        """See ``GroupSource.readmit``."""
        self._weights.push(self._runners)

    def paused(self) -> AbstractContextManager[None]:
        """See ``GroupSource.paused``: a runner answers one call after the other, and loads weights with each."""
        return nullcontext()

    def stop(self) -> list[str]:
        """See ``GroupSource.stop``: what is being played is played to its end, for nobody."""
        abandoned = self.unfinished
        self._batches.clear()
        self._later.clear()
        return abandoned

    def measure(self) -> dict[str, float]:
        """See ``GroupSource.measure``."""
        refs = {ref: len(asked) for batch in self._batches for ref, (_, asked) in batch.pending.items()}
        playing = ray.wait(list(refs), num_returns=len(refs), timeout=0)[1] if refs else []
        waited, self._waited_s = self._waited_s, 0.0
        return {
            names.NUM_GROUPS_STALE_DROPPED: 0,
            names.NUM_GROUPS_IN_FLIGHT: sum(refs[ref] for ref in playing),
            names.GROUP_WAIT_S: waited,
        }

    def get_state(self) -> dict[str, Any]:
        """The batches that were drawn and not taken, as data.

        Those that older weights sample are waited for and saved whole, for a resumed run has no such weights. Of those
        that the present ones sample, the names say all; and of those that nobody is left to sample.

        Raises:
            CheckpointError: A trajectory holds what JSON cannot.
        """
        saved: list[dict[str, Any]] = []
        waits = True
        for batch in self._batches:
            state: dict[str, Any] = {"version": batch.version, "group_ids": batch.group_ids, "groups": None}
            if batch.version != self._weights.version and waits:
                try:
                    self._complete(batch)
                except RunnersLostError:
                    waits = False
            if batch.version != self._weights.version and not batch.missing:
                state["groups"] = saved_groups(batch.complete)
            saved.append(state)
        if not waits:
            logger.warning(
                "a checkpoint holds batches by name that older weights were to sample, since no env runner is left: a "
                "run that is resumed from it samples them with the weights of the checkpoint. No group is lost, but "
                "its numbers are not those of the uninterrupted run."
            )
        return {WHOLE_BATCHES: True, BATCHES: saved}

    def restore(self, state: Mapping[str, Any]) -> set[str]:
        """Has the next ``start`` go on with what ``get_state`` returned.

        Args:
            state: Where it is another schedule's, it is passed over: what was sampled by the clock is in no batch.

        Returns:
            Names of the groups that need not be drawn again.
        """
        self._restored = list(state[BATCHES]) if state.get(WHOLE_BATCHES) else []
        return {group_id for saved in self._restored for group_id in saved["group_ids"]}

    def put_back(self) -> None:
        """The batch that was taken last was not trained: it is the next one again."""
        assert self._taken is not None, "there is one to put back"
        self._batches.appendleft(self._taken)
        self._taken = None

    def _revived(self, saved: Mapping[str, Any]) -> _Batch:
        group_ids, version = list(saved["group_ids"]), int(saved["version"])
        if saved["groups"] is None:
            return self._asked_for(group_ids)
        groups = restored_groups(saved["groups"])
        batch = _Batch(group_ids, version, None)
        measured = MetricsLogger()
        RolloutStats(groups=groups).log(measured)
        batch.settle(LOCAL, group_ids, SampleReport(groups, metrics=measured.reduce()))
        return batch

    def _fill(self) -> None:
        while len(self._batches) <= self._lag:
            group_ids = self._later.popleft() if self._later else list(self._draw(self._per_iteration))
            self._batches.append(self._asked_for(group_ids))

    def _sample_too_old_ones_again(self) -> None:
        """With the present weights: updates on groups from elsewhere, or another lag, may have made them so."""
        for place, batch in enumerate(self._batches):
            # The batch at this place is trained when so many others were.
            if batch.version < self._weights.version + place - self._lag:
                self._batches[place] = self._asked_for(batch.group_ids)

    def _asked_for(self, group_ids: list[str]) -> _Batch:
        """A batch that the present weights sample."""
        batch = _Batch(group_ids, self._weights.version, self._weights)
        if not self._runners.is_local:
            self._send(batch, group_ids)
        return batch

    def _send(self, batch: _Batch, group_ids: Sequence[str]) -> None:
        workers, load = self._runners.healthy(), self._weights_of(batch).loading(here=False)
        for place, worker in enumerate(workers):
            if asked := list(group_ids[place :: len(workers)]):
                ref = self._runners.send(worker, RunnerCall(_playing(load, batch.version, asked)))
                batch.pending[ref] = (worker, asked)

    def _complete(self, batch: _Batch) -> None:
        """Returns once nothing of a batch is missing; asks again for what was lost, as often as that takes."""
        while missing := batch.missing:
            if self._runners.is_local:
                self._weights_of(batch).push(self._runners)
                runner: Any = self._runners.local_env_runner
                self._settle(batch, LOCAL, missing, runner.sample_groups(missing, weights_version=batch.version))
                continue
            waited_for = {group_id for _, asked in batch.pending.values() for group_id in asked}
            if unasked := [group_id for group_id in missing if group_id not in waited_for]:
                self._runners.await_one(self._errors)
                # Proves engines that are new, which older weights than the learners' cannot.
                self.readmit()
                self._send(batch, unasked)
                continue
            for ref in self._runners.first_ready({ref: worker for ref, (worker, _) in batch.pending.items()}):
                worker, asked = batch.pending.pop(ref)
                answer, lost = self._runners.answer(worker, ref)
                if lost is not None:
                    self._errors.append(lost)
                    continue
                receipt, report = returned([answer])[0]
                if receipt.version == batch.version and report is not None:
                    self._settle(batch, worker, asked, report)

    def _weights_of(self, batch: _Batch) -> Weights:
        """Those that sample a batch: the present ones where its own are gone with the machine that they lay on."""
        assert batch.weights is not None, "what needs no weights is here"
        if not batch.weights.restore():
            batch.version, batch.weights = self._weights.version, self._weights
            logger.warning(
                "the machine of the learners is lost, and with it older weights that were to sample %d groups: the "
                "present ones do. No group is lost, but its numbers are not those of the undisturbed run.",
                len(batch.missing),
            )
        return batch.weights

    def _settle(self, batch: _Batch, worker: int, asked: list[str], report: SampleReport) -> None:
        self._errors += [message for message in report.errors if message not in self._errors]
        if report.weights_version == batch.version:
            batch.settle(worker, asked, report)


def _playing(
    load: Callable[[Any], Receipt], version: int, group_ids: list[str]
) -> Callable[[Any], tuple[Receipt, SampleReport | None]]:
    """What an env runner is to do: load the weights and play, unless nobody has seen its engine sample yet."""

    def play(runner: Any) -> tuple[Receipt, SampleReport | None]:
        receipt = load(runner)
        if receipt.version != version or receipt.sample is not None:
            return receipt, None
        return receipt, runner.sample_groups(group_ids, weights_version=version)

    return play

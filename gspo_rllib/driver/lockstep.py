"""Sampling and learning take turns: groups are shared out to env runners, and all of them are waited for.

A runner samples only with the weights version it is asked for. One that Ray restarted unnoticed by RLlib holds another
and returns nothing; it is sent the weights and asked again. Groups of a runner that died go to the others, as often as
that takes: it is not their fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ray.rllib.env.env_runner_group import EnvRunnerGroup

from gspo_rllib.driver.fleet import Fleet
from gspo_rllib.env_runners.group_names import in_order
from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.errors import NoProgressError
from gspo_rllib.runner_calls import RunnerCall, returned
from gspo_rllib.types import TrajectoryGroup
from gspo_rllib.weight_sync import Weights


def _sample_groups(runner: Any, group_ids: list[str], version: int) -> SampleReport:
    report: SampleReport = runner.sample_groups(group_ids, weights_version=version)
    return report


class Lockstep:
    """A ``GroupSource`` that samples when it is asked, and only then.

    Args:
        runners: RLlib's group of ``LanguageEnvRunner``: remote ones, or the one in this process.
        draw: Number of groups -> names of that many groups to sample next.
        weights: What every runner holds already; None where ``start`` comes first.
        play: Called with a runner, names of groups, and the version of the weights to play them with.

    Attributes:
        last_errors: What went wrong while the groups of the last ``take`` were played.
    """

    def __init__(
        self,
        runners: EnvRunnerGroup,
        *,
        draw: Callable[[int], Sequence[str]],
        weights: Weights | None = None,
        play: Callable[[Any, list[str], int], SampleReport] = _sample_groups,
    ) -> None:
        self._runners = Fleet.of(runners)
        self._draw = draw
        self._play = play
        self._open: list[str] = []
        self.last_errors: list[str] = []
        self._weights: Weights
        if weights is not None:
            self._weights = weights

    @property
    def unfinished(self) -> list[str]:
        """See ``GroupSource.unfinished``: between two calls nothing is left, unless the last one was interrupted."""
        return list(self._open)

    def start(self, weights: Weights) -> None:
        """See ``GroupSource.start``."""
        self._weights = weights
        weights.push(self._runners, force=True)

    def advance(self, weights: Weights) -> None:
        """See ``GroupSource.advance``."""
        self.start(weights)

    def overtake(self, weights: Weights) -> None:
        """See ``GroupSource.overtake``: nothing is in flight."""
        self.start(weights)

    def take(self, count: int) -> tuple[list[TrajectoryGroup], list[Any]]:
        """See ``GroupSource.take``: samples in parallel, whatever happens to single runners.

        Interrupted, or without any runner left, it plays the same groups when it is called again.
        """
        self._open = in_order([*self._open, *self._draw(max(0, count - len(self._open)))])
        group_ids = self._open[:count]
        groups: dict[str, TrajectoryGroup] = {}
        metrics: list[Any] = []
        errors: list[str] = []
        pending = group_ids
        while pending:
            answered: set[str] = set()
            for asked, report in self._sample_once(pending, errors):
                errors += [m for m in report.errors if m not in errors]
                metrics.append(report.metrics)
                if report.weights_version == self._weights.version:
                    answered.update(asked)
                    groups.update({group.group_id: group for group in report.groups})
            # What a runner answered without is given up: its environment failed too often, and would again.
            pending = [group_id for group_id in pending if group_id not in answered]
            if pending:
                self._runners.await_one(errors)
                self.readmit()
        self._open = self._open[count:]
        self.last_errors = errors
        if not groups:
            raise NoProgressError(no_progress_message(len(group_ids), self._runners, errors))
        return [groups[group_id] for group_id in group_ids if group_id in groups], metrics

    def readmit(self) -> None:
        """See ``GroupSource.readmit``."""
        self._weights.push(self._runners)

    def paused(self) -> AbstractContextManager[None]:
        """See ``GroupSource.paused``: between two calls every engine is idle anyway."""
        return nullcontext()

    def stop(self) -> list[str]:
        """See ``GroupSource.stop``: between two calls nothing is in flight."""
        abandoned, self._open = self._open, []
        return abandoned

    def measure(self) -> dict[str, float]:
        """See ``GroupSource.measure``: there is nothing to tell beyond the runners' own metrics."""
        return {}

    def _sample_once(self, group_ids: Sequence[str], errors: list[str]) -> list[tuple[list[str], SampleReport]]:
        """Shares the groups out once; the reports of the runners that were not lost, and the groups each is about."""
        workers, version, play = self._runners.healthy(), self._weights.version, self._play
        shares = {worker: list(group_ids[i :: len(workers)]) for i, worker in enumerate(workers)}
        if self._runners.is_local:
            return [(list(group_ids), play(self._runners.local_env_runner, list(group_ids), version))]

        def asking(asked: list[str]) -> RunnerCall[SampleReport]:
            return RunnerCall(lambda runner: play(runner, asked, version))

        pending = {self._runners.send(worker, asking(asked)): worker for worker, asked in shares.items() if asked}
        answers = []
        while pending:
            for ref in self._runners.first_ready(pending):
                worker = pending.pop(ref)
                answer, lost = self._runners.answer(worker, ref)
                if lost is None:
                    answers.append((worker, returned([answer])[0]))
                else:
                    errors.append(lost)
        # By runner, not by who was first: sums over floats depend on their order.
        return [(shares[worker], report) for worker, report in sorted(answers, key=lambda answer: answer[0])]


def no_progress_message(asked: int, runners: Fleet, errors: Sequence[str]) -> str:
    """Why not a single group is complete, and what to do about it."""
    healthy = runners.num_healthy_remote_workers()
    state = (
        f"{healthy} of {runners.num_remote_env_runners()} remote env runners are healthy"
        if (runners.num_remote_env_runners())
        else "the local env runner ran"
    )
    causes = "; ".join(errors[:3]) or "no error was reported by an environment: see the env runners' logs"
    return (
        f"none of {asked} groups could be completed ({state}). Last errors: {causes}. Check the environment with a few "
        "hand-written actions, and raise generation.step_timeout_s if it is only slow."
    )

"""Sampling and learning take turns: groups are shared out to env runners, and all of them are waited for.

A runner samples only with the weights version it is asked for. One that Ray restarted unnoticed by RLlib holds another
and returns nothing; it is sent the weights and asked again. Groups of a runner that died go to the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ray.rllib.env.env_runner_group import EnvRunnerGroup

from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.errors import NoProgressError
from gspo_rllib.runner_calls import RunnerCall, returned
from gspo_rllib.types import TrajectoryGroup
from gspo_rllib.weight_sync import Weights

RESTART_S = 300.0
"""Longest without a group from any runner, while some died or are being restarted. A death is not the group's fault, so
it is played again however often; but one whose agent or environment takes its process along would be for ever."""

RETRY_S = 1.0
"""Between two looks at whether Ray has restarted a runner."""


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
    """

    def __init__(
        self,
        runners: EnvRunnerGroup,
        *,
        draw: Callable[[int], Sequence[str]],
        weights: Weights | None = None,
        play: Callable[[Any, list[str], int], SampleReport] = _sample_groups,
    ) -> None:
        self._runners = runners
        self._draw = draw
        self._play = play
        self._weights: Weights
        if weights is not None:
            self._weights = weights

    @property
    def unfinished(self) -> list[str]:
        """See ``GroupSource.unfinished``: between two calls nothing is left."""
        return []

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
        """See ``GroupSource.take``: samples in parallel, whatever happens to single runners."""
        group_ids = list(self._draw(count))
        groups: dict[str, TrajectoryGroup] = {}
        metrics: list[Any] = []
        errors: list[str] = []
        pending = group_ids
        deadline = time.monotonic() + RESTART_S
        while True:
            answered: set[str] = set()
            for asked, report in self._sample_once(pending):
                errors += [m for m in report.errors if m not in errors]
                metrics.append(report.metrics)
                if report.weights_version == self._weights.version:
                    answered.update(asked)
                    groups.update({group.group_id: group for group in report.groups})
            # What a runner answered without is given up: its environment failed too often, and would again.
            pending = [group_id for group_id in pending if group_id not in answered]
            if answered:
                deadline = time.monotonic() + RESTART_S
            if not pending or time.monotonic() > deadline or not self._regain_runners():
                break
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
        return []

    def measure(self) -> dict[str, float]:
        """See ``GroupSource.measure``: there is nothing to tell beyond the runners' own metrics."""
        return {}

    def _regain_runners(self) -> bool:
        """Sends the weights to those that were restarted; False where no runner is left and none will be restarted."""
        self._runners.probe_unhealthy_env_runners()
        if self._runners.num_remote_env_runners() and not self._runners.num_healthy_remote_workers():
            if not self._runners._remote_config.restart_failed_env_runners:
                return False
            time.sleep(RETRY_S)  # one that is being restarted answers at once that it is not there yet
        self.readmit()
        return True

    def _sample_once(self, group_ids: Sequence[str]) -> list[tuple[list[str], SampleReport]]:
        remote, version = self._runners.num_remote_env_runners() > 0, self._weights.version
        workers = self._runners.healthy_worker_ids() if remote else [0]
        play = self._play
        shares = {worker: list(group_ids[i :: len(workers)]) for i, worker in enumerate(workers)}

        def sample(runner: Any) -> tuple[list[str], SampleReport] | None:
            asked = shares.get(runner.worker_index)
            return (asked, play(runner, asked, version)) if asked else None

        if not workers:
            return []
        answers = self._runners.foreach_env_runner(RunnerCall(sample), local_env_runner=not remote)
        return [answer for answer in returned(answers) if answer is not None]


def no_progress_message(asked: int, runners: EnvRunnerGroup, errors: Sequence[str]) -> str:
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

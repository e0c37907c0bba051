"""Sampling and learning take turns: groups are shared out to env runners, and all of them are waited for.

A runner samples only with the weights version it is asked for. One that Ray restarted unnoticed by RLlib holds another
and returns nothing; it is sent the weights and asked again. Groups of a runner that died go to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ray.rllib.env.env_runner_group import EnvRunnerGroup

from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.errors import NoProgressError
from gspo_rllib.types import TrajectoryGroup
from gspo_rllib.weight_sync import Weights

MAX_ROUNDS = 3
"""Times the groups of lost or out-of-date runners are sampled again before the iteration goes on with what there is."""


class Lockstep:
    """A ``GroupSource`` that samples when it is asked, and only then.

    Args:
        runners: RLlib's group of ``LanguageEnvRunner``: remote ones, or the one in this process.
        draw: Number of groups -> names of that many groups to sample next.
    """

    def __init__(self, runners: EnvRunnerGroup, *, draw: Callable[[int], Sequence[str]]) -> None:
        self._runners = runners
        self._draw = draw
        self._weights: Weights

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

    def take(self, count: int) -> tuple[list[TrajectoryGroup], list[Any]]:
        """See ``GroupSource.take``."""
        return sample_groups(
            self._runners, self._draw(count), weights_version=self._weights.version, recover=self._recover
        )

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

    def _recover(self) -> None:
        self._runners.probe_unhealthy_env_runners()
        self._weights.push(self._runners)


def sample_groups(
    runners: EnvRunnerGroup,
    group_ids: Sequence[str],
    *,
    weights_version: int,
    recover: Callable[[], None],
) -> tuple[list[TrajectoryGroup], list[Any]]:
    """Samples groups in parallel, whatever happens to single runners.

    Args:
        runners: RLlib's group of ``LanguageEnvRunner``.
        group_ids: Names of the groups; a name fixes the group's task and its sampling seeds.
        weights_version: What every runner must hold.
        recover: Brings back failed runners and sends the weights to all; called between rounds.

    Returns:
        Complete groups ordered by name as given, and the runners' metrics.

    Raises:
        NoProgressError: Not a single group is complete.
    """
    groups: dict[str, TrajectoryGroup] = {}
    metrics: list[Any] = []
    errors: list[str] = []
    pending = list(group_ids)
    for attempt in range(MAX_ROUNDS):
        if attempt:
            recover()
        answered: set[str] = set()
        for asked, report in _sample_once(runners, pending, weights_version):
            errors += [m for m in report.errors if m not in errors]
            metrics.append(report.metrics)
            if report.weights_version == weights_version:
                answered.update(asked)
                groups.update({group.group_id: group for group in report.groups})
        # A group that is missing in a runner's answer was given up: its environment failed too often to try it again.
        pending = [group_id for group_id in pending if group_id not in answered]
        if not pending:
            break
    if not groups:
        raise NoProgressError(no_progress_message(len(group_ids), runners, errors))
    return [groups[group_id] for group_id in group_ids if group_id in groups], metrics


def _sample_once(
    runners: EnvRunnerGroup, group_ids: Sequence[str], version: int
) -> list[tuple[list[str], SampleReport]]:
    remote = runners.num_remote_env_runners() > 0
    workers = runners.healthy_worker_ids() if remote else [0]
    shares = {worker: list(group_ids[i :: len(workers)]) for i, worker in enumerate(workers)}

    def sample(runner: Any) -> tuple[list[str], SampleReport] | None:
        asked = shares.get(runner.worker_index)
        return (asked, runner.sample_groups(asked, weights_version=version)) if asked else None

    if not workers:
        return []
    return [r for r in runners.foreach_env_runner(sample, local_env_runner=not remote) if r is not None]


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

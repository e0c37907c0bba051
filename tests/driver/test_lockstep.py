"""Sampling in turns with learning, where runners die: their groups are asked for again, and the wait has an end."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gspo_rllib.driver import lockstep
from gspo_rllib.driver.lockstep import Lockstep
from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.errors import NoProgressError
from gspo_rllib.types import group_episodes
from tests.episodes import make_episode


class DyingRunners:
    """Two runners, of which those die that the script says, round by round; Ray restarts each before the next.

    Args:
        dying: For each round the numbers of those that die; the last is for all rounds that follow.
    """

    def __init__(self, dying: list[set[int]], *, restarts: bool = True) -> None:
        self._dying = dying
        self._dead: set[int] = set()
        self._remote_config = SimpleNamespace(restart_failed_env_runners=restarts)
        self.asked: list[str] = []
        self.num_probes = 0

    def num_remote_env_runners(self) -> int:
        return 2

    def num_healthy_remote_workers(self) -> int:
        return len(self.healthy_worker_ids())

    def healthy_worker_ids(self) -> list[int]:
        return [worker for worker in (1, 2) if worker not in self._dead]

    def probe_unhealthy_env_runners(self) -> list[int]:
        self.num_probes += 1
        if self._remote_config.restart_failed_env_runners and self.num_probes % 2 == 0:
            self._dead.clear()
        return []

    def foreach_env_runner(self, function: Callable[[Any], Any], local_env_runner: bool) -> list[Any]:
        dying = self._dying.pop(0) if len(self._dying) > 1 else self._dying[0]
        answers = [function(_Runner(worker, self)) for worker in self.healthy_worker_ids() if worker not in dying]
        self._dead |= dying
        return answers


class _Runner:
    def __init__(self, worker_index: int, runners: DyingRunners) -> None:
        self.worker_index = worker_index
        self._runners = runners

    def sample_groups(self, group_ids: list[str], weights_version: int) -> SampleReport:
        self._runners.asked += group_ids
        episodes = [make_episode(name, i, [(3, 2)], float(i), version=0) for name in group_ids for i in range(2)]
        return SampleReport(
            groups=group_episodes(episodes), given_up=[], errors=[], metrics={}, weights_version=0, num_in_flight=0
        )


def _taken(runners: DyingRunners) -> list[str]:
    weights: Any = SimpleNamespace(version=0, push=lambda runners: None)
    source = Lockstep(runners, draw=lambda count: [str(n) for n in range(count)], weights=weights)  # type: ignore[arg-type]
    return [group.group_id for group in source.take(4)[0]]


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockstep, "RETRY_S", 0.0)


def test_however_often_runners_die_every_group_is_sampled_once() -> None:
    runners = DyingRunners([{1, 2}, {1}, {2}, {1, 2}, {1, 2}, {1}, {2}, {1}, set()])
    assert _taken(runners) == ["0", "1", "2", "3"]
    assert sorted(runners.asked) == ["0", "1", "2", "3"]


def test_the_wait_for_runners_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoProgressError, match=r"none of 4 groups could be completed \(0 of 2 remote env runners"):
        _taken(DyingRunners([{1, 2}], restarts=False))
    monkeypatch.setattr(lockstep, "RESTART_S", 0.05)
    runners = DyingRunners([{1, 2}])
    with pytest.raises(NoProgressError, match="none of 4 groups could be completed"):
        _taken(runners)
    assert runners.num_probes > 2
    assert _taken(DyingRunners([{1}])) == ["0", "1", "2", "3"]  # the other one plays them all

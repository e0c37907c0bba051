"""Runners that are killed, stopped or gone for good, on actors that hold neither a model nor an environment."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import signal
import subprocess
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from gspo_rllib.driver import fleet
from gspo_rllib.driver.fleet import Fleet
from gspo_rllib.driver.lockstep import Lockstep
from gspo_rllib.driver.processes import stands_still
from gspo_rllib.errors import RunnersLostError

PATIENCE_S = 1.0


class Runners:
    """What ``Fleet`` needs of RLlib's group."""

    local_env_runner = None

    def __init__(self, count: int, *, max_restarts: int) -> None:
        class Light:
            """By value, in a process that imports neither torch nor RLlib."""

            def __init__(self, worker_index: int) -> None:
                self.worker_index, self.version = worker_index, None
                if ray.get_runtime_context().was_current_actor_reconstructed:
                    time.sleep(0.5)  # so that those killed together are away together

            def apply(self, func: Callable[[Any], Any]) -> Any:
                return func(self)

            def ping(self) -> str:
                return "pong"

            def stop(self) -> None: ...

        make = ray.remote(num_cpus=0, max_restarts=max_restarts)(Light)
        self._worker_manager = FaultTolerantActorManager(
            [make.remote(i + 1) for i in range(count)], max_remote_requests_in_flight_per_actor=1, init_id=1
        )
        self._remote_config = SimpleNamespace(
            restart_failed_env_runners=True,
            ignore_env_runner_failures=False,
            env_runner_health_probe_timeout_s=PATIENCE_S,
            env_runner_restore_timeout_s=60.0,
        )

    def num_remote_env_runners(self) -> int:
        return self._worker_manager.num_actors()

    def num_healthy_remote_workers(self) -> int:
        return self._worker_manager.num_healthy_actors()

    def pids(self) -> dict[int, int]:
        """Of the processes there are; those that are just being restarted have none."""
        entries = {worker: Fleet.of(self)._entry(worker) for worker in self._worker_manager.actors()}  # type: ignore[arg-type]
        return {worker: int(entry["Pid"]) for worker, entry in entries.items() if entry["State"] == "ALIVE"}


class One:
    """Weights that are a number."""

    version = 1

    def push(self, runners: Any, *, force: bool = False) -> None:
        def load(runner: Any) -> None:
            runner.version = 1

        runners.foreach_env_runner(load, local_env_runner=False)


@pytest.fixture
def make_runners(ray_local: None) -> Iterator[Callable[..., Runners]]:
    made: list[Runners] = []

    def make(count: int = 2, *, max_restarts: int = -1) -> Runners:
        made.append(Runners(count, max_restarts=max_restarts))
        ray.get([actor.ping.remote() for actor in made[-1]._worker_manager.actors().values()])
        return made[-1]

    yield make
    for runners in made:
        runners._worker_manager.clear()


def lockstep(runners: Any, folder: str, seconds: float = 0.2) -> Lockstep:
    """Samples groups that note when they begin to be played."""
    numbers = itertools.count()

    def play(runner: Any, group_ids: list[str], version: int) -> Any:
        import os
        import pathlib
        import time
        from types import SimpleNamespace

        groups = []
        for group_id in group_ids if runner.version == version else []:
            with pathlib.Path(folder, group_id).open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(seconds)
            groups.append(SimpleNamespace(group_id=group_id))
        return SimpleNamespace(groups=groups, errors=[], metrics=runner.worker_index, weights_version=runner.version)

    sampler = Lockstep(runners, draw=lambda count: [str(next(numbers)) for _ in range(count)], play=play)
    sampler.start(One())  # type: ignore[arg-type]
    return sampler


@pytest.fixture
def disturbing() -> Iterator[Callable[[Callable[[], Any]], None]]:
    """Has a thread do something as soon as it can be done."""
    import threading

    threads = []

    def start(act: Callable[[], Any]) -> None:
        def wait_and_act() -> None:
            deadline = time.monotonic() + 60.0
            while not act() and time.monotonic() < deadline:
                time.sleep(0.02)

        threads.append(threading.Thread(target=wait_and_act, daemon=True))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join()


def signal_all(runners: Runners, number: signal.Signals) -> bool:
    for pid in runners.pids().values():
        os.kill(pid, number)
    return True


def test_groups_of_killed_runners_are_played_again_until_all_are_there(
    make_runners: Callable[..., Runners], disturbing: Any, tmp_path: Any, caplog: Any
) -> None:
    runners = make_runners(2)
    sampler = lockstep(runners, str(tmp_path))
    asked = [sampler.take(4)[0]]
    # All of them, more often than any count of attempts would have allowed.
    for _ in range(2):
        begun = len(list(tmp_path.iterdir()))
        disturbing(lambda begun=begun: len(list(tmp_path.iterdir())) > begun and signal_all(runners, signal.SIGKILL))
        asked.append(sampler.take(4)[0])
    names = [group.group_id for groups in asked for group in groups]
    assert names == [str(number) for number in range(12)]
    begun_by = Counter({file.name: len(file.read_text().split()) for file in tmp_path.iterdir()})
    assert max(begun_by.values()) > 1, "nothing was killed while it was played"
    assert sampler.unfinished == []
    assert any(
        "waiting for 2 of 2 env runners, 0 s of 60 s" in record.message
        for record in caplog.records
        if record.levelno == logging.WARNING
    )


@pytest.mark.slow
def test_a_stopped_runner_is_replaced_and_its_groups_are_played(
    make_runners: Callable[..., Runners], tmp_path: Any
) -> None:
    runners = make_runners(2)
    sampler = lockstep(runners, str(tmp_path))
    before = runners.pids()
    os.kill(before[1], signal.SIGSTOP)
    started = time.monotonic()
    groups, _ = sampler.take(4)
    assert [group.group_id for group in groups] == ["0", "1", "2", "3"]
    assert time.monotonic() - started < PATIENCE_S + 30.0
    deadline = time.monotonic() + 30.0
    while runners.num_healthy_remote_workers() < 2 and time.monotonic() < deadline:
        Fleet.of(runners).revive()  # type: ignore[arg-type]
        time.sleep(0.1)
    after = runners.pids()
    assert after[2] == before[2]
    assert after[1] != before[1]
    assert not psutil.pid_exists(before[1]) or not stands_still(before[1])


@pytest.mark.slow
def test_a_run_without_any_runner_left_ends_and_keeps_what_it_had_drawn(
    make_runners: Callable[..., Runners], tmp_path: Any
) -> None:
    runners = make_runners(2, max_restarts=0)
    sampler = lockstep(runners, str(tmp_path))
    sampler.take(2)
    signal_all(runners, signal.SIGKILL)
    with pytest.raises(RunnersLostError, match=r"0 of 2 remote env runners .* died: .*resume from it"):
        sampler.take(3)
    assert sampler.unfinished == ["2", "3", "4"]
    assert sampler.stop() == ["2", "3", "4"]


def test_a_runner_lost_while_weights_are_handed_out_is_named_when_none_comes_back(
    make_runners: Callable[..., Runners],
) -> None:
    runners = make_runners(1, max_restarts=0)
    signal_all(runners, signal.SIGKILL)
    of_one = Fleet.of(runners)  # type: ignore[arg-type]
    assert of_one.foreach_env_runner(lambda runner: 1, local_env_runner=False) == []
    with pytest.raises(RunnersLostError, match="Last errors: env runner 1 died: "):
        of_one.await_one()


@pytest.mark.slow
def test_runners_that_do_not_stop_by_themselves_are_ended(
    make_runners: Callable[..., Runners], monkeypatch: pytest.MonkeyPatch
) -> None:
    runners = make_runners(2)
    monkeypatch.setattr(fleet, "STOP_S", 0.5)
    pids = runners.pids().values()
    signal_all(runners, signal.SIGSTOP)
    started = time.monotonic()
    Fleet.of(runners).end()  # type: ignore[arg-type]
    assert time.monotonic() - started < 10.0
    deadline = started + 30.0
    while any(psutil.pid_exists(pid) and stands_still(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) and stands_still(pid) for pid in pids)


def test_a_process_stands_still_when_it_or_its_engine_is_stopped(tmp_path: Any) -> None:
    engine = tmp_path / "EngineCore"
    engine.symlink_to("/bin/sleep")
    for stopped, expected in ((None, False), ("sleep", False), ("EngineCore", True)):
        # A stopped program of an environment's, a debugger's say, is not the runner's engine.
        parent = subprocess.Popen(["/bin/sh", "-c", f"sleep 60 & {engine} 60 & wait"])
        try:
            deadline = time.monotonic() + 10.0
            children: dict[str, psutil.Process] = {}
            while set(children) != {"sleep", "EngineCore"} and time.monotonic() < deadline:
                children = {child.name(): child for child in psutil.Process(parent.pid).children()}
            if stopped:
                children[stopped].suspend()
                while children[stopped].status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
                    time.sleep(0.01)
            assert stands_still(parent.pid) is expected
            os.kill(parent.pid, signal.SIGSTOP)
            os.waitpid(parent.pid, os.WUNTRACED)
            assert stands_still(parent.pid)
        finally:
            for process in [*psutil.Process(parent.pid).children(), parent]:
                process.kill()
            parent.wait()
    assert not stands_still(parent.pid)


def test_a_group_that_nobody_needs_any_more_goes() -> None:
    class Runners:
        pass

    runners: Any = Runners()
    Fleet.of(runners)
    gone = weakref.ref(runners)
    assert Fleet.of(runners) is Fleet.of(runners)
    del runners
    gc.collect()
    assert gone() is None

"""Env runners that are never built: a process that ends in the constructor each time, and one that is stopped there."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError

from gspo_rllib.driver.first_build import MOST_ENDS, _Watch, first_build
from gspo_rllib.driver.processes import stands_still
from gspo_rllib.errors import RunnersLostError

BORN = "runner.<locals>.Born"


def runner(folder: Path, *, ends: int, stops: int = 0) -> ray.actor.ActorHandle:
    """An actor whose process ends, or stands still, in its constructor, so many times."""

    class Born:
        """By value, in a process that imports neither torch nor RLlib."""

        def __init__(self, folder: str, ends: int, stops: int) -> None:
            number = len(os.listdir(folder))
            with open(f"{folder}/{number}_{os.getpid()}", "w"):
                pass
            if number < ends:
                os._exit(3)
            if number < ends + stops:
                os.kill(os.getpid(), signal.SIGSTOP)

        def assert_healthy(self) -> int:
            return os.getpid()

    return ray.remote(num_cpus=0, max_restarts=1000)(Born).remote(str(folder), ends, stops)


def build(folder: Path, *, class_name: str = BORN, passes_over: bool = False) -> None:
    """As RLlib builds one that is never there."""
    with first_build(class_name, patience_s=60.0):
        actor = runner(folder, ends=1000)
        answer = actor.assert_healthy.remote()
        while class_name != BORN and len(list(folder.iterdir())) <= MOST_ENDS:
            time.sleep(0.1)
        if class_name != BORN:
            ray.kill(actor)
        with contextlib.suppress(*([RayActorError] if passes_over else [])):
            ray.get(answer)


def test_a_runner_whose_process_ends_each_time_is_given_up_in_a_sentence(ray_local: None, tmp_path: Path) -> None:
    with pytest.raises(RunnersLostError, match=f"its process ended {MOST_ENDS} times on the way, the last time as"):
        build(tmp_path)
    assert MOST_ENDS <= len(list(tmp_path.iterdir())) <= MOST_ENDS + 2


def test_one_that_had_bad_luck_is_waited_for_and_one_that_is_stopped_is_replaced(
    ray_local: None, tmp_path: Path
) -> None:
    with first_build(BORN, patience_s=1.0):
        actor = runner(tmp_path, ends=1, stops=1)
        pid = ray.get(actor.assert_healthy.remote())
    assert [int(path.name.split("_")[1]) for path in sorted(tmp_path.iterdir())][-1] == pid
    assert len(list(tmp_path.iterdir())) == 3
    ray.kill(actor)


def test_a_process_that_takes_a_while_to_end_is_ended_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray counts, and who is ended for it a second time is the process in its place."""
    ended: list[str] = []
    monkeypatch.setattr(_Watch, "_end", staticmethod(lambda actor, *, for_good: ended.append(actor)))
    watch, process = _Watch(BORN, patience_s=0.0), subprocess.Popen(["sleep", "60"])
    try:
        process.send_signal(signal.SIGSTOP)
        while not stands_still(process.pid):
            time.sleep(0.01)
        for _ in range(3):
            watch._look("1", {"State": "PENDING_CREATION", "NumRestarts": 1, "Pid": process.pid}, here=True)
    finally:
        process.kill()
        process.wait()
    assert ended == ["1"]


def test_it_ends_the_block_also_where_nobody_raises(ray_local: None, tmp_path: Path) -> None:
    """RLlib goes on without a runner that is to be restarted, and stumbles later, if at all."""
    level = logging.getLogger("ray.rllib").level
    with pytest.raises(RunnersLostError, match="was not built"):
        build(tmp_path, passes_over=True)
    assert logging.getLogger("ray.rllib").level == level


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ModuleNotFoundError("No module named 'mine'"),
            "ModuleNotFoundError: No module named 'mine'. What environments",
        ),
        (ValueError("no such map."), "ValueError: no such map. With env_runners"),
    ],
)
def test_one_whose_constructor_raises_is_given_up_in_a_sentence(ray_local: None, error: Exception, said: str) -> None:
    """RLlib logs that, goes on without it, and stumbles over the first answer that is not there."""

    class Raising:
        def __init__(self) -> None:
            raise error

        def assert_healthy(self) -> None: ...

    def build() -> None:
        with first_build(Raising.__qualname__, patience_s=60.0):
            answer = ray.remote(num_cpus=0)(Raising).remote().assert_healthy.remote()
            with contextlib.suppress(RayActorError):
                ray.get(answer)
            raise IndexError("list index out of range")

    with pytest.raises(RunnersLostError) as raised:
        build()
    assert said in str(raised.value)

    # Those that died before are nobody's fault now.
    with pytest.raises(KeyError), first_build(Raising.__qualname__, patience_s=60.0):
        raise KeyError


def test_other_errors_and_other_classes_are_left_alone(ray_local: None, tmp_path: Path) -> None:
    with pytest.raises(RayActorError):
        build(tmp_path, class_name="Another")


def test_no_thread_is_left(ray_local: None) -> None:
    with first_build(BORN, patience_s=60.0):
        pass
    deadline = time.monotonic() + 10
    while any(thread.name == "gspo-first-build" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(thread.name == "gspo-first-build" for thread in threading.enumerate())

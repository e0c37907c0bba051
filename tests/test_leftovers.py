"""What a driver that was killed leaves is gone soon after, or at the next start; and nothing else is."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gspo_rllib import leftovers

_DRIVER = """
    import os, subprocess, sys, time
    from gspo_rllib.leftovers import Watch
    watch = Watch()
    session, shared = sys.argv[1:3]
    os.makedirs(session + "/sockets")
    # As Ray's daemons: of a session of its own, named by its folder, with sockets there and a segment mapped.
    child = '''
    import mmap, os, socket, subprocess, sys, time
    sockets = socket.socket(socket.AF_UNIX)
    os.chdir(sys.argv[1])  # the name of a socket may not be long
    sockets.bind("sockets/raylet")
    file = os.open(sys.argv[2], os.O_CREAT | os.O_RDWR)
    os.ftruncate(file, 4096)
    held = mmap.mmap(file, 4096)
    grandchild = subprocess.Popen(["sleep", "300"], start_new_session=True)
    print(os.getpid(), grandchild.pid, flush=True)
    time.sleep(300)
    '''
    import textwrap
    subprocess.Popen([sys.executable, "-c", textwrap.dedent(child), session, shared], start_new_session=True)
    time.sleep(0.1)
    print(watch._process.pid, flush=True)
    if sys.argv[3] == "orderly":
        time.sleep(0.5)
        watch.close()
    else:
        time.sleep(300)
"""


class Driver:
    """A driver with a child, a grandchild, a socket, a segment of shared memory and a folder."""

    def __init__(self, folder: Path, temporary: Path, how: str = "killed") -> None:
        self.session = folder / f"session_2026-01-01_{os.getpid()}_{time.monotonic_ns()}"
        self.shared = Path(f"/dev/shm/gspo_rllib_test_{time.monotonic_ns()}")
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_DRIVER), str(self.session), str(self.shared), how],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        assert self.process.stdout is not None
        numbers = [int(word) for _ in range(2) for word in self.process.stdout.readline().split()]
        # The watcher's own line has one number; whichever comes first.
        self.watcher = next(n for n in numbers if b"leftovers.py" in Path(f"/proc/{n}/cmdline").read_bytes())
        self.started = [n for n in numbers if n != self.watcher]
        assert len(self.started) == 2

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def left(self) -> list[object]:
        alive: list[object] = [pid for pid in self.started if _is_alive(pid)]
        return alive + [path for path in (self.session, self.shared) if path.exists()]

    def clear(self) -> None:
        for pid in [self.process.pid, *self.started, self.watcher]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.shared.unlink(missing_ok=True)


def _is_alive(pid: int) -> bool:
    return leftovers._started(pid) is not None


def _wait(condition: object, seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:  # type: ignore[operator]
        time.sleep(0.05)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files, in which runs are recorded."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def drivers(tmp_path: Path, temporary: Path) -> Iterator[list[Driver]]:
    made: list[Driver] = []
    yield made
    for driver in made:
        driver.clear()


def test_nothing_of_a_killed_driver_is_left(tmp_path: Path, temporary: Path, drivers: list[Driver]) -> None:
    drivers += [Driver(tmp_path, temporary), Driver(tmp_path, temporary)]
    killed, other = drivers
    assert len(killed.left()) == 4
    killed.kill()
    _wait(lambda: not killed.left() and not _is_alive(killed.watcher))
    assert killed.left() == []
    assert not _is_alive(killed.watcher)
    assert len(other.left()) == 4  # another run goes on
    other.kill()
    _wait(lambda: not other.left() and not list(temporary.iterdir()))
    assert other.left() == []
    assert list(temporary.iterdir()) == []


def test_where_the_watcher_was_killed_too_the_next_start_cleans_up(
    tmp_path: Path, temporary: Path, drivers: list[Driver]
) -> None:
    drivers += [Driver(tmp_path, temporary), Driver(tmp_path, temporary)]
    dead, alive = drivers
    os.kill(dead.watcher, signal.SIGKILL)
    dead.kill()
    assert len(dead.left()) == 4
    assert len(leftovers.remove_leftovers()) == 1
    assert dead.left() == []
    assert len(alive.left()) == 4
    assert leftovers.remove_leftovers() == []


def test_a_run_that_ends_in_order_is_not_swept(tmp_path: Path, temporary: Path, drivers: list[Driver]) -> None:
    """What it leaves running, it means to."""
    drivers.append(Driver(tmp_path, temporary, "orderly"))
    (driver,) = drivers
    assert driver.process.wait(20) == 0
    _wait(lambda: not _is_alive(driver.watcher))
    assert not _is_alive(driver.watcher)
    assert len(driver.left()) == 4
    assert list(temporary.iterdir()) == []


def test_a_number_that_another_process_has_now_is_not_taken_for_the_dead_run(
    tmp_path: Path, temporary: Path, drivers: list[Driver]
) -> None:
    drivers.append(Driver(tmp_path, temporary))
    folder = next(temporary.iterdir())
    # Of this process, with another start: the number was given away. Then what is no record at all.
    forged = {"pid": os.getpid(), "started": ["another boot", "1"], "run": "nobody", "folders": [str(tmp_path), "/"]}
    (folder / "nobody.json").write_text(json.dumps(forged))
    (folder / "half.json").write_text('{"pid": ')
    (folder / "list.json").write_text("[]")
    (folder / "other.json").write_text(json.dumps(forged))
    assert leftovers.remove_leftovers() == ["nobody"]
    assert _is_alive(os.getpid())
    assert tmp_path.is_dir()  # no folder of Ray's
    assert len(drivers[0].left()) == 4


def test_a_tracker_of_semaphores_removes_them_before_it_is_ended(tmp_path: Path) -> None:
    """As beside vLLM's core: whoever had the semaphores is dead, and nobody else knows their names."""
    run, name = f"run{time.monotonic_ns()}", f"/mp-gspo{os.getpid()}"
    semaphore = Path(f"/dev/shm/sem.{name[1:]}")
    semaphore.touch()
    read, write = os.pipe()
    marked = {**os.environ, leftovers.MARK: run}
    code = f"from multiprocessing.resource_tracker import main; main({read})"
    # The tracker first: processes are ended in the order of their numbers.
    tracker = subprocess.Popen([sys.executable, "-c", code], pass_fds=[read], env=marked, stderr=subprocess.DEVNULL)
    holder = subprocess.Popen(["sleep", "300"], pass_fds=[write], env=marked)
    try:
        os.write(write, f"REGISTER:{name}:semaphore\n".encode())
        os.close(write)
        os.close(read)
        leftovers._clean(run, set())
        assert (holder.wait(10), tracker.wait(10)) == (-signal.SIGKILL, 0)
        assert not semaphore.exists()
    finally:
        for process in (tracker, holder):
            process.kill()
        semaphore.unlink(missing_ok=True)


def test_a_tracker_that_does_not_end_is_ended(tmp_path: Path) -> None:
    run = f"run{time.monotonic_ns()}"
    code = "from multiprocessing.resource_tracker import main; main(0)"
    tracker = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, env={**os.environ, leftovers.MARK: run}
    )
    _wait(lambda: leftovers.processes_of(run))
    leftovers._clean(run, set())
    assert tracker.wait(10) == -signal.SIGKILL

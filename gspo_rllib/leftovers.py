"""What a driver that was killed leaves: processes, sockets, shared memory and folders of the Ray that it had started.

A driver that starts Ray also starts a watcher, a small process that waits for the driver's end. Whatever the driver had
started carries a mark in its environment, which children inherit, so that the watcher ends those processes and no
others. Where the watcher was killed too, the next driver finds the record of the dead run and does the same.

This file is also the watcher's program. It imports nothing but the standard library, and runs alone.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARK = "GSPO_RLLIB_RUN"
"""Environment variable of everything that a driver starts; its value names the run."""
GRACE_S = 10.0
"""How long processes that go on starting others are looked for."""
TRACKER_S = 3.0
"""Of these, those that a tracker has for removing the semaphores of processes that were killed."""
_SESSION = re.compile(r"(/[^\s\0=]*/session_\d[\w-]*)")
_SHARED_MEMORY = "/dev/shm/"
_DONE = b"."


class Watch:
    """What is to be cleaned up when this process dies; made before Ray is started.

    It removes what earlier runs have left, and only that of runs whose driver is dead.
    """

    def __init__(self) -> None:
        remove_leftovers()
        self.run = uuid.uuid4().hex
        os.environ[MARK] = self.run
        self._record = _records() / f"{self.run}.json"
        self._write([])
        reader, self._writer = os.pipe()
        # A session of its own: Ctrl-C, a terminal's end or a killed process group is no business of its.
        environment = {name: value for name, value in os.environ.items() if name != MARK}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(self._record)],
            stdin=reader,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            cwd="/",
        )
        os.close(reader)
        self._owner = os.getpid()

    def note_folder(self) -> None:
        """Notes Ray's folder of its session, once it has started: its daemons may be gone before the watcher looks."""
        self._write(sorted({folder for pid in processes_of(self.run) for folder in _ray_folders(pid)}))

    def _write(self, folders: list[str]) -> None:
        """Writes the record; there is one at any moment."""
        record = {"pid": os.getpid(), "started": _started(os.getpid()), "run": self.run, "folders": folders}
        partial = self._record.with_suffix(".tmp")
        partial.write_text(json.dumps(record))
        partial.replace(self._record)

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the watch, now that Ray was shut down in order."""
        if self._owner != os.getpid():
            return  # a fork of the driver
        if os.environ.get(MARK) == self.run:
            del os.environ[MARK]
        with contextlib.suppress(OSError):  # somebody ended it
            os.write(self._writer, _DONE)
        os.close(self._writer)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)


@contextlib.contextmanager
def watched_while_it_lives() -> Iterator[None]:
    """Inside ``with``, Ray is started by a process of the user's: the mark is Ray's alone, and the watch the process's.

    What the user starts afterwards is the user's own and stays.
    """
    watch = Watch()
    try:
        yield
        watch.note_folder()
    finally:
        del os.environ[MARK]
        atexit.register(watch.close)


def remove_leftovers() -> list[str]:
    """Ends and removes what dead runs of this user have left; returns the names of those runs."""
    found = []
    for record in sorted(_records().glob("*.json")):
        try:
            run = json.loads(record.read_text())
            is_dead = _started(int(run["pid"])) != run["started"]
            name, folders = str(run["run"]), {str(folder) for folder in run["folders"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being written
        if is_dead and record.stem == name:
            _clean(name, folders)
            record.unlink(missing_ok=True)
            found.append(name)
    return found


def processes_of(run: str) -> list[int]:
    """Processes that carry the mark of a run."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _has_mark(entry.name, run)]


def _has_mark(pid: int | str, run: str) -> bool:
    with contextlib.suppress(OSError):  # ended, or another user's
        return f"{MARK}={run}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def _records() -> Path:
    """The folder with one record per run of this user."""
    folder = Path(tempfile.gettempdir()) / f"gspo-rllib-runs-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        # Somebody else's folder of that name says what somebody else wants ended.
        return Path(tempfile.mkdtemp(prefix="gspo-rllib-runs-"))
    return folder


def _clean(run: str, noted: set[str]) -> None:
    """Ends the processes of a run whose driver is dead, then removes what they had open, and Ray's folder of it."""
    folders = {folder for folder in noted if _SESSION.fullmatch(folder)}
    shared: set[str] = set()
    until = time.monotonic() + GRACE_S
    own, alone_since = {os.getpid()}, math.inf
    while (left := [pid for pid in processes_of(run) if pid not in own]) and time.monotonic() < until:
        others = [pid for pid in left if not _is_tracker(pid)]
        alone_since = math.inf if others else min(alone_since, time.monotonic())
        for pid in left:
            folders |= _ray_folders(pid)
            shared |= _shared_memory(pid)
        for pid in left if time.monotonic() - alone_since > TRACKER_S else others:
            _kill(pid, run)
        time.sleep(0.05)
    for path in shared:
        with contextlib.suppress(OSError):
            if os.lstat(path).st_uid == os.getuid():
                os.unlink(path)
    for folder in folders:
        if os.path.isdir(folder) and os.lstat(folder).st_uid == os.getuid():
            shutil.rmtree(folder, ignore_errors=True)


def _is_tracker(pid: int) -> bool:
    """Whether it is Python's own: once their users are dead, it alone knows the semaphores, and ends by itself."""
    with contextlib.suppress(OSError):
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False  # it has ended


def _kill(pid: int, run: str) -> None:
    """Kills a process of the run; a number that was given to another one meanwhile is not it."""
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            if _has_mark(pid, run):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


def _started(pid: int) -> Any:
    """When a process was started, in ticks since the machine was, with the machine's own start; None for no process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] == "Z":
            return None
        return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), fields[19]]
    except (OSError, IndexError):
        return None


def _ray_folders(pid: int) -> set[str]:
    """Ray's folder of a session, as the commands of its processes name it."""
    with contextlib.suppress(OSError):
        return set(_SESSION.findall(Path(f"/proc/{pid}/cmdline").read_text(errors="replace")))
    return set()  # it has ended


def _shared_memory(pid: int) -> set[str]:
    """Names in shared memory that a process has open or mapped."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text(errors="replace").splitlines():
            path = line.partition(_SHARED_MEMORY)[2]
            found |= {f"{_SHARED_MEMORY}{path}"} if path and not path.endswith("(deleted)") else set()
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                path = os.readlink(link)
                if path.startswith(_SHARED_MEMORY) and not path.endswith("(deleted)"):
                    found.add(path)
    return found


def _wait_and_clean(record: Path) -> None:
    """The watcher: returns when the driver has ended, one way or the other, and nothing of it is left."""
    driver = int(json.loads(record.read_text())["pid"])  # kept whole by renaming
    done = b""
    with contextlib.suppress(OSError):  # it is dead already
        handle = os.pidfd_open(driver)
        # The driver's word for it or its death; not the pipe's end alone, which a fork of the driver may hold open.
        ready, _, _ = select.select([0, handle], [], [])
        done = os.read(0, 1) if 0 in ready else b""
    if done != _DONE:
        _clean(record.stem, set(json.loads(record.read_text())["folders"]))
    record.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # other runs have theirs there
        record.parent.rmdir()


if __name__ == "__main__":
    # Ended by the driver's end, and not by what ends the driver.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _wait_and_clean(Path(sys.argv[1]))

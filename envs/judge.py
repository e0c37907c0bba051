"""Judging untrusted formulas within a deadline: a pool of processes that stay warm.

A formula such as ``9^{9^{9}}`` keeps math-verify busy for ever and holds the interpreter lock, so no deadline within
this process could help. What judges is started anew at the first formula and kept; ``judge_child`` says how it is
stopped. Any thread may judge; a fork of this process starts judges of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import struct
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from gspo_rllib.errors import EnvError

CPU_S = 2.0
"""Seconds of processor time an answer may take; ordinary ones take milliseconds."""

WALL_S = 20.0
"""Seconds until it is given up in any case; only a machine that is many times overloaded makes this the shorter one."""

MEMORY_BYTES = 2 << 30
MOST_CHARS = 10_000
"""Longer formulas are not judged."""

_START_S = 120.0
_GRACE_S = 10.0
_MOST_JUDGES = 4


class _Gone(Exception):
    """The process ended, or does not answer."""


def judge_formulas(gold: str, reply: str) -> tuple[bool, str | None]:
    """Whether two formulas are equal, and why that cannot be said, if it cannot.

    Args:
        gold: The right answer, as math-verify reads it.
        reply: The answer to judge, likewise.

    Raises:
        EnvError: No process that judges can be started.
    """
    if max(len(gold), len(reply)) > MOST_CHARS:
        return False, f"it is longer than {MOST_CHARS:,} characters"
    request = {"gold": gold, "reply": reply, "cpu_s": CPU_S, "wall_s": WALL_S}
    try:
        answer = _POOL.ask(request)
    except _Gone:
        return False, "the process that judged it ended"
    return bool(answer.get("right")), answer.get("why")


class _Judge:
    """One process, which answers one request at a time."""

    def __init__(self) -> None:
        source = Path(__file__).with_name("judge_child.py").read_text(encoding="utf-8")
        command = [
            sys.executable,
            "-P",
            "-c",
            source,
            json.dumps([str(place) for place in sys.path]),
            str(MEMORY_BYTES),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        try:
            ready = self._receive(_START_S)
        except BaseException:
            self.close()
            raise
        if "why" in ready:
            self.close()
            raise EnvError(
                f"math-verify cannot be used: {ready['why']}. Install it: pip install 'gspo-rllib[datasets]'."
            )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps(request).encode()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack(">I", len(body)) + body)
        except OSError as error:
            raise _Gone from error
        return self._receive(request["wall_s"] + _GRACE_S)

    def close(self) -> None:
        """Ends the process and what it has started."""
        self.forget()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """Closes this end of its pipes, which ends it, unless another process holds that end too."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _receive(self, seconds: float) -> dict[str, Any]:
        until = time.monotonic() + seconds
        size = struct.unpack(">I", self._exactly(4, until))[0]
        received: dict[str, Any] = json.loads(self._exactly(size, until))
        return received

    def _exactly(self, size: int, until: float) -> bytes:
        assert self._process.stdout is not None
        received = b""
        while len(received) < size:
            poller = select.poll()  # select() itself knows no descriptor above 1,023
            poller.register(self._process.stdout, select.POLLIN)
            if not poller.poll(max(0.0, until - time.monotonic()) * 1000):
                raise _Gone
            part = self._process.stdout.read(size - len(received))
            if not part:
                raise _Gone
            received += part
        return received


class _Pool:
    """Judges at rest; more are started while all are busy, up to a handful."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Judge] = []
        self._all: weakref.WeakSet[_Judge] = weakref.WeakSet()
        self._room = threading.Semaphore(min(_MOST_JUDGES, os.cpu_count() or 1))

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._room:
            with self._lock:
                judge = self._idle.pop() if self._idle else None
            if judge is not None:
                try:
                    return self._answer_of(judge, request)
                except _Gone:
                    pass  # it was killed while at rest, say; a new one is tried once
            return self._answer_of(self._started(), request)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for judge in idle:
            judge.close()

    def forget(self) -> None:
        """In a fork: the judges belong to the process that was forked."""
        for judge in list(self._all):
            judge.forget()
            judge._process.returncode = 0  # no child of this process, so there is nothing to wait for
        self.__init__()  # type: ignore[misc]

    def _started(self) -> _Judge:
        try:
            judge = _Judge()
        except (OSError, _Gone) as error:
            raise EnvError(
                f"no process that judges formulas could be started ({type(error).__name__}: {str(error)[:200]}); "
                "verifier='math_verify' needs one. Check the memory and the number of processes allowed here."
            ) from error
        with self._lock:
            self._all.add(judge)
        return judge

    def _answer_of(self, judge: _Judge, request: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = judge.ask(request)
        # Interrupted between question and answer, it would give this answer to the next question.
        except BaseException:
            judge.close()
            raise
        with self._lock:
            self._idle.append(judge)
        return answer


_POOL = _Pool()
os.register_at_fork(after_in_child=_POOL.forget)
atexit.register(_POOL.close)

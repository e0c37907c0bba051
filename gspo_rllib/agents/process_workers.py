"""The user's function in processes of its own: it may block, compute or crash, and nobody else notices.

Each place of the env runner has a process, which plays one trajectory after the other and talks to the policy over
HTTP. It is started anew, never forked, from the function's name; what it says comes back as JSON. A process that is not
waited for any more is killed with all that it started, and so is every one when this process ends, even by SIGKILL: a
guard beside it sees the end of a pipe.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from gspo_rllib.agents.agent_thread import Outcome
from gspo_rllib.agents.function import Play, find_play
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.agents.workers import Job
from gspo_rllib.env_pool.calls import EnvFailure, FailureKind
from gspo_rllib.errors import SettingError, shown

START_TIMEOUT_S = 120.0
"""Many processes that start at once on few cores are no fault of the agent; each that has begun gives the others as
long again."""

MAX_ANSWER_BYTES = 2**24
_EXIT_S = 1.0

_BOOT = """\
import json, runpy, sys
sys.path[:] = json.loads(sys.argv.pop(1))
runpy.run_module("gspo_rllib.agents.process_child", run_name="__main__")
"""


class ProcessWorkers:
    """The user's function in a process for each place; see ``workers.Workers``.

    Args:
        play: ``"module:name"`` of the function.
    """

    patience_s = START_TIMEOUT_S
    impatience = f"the agent's process did not begin within {START_TIMEOUT_S:g} seconds."

    def __init__(self, play: str) -> None:
        self._play = play
        self._guard: Guard | None = None
        self._children: dict[int, AgentProcess] = {}

    def start(self, job: Job) -> RunningProcess:
        """Tells the process of this place to play; it is started if there is none."""
        self._guard = self._guard or Guard()
        child = self._children.get(job.slot)
        if child is None or not child.is_free:
            child = self._children[job.slot] = AgentProcess(self._play, self._guard)
        child.tell(job)
        return RunningProcess(child, job)

    def close(self) -> None:
        """Kills all processes; returns at once."""
        for child in self._children.values():
            child.kill()
        self._children.clear()
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.close()


class RunningProcess:
    """One trajectory in a process.

    Args:
        child: The process.
        job: The trajectory.
    """

    def __init__(self, child: AgentProcess, job: Job) -> None:
        self._child = child
        self._job = job

    def cancel(self) -> bool:
        """Kills the process, unless it has ended this trajectory before."""
        return self._child.cancel(self._job)


class AgentProcess:
    """One process, which plays one trajectory at a time.

    Args:
        play: ``"module:name"`` of the function.
        guard: Ends it when this process has ended.
    """

    def __init__(self, play: str, guard: Guard) -> None:
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._is_gone = False
        self._guard = guard
        reading, writing = os.pipe()
        command = [
            sys.executable,
            "-P",
            "-c",
            _BOOT,
            json.dumps([str(place) for place in sys.path]),
            play,
            str(writing),
        ]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, pass_fds=[writing], start_new_session=True, bufsize=0
            )
        finally:
            os.close(writing)
        guard.watch(self._process.pid)
        threading.Thread(target=self._listen, args=(reading,), name="gspo-agent-process", daemon=True).start()

    @property
    def is_free(self) -> bool:
        """Whether it can be told to play."""
        with self._lock:
            return not self._is_gone and self._job is None and not self._has_ended()

    def tell(self, job: Job) -> None:
        """Has it play a trajectory; returns at once."""
        agent = job.agent
        told = {"task": job.task, "base_url": agent.base_url, "key": agent.api_key, "seed": agent.seed}
        line = json.dumps(told | {"name": agent.name}).encode() + b"\n"
        with self._lock:
            is_gone = self._is_gone
            self._job = None if is_gone else job
        if is_gone:  # it died since it was found free, and was not told of this trajectory then
            job.on_end(_lost("has ended"))
            return
        # A task may be larger than a pipe holds, and the process may be slow to read.
        threading.Thread(target=self._write, args=(line,), name="gspo-agent-task", daemon=True).start()

    def cancel(self, job: Job) -> bool:
        """Kills it while it plays this trajectory; False when it does not any more."""
        with self._lock:
            if self._job is not job:
                return False
            self._job = None
        self.kill()
        return True

    def kill(self) -> None:
        """Ends the process and what it has started, for good."""
        with self._lock:
            self._is_gone = True
            if self._process.returncode is None:
                with contextlib.suppress(OSError):
                    os.killpg(self._process.pid, signal.SIGKILL)

    def _has_ended(self) -> bool:
        """Whether the process is no more; ``poll()`` cannot tell while another thread waits for it."""
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError, ValueError):  # that it is gone is told by the other pipe
            while line:
                line = line[self._process.stdin.write(line) or 0 :]

    def _listen(self, reading: int) -> None:
        with os.fdopen(reading, "rb") as answers:
            while (line := answers.readline(MAX_ANSWER_BYTES)).endswith(b"\n"):
                if line == b'{"began": true}\n':
                    self._begin()
                else:
                    self._end(_outcome(line))
        self._end(_lost(self._reaped()))

    def _begin(self) -> None:
        with self._lock:
            job = self._job
        if job is not None:
            job.on_begin()

    def _end(self, outcome: Outcome) -> None:
        with self._lock:
            job, self._job = self._job, None
        if job is not None:
            job.on_end(outcome)

    def _reaped(self) -> str:
        """Waits for the process, and ends what it leaves behind; returns how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_S)
        with self._lock:
            self._is_gone = True
            with contextlib.suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
            code = self._process.wait()
        self._guard.forget(self._process.pid)
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        return f"exited with status {code}" if code >= 0 else f"was ended by {_signal_name(-code)}"


class Guard:
    """The process beside this one that ends agents' processes once this one has ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: set[int] = set()
        self._process = _start_guard()

    def watch(self, group: int) -> None:
        """From now on this process group ends with this process."""
        with self._lock:
            self._watched.add(group)
            self._say(group)

    def forget(self, group: int) -> None:
        """This process group has ended."""
        with self._lock:
            if group in self._watched:
                self._watched.remove(group)
                self._say(-group)

    def close(self) -> None:
        """Ends it, and whatever it still watches."""
        with self._lock:
            self._watched.clear()
            _end_guard(self._process)

    def _say(self, number: int) -> None:
        try:
            _tell(self._process, [number])
        except OSError:  # somebody has ended the guard
            _end_guard(self._process)
            self._process = _start_guard()
            _tell(self._process, self._watched)


def _start_guard() -> subprocess.Popen[bytes]:
    source = Path(__file__).with_name("process_guard.py").read_text(encoding="utf-8")
    command = [sys.executable, "-I", "-S", "-c", source]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, bufsize=0)


def _tell(guard: subprocess.Popen[bytes], numbers: Iterable[int]) -> None:
    assert guard.stdin is not None
    for number in numbers:
        guard.stdin.write(b"%d\n" % number)


def _end_guard(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    with contextlib.suppress(OSError):
        guard.stdin.close()
    guard.wait()


def importable_name(play: str | Play) -> str:
    """The name that another process finds the function by.

    Args:
        play: ``"module:name"``, or the function.

    Raises:
        SettingError: There is no such name.
    """
    if isinstance(play, str):
        return play
    module, qualified = getattr(play, "__module__", None), getattr(play, "__qualname__", None)
    name = f"{module}:{qualified}"
    try:
        is_found = module != "__main__" and find_play(name) is play
    except SettingError:
        is_found = False
    if not is_found:
        raise SettingError(
            f"agent.play={shown(play)} cannot be found by a name in another process, which agent.workers='process' "
            "needs: define it in a module that can be imported, and give 'module:name'."
        )
    return name


def _lost(how: str) -> Outcome:
    # Machines run out of memory, and people kill processes: that is not the agent's doing.
    message = f"the agent's process {how} before the agent returned."
    return Outcome(failure=EnvFailure("raised", message, lost_process=True))


def _outcome(line: bytes) -> Outcome:
    """What a process says has become of a trajectory; untrusted."""
    try:
        said: Any = json.loads(line)
        if "failure" in said:
            kind, message = said["failure"]
            kinds: tuple[FailureKind, ...] = get_args(FailureKind)
            return Outcome(failure=EnvFailure(kinds[kinds.index(kind)], str(message)))
        return Outcome(AgentResult(**said["result"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        message = f"the agent's process answered {shown(line)}, which is no outcome ({type(error).__name__})."
        return Outcome(failure=EnvFailure("invalid", message))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

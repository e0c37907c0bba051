"""Full CPython in a confined process: one interpreter per session, driven over its pipes.

How the process is confined is the business of ``landlock`` and ``bubblewrap``. What comes out of it is not trusted:
its length is bounded, its time is bounded, and all it can forge is its own output: a reply must carry the nonce of its
request, and what is there before a request was made, or a process that has ended meanwhile, costs the session.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import struct
import sys
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from gspo_rllib.envs.sandbox.protocol import ERROR_CHARS, SandboxLimits, SandboxResult, refusal
from gspo_rllib.envs.sandbox.system_calls import confining_filter
from gspo_rllib.errors import EnvError

_NONCE = 16
_REQUEST = struct.Struct(f">{_NONCE}sI")
_REPLY = struct.Struct(f">{_NONCE}sBII")
_TIMED_OUT = 2
_START_SECONDS = 30.0
# The confined loop stops a program by a signal, which keeps what it has printed; a program that ignores the signal is
# killed this much later.
_GRACE_SECONDS = 0.5
_STOP_SECONDS = 5.0


class _Dead(Exception):
    """The process ended, or broke the protocol."""


class _Late(Exception):
    """The process did not answer in time."""


class Process(Protocol):
    """The part of a confined process that a session needs."""

    stdin: Any
    stdout: Any

    @property
    def pid(self) -> int | None:
        """The process's number."""
        ...

    def kill(self) -> None:
        """Kills it and all it has started."""
        ...

    def wait(self, timeout: float | None = None) -> Any:
        """Reaps it."""
        ...


def interpreter(limits: SandboxLimits) -> list[str]:
    """The command line of the confined interpreter.

    Args:
        limits: What a run may use.
    """
    source = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
    # No site, no user site, no current directory; -I would also ignore the hash seed that makes sets repeatable.
    arguments = ["-s", "-S", "-P", "-B", "-c", source]
    limiting = [str(limits.memory_mib), str(limits.seconds), str(limits.output_chars), confining_filter().hex()]
    return [executable(), *arguments, *limiting]


def executable() -> str:
    """The interpreter behind any virtual environment: that environment's own folder is not shown to the sandbox."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def readable_paths() -> list[str]:
    """What an interpreter must read to start: its library and the system's shared libraries."""
    library = os.path.join(sys.base_prefix, "lib")
    wanted = [library, executable(), "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"]
    return [path for path in dict.fromkeys(wanted) if os.path.exists(path)]


@functools.cache
def _launcher(process_id: int) -> ThreadPoolExecutor:
    # A confined process is tied to the life of the thread that started it, so that it never outlives this process; the
    # threads that environments run in come and go, this one stays.
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-launcher")


class CPythonSandbox:
    """A session in a confined CPython process.

    Args:
        backend: Name of the confinement.
        limits: What a run may use.
        launch: Starts the confined interpreter with both pipes open.

    Raises:
        EnvError: The process does not start.
    """

    def __init__(
        self,
        backend: str,
        limits: SandboxLimits,
        launch: Callable[[SandboxLimits], Process],
    ) -> None:
        self.backend = backend
        self._limits = limits
        self._launch = launch
        self._process: Process | None = None
        self._end: Any = None
        self._nonce = bytes(_NONCE)
        self._open()

    def run(self, code: str) -> SandboxResult:
        """Runs code in the session; see ``Sandbox.run``."""
        if refused := refusal(code, self._limits):
            return refused
        spoilt = self._process is not None and self._is_spoilt()
        if spoilt:
            self.close()
        if self._process is None:
            self._open()
        result = self._run(code)
        return replace(result, state_lost=True) if spoilt else result

    def _is_spoilt(self) -> bool:
        """Whether an earlier program has written what nobody has asked for, or has ended the interpreter since."""
        assert self._process is not None
        poll = select.poll()
        poll.register(self._process.stdout.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _run(self, code: str) -> SandboxResult:
        deadline = time.monotonic() + self._limits.seconds + _GRACE_SECONDS
        stopped = f"stopped after {self._limits.seconds:g} s; its variables are lost"
        self._nonce = os.urandom(_NONCE)
        code_bytes = code.encode()
        request = _REQUEST.pack(self._nonce, len(code_bytes)) + code_bytes
        try:
            status, output, error = self._exchange(request, deadline)
        except _Late:
            self.close()
            return SandboxResult("", stopped, timed_out=True, state_lost=True)
        except _Dead:
            self.close()
            return SandboxResult("", "the interpreter died; its variables are lost", state_lost=True)
        if status == _TIMED_OUT:
            self.close()
            return SandboxResult(output, stopped, timed_out=True, state_lost=True)
        if status and error.startswith("MemoryError"):
            # What fills the memory is still held by the program's variables, and would fail every later run.
            self.close()
            return SandboxResult(output, f"{error}; its variables are lost", state_lost=True)
        return SandboxResult(output, error if status else None)

    def close(self) -> None:
        """Kills the process; see ``Sandbox.close``."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _open(self) -> None:
        process = _launcher(os.getpid()).submit(self._launch, self._limits).result()
        self._process = process
        self._nonce = bytes(_NONCE)
        # Ends the process of a sandbox that is dropped without close().
        self._end = weakref.finalize(self, _stop, process)
        for pipe in (process.stdin, process.stdout):
            os.set_blocking(pipe.fileno(), False)
        try:
            self._exchange(b"", time.monotonic() + _START_SECONDS)
        except (_Dead, _Late, OSError) as error:
            self.close()
            raise EnvError(
                f"the {self.backend!r} sandbox did not start its interpreter {executable()}: it must be readable, and "
                "the kernel must allow the confinement. Choose another backend, such as 'monty': "
                "pip install 'gspo-rllib[sandbox]'"
            ) from error

    def _exchange(self, request: bytes, deadline: float) -> tuple[int, str, str]:
        assert self._process is not None
        write_fd, read_fd = self._process.stdin.fileno(), self._process.stdout.fileno()
        # Four bytes is the longest character in UTF-8.
        longest = _REPLY.size + 4 * (self._limits.output_chars + 2 * ERROR_CHARS)
        unsent, reply, expected = memoryview(request), bytearray(), _REPLY.size
        while len(reply) < expected:
            poll = select.poll()
            poll.register(read_fd, select.POLLIN)
            if unsent:
                poll.register(write_fd, select.POLLOUT)
            left = deadline - time.monotonic()
            if left <= 0 or not (ready := poll.poll(left * 1000)):
                raise _Late
            for descriptor, _ in ready:
                try:
                    if descriptor == write_fd:
                        unsent = unsent[os.write(write_fd, unsent) :]
                    elif chunk := os.read(read_fd, expected - len(reply)):
                        reply += chunk
                    else:
                        raise _Dead
                except BlockingIOError:
                    continue
                except OSError as error:
                    raise _Dead from error
            if len(reply) == _REPLY.size == expected:
                nonce, status, output_bytes, error_bytes = _REPLY.unpack(reply)
                expected += output_bytes + error_bytes
                # A program can write replies of its own; a stray one must not pass for that of the next run.
                if expected > longest or nonce != self._nonce:
                    raise _Dead
        body = bytes(reply[_REPLY.size :])
        return status, body[:output_bytes].decode("utf-8", "replace"), body[output_bytes:].decode("utf-8", "replace")


def _stop(process: Process) -> None:
    with contextlib.suppress(OSError):  # It may have ended by itself.
        process.kill()
    process.wait(timeout=_STOP_SECONDS)
    for pipe in (process.stdin, process.stdout):
        pipe.close()

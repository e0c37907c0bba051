"""The default sandbox: ``pydantic-monty``, an interpreter of a Python subset that has no way out built into it.

It runs in worker processes of its own, shared by every session of this process through one pool. It knows neither
generators nor third-party packages; a session starts in 0.3 ms and a run costs 0.05 ms. The clock stands still and
``random`` is seeded, so the same code prints the same text in every member of a group.
"""

from __future__ import annotations

import atexit
import datetime
import functools
import os
import re
import threading
import weakref
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from gspo_rllib.envs.sandbox.protocol import FLOOD_CHARS, MEBIBYTE, SandboxLimits, SandboxResult, error_line, refusal
from gspo_rllib.errors import EnvError

_DIED = "the interpreter died; its variables are lost"
_MAX_SESSIONS = 4096
# A session is a worker of 21 MB for as long as it is open; waiting for one of a full pool would be a silent deadlock
# wherever a single thread drives many environments.
_WAIT_FOR_WORKER = 10.0
_STANDING_CLOCK = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)

_pool_lock = threading.Lock()


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot be used here, or None."""
    if find_spec("pydantic_monty") is None:
        return "pydantic-monty is not installed"
    # Its interface was renamed at 1.x, and what limits are called with it.
    installed = version("pydantic-monty")
    supported = re.match(r"1\.([0-9]+)", installed)
    return None if supported and int(supported[1]) >= 4 else f"pydantic-monty is {installed}, not 1.4 to 1.x"


@functools.cache
def _pool(process_id: int) -> Any:
    # By process: the workers of a pool answer the process that started them, not one forked from it.
    import pydantic_monty

    pool = pydantic_monty.Monty(max_processes=_MAX_SESSIONS, checkout_timeout=_WAIT_FOR_WORKER)
    pool.__enter__()
    atexit.register(pool.__exit__, None, None, None)
    return pool


class _Printed:
    """Keeps the first characters that are printed, and stops a program that will not stop printing."""

    def __init__(self, kept_chars: int) -> None:
        self._left = kept_chars
        self._seen = 0
        self._parts: list[str] = []

    def __call__(self, stream: str, text: str) -> None:
        self._seen += len(text)
        if self._left > 0:
            self._parts.append(text[: self._left])
            self._left -= len(text)
        if self._seen > FLOOD_CHARS:
            raise OverflowError(f"more than {FLOOD_CHARS} characters printed")

    def text(self) -> str:
        return "".join(self._parts)


class MontySandbox:
    """A session in a monty worker.

    Args:
        limits: What a run may use; its memory limit counts the program's own objects.

    Raises:
        EnvError: ``pydantic-monty`` is not installed, or no worker could be started.

    Example:
        >>> sandbox = MontySandbox(SandboxLimits())
        >>> sandbox.run("x = 6 * 7")
        SandboxResult(output='', error=None, timed_out=False, state_lost=False)
        >>> sandbox.run("print(x)").output
        '42\\n'
        >>> sandbox.run("open('/etc/passwd')").error
        "PermissionError: Permission denied: '/etc/passwd' (line 1)"
        >>> sandbox.close()
    """

    backend = "monty"

    def __init__(self, limits: SandboxLimits) -> None:
        if reason := unavailable():
            raise EnvError(f"{reason}. Install it: pip install 'gspo-rllib[sandbox]'")
        self._limits = limits
        self._session: Any = None
        self._end: Any = None
        self._open()

    def run(self, code: str) -> SandboxResult:
        """Runs code in the session; see ``Sandbox.run``."""
        import pydantic_monty

        if refused := refusal(code, self._limits):
            return refused
        if self._session is None:
            self._open()
        printed = _Printed(self._limits.output_chars)
        try:
            # The value of a last expression would be carried into this process; a statement has none.
            self._session.feed_run(f"{code}\npass", print_callback=printed)
        except pydantic_monty.MontyCrashedError as error:
            self.close()
            return SandboxResult(printed.text(), _DIED, timed_out=error.timed_out, state_lost=True)
        except pydantic_monty.MontyError as error:
            return self._failed(error, printed.text())
        return SandboxResult(printed.text())

    def close(self) -> None:
        """Hands the worker back; see ``Sandbox.close``."""
        if self._end is not None:
            self._end()
        self._session = self._end = None

    def _open(self) -> None:
        limits = {
            "max_feed_duration_secs": float(self._limits.seconds),
            "max_memory": self._limits.memory_mib * MEBIBYTE,
        }
        policy = {"sleep": "zero", "random_start": {"seed": 0}, "datetime": _STANDING_CLOCK}
        try:
            with _pool_lock:
                pool = _pool(os.getpid())
            session = pool.checkout(limits=limits, os_policy=policy)
            session.__enter__()
        except (OSError, RuntimeError, TimeoutError) as error:
            raise EnvError(
                f"pydantic-monty could not start a worker: {error}. Close sandboxes that are no longer used, or allow "
                "this process more memory and processes."
            ) from error
        self._session = session
        # Ends the session of a sandbox that is dropped without close().
        self._end = weakref.finalize(self, session.__exit__, None, None, None)

    def _failed(self, error: Any, output: str) -> SandboxResult:
        cause = error.exception()
        frames = error.traceback() if hasattr(error, "traceback") else []
        line = frames[-1].line if frames else None
        if not isinstance(cause, TimeoutError):
            return SandboxResult(output, error_line(type(cause).__name__, str(cause), line))
        # Its own documentation: a session that was stopped by time guarantees nothing about its objects.
        self.close()
        stopped = f"stopped after {self._limits.seconds:g} s; its variables are lost"
        return SandboxResult(output, stopped, timed_out=True, state_lost=True)

"""vLLM's core in a process of its own: has calls fail once that process has ended.

vLLM's synchronous client waits for an answer without end when the core is killed, and asks it in vain afterwards.
"""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from functools import wraps
from multiprocessing import connection
from typing import Any

from gspo_rllib.errors import EngineError, EngineLostError

_JOIN_S = 2.0  # a process that said goodbye may take a moment to end


def killed_at_start(error: Exception) -> EngineLostError | None:
    """The error behind one of vLLM's start where a signal ended the core that was being built; else None."""
    found = re.search(r"Failed core proc\(s\): \{[^}]*: -(\d+)", str(error))
    return _killed(int(found[1])) if found else None


def _killed(number: int) -> EngineLostError:
    return EngineLostError(
        f"the process of vLLM's engine core (EngineCore) was ended by {signal.Signals(number).name}; where nobody did "
        "that, the machine ran out of memory."
    )


class WatchedCore:
    """vLLM's client of its core, with the same attributes, whose calls raise when the core has ended.

    Args:
        client: A ``SyncMPClient``, with one core.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._process = client.resources.engine_manager.processes[0]
        self._closing = False
        self._ended: EngineError | None = None
        threading.Thread(target=self._watch, name="gspo-engine-core-watch", daemon=True).start()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        return self._watched(value) if callable(value) else value

    def shutdown(self, timeout: float | None = None) -> None:
        """Ends the core; see vLLM."""
        self._closing = True
        self._client.shutdown(timeout)

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                if self._ended is not None:
                    raise self._ended
                return call(*args, **kwargs)
            except Exception as error:
                patience_s = _JOIN_S if self._client.resources.engine_dead else 0.0
                if isinstance(error, EngineError) or not connection.wait([self._process.sentinel], patience_s):
                    raise
                raise self._end() from error

        return watched

    def _end(self) -> EngineError:
        until = time.monotonic() + _JOIN_S
        # A thread of vLLM's asks as well, and whoever asks second is told a moment later.
        while (code := self._process.exitcode) is None and time.monotonic() < until:
            time.sleep(0.01)
        if code is not None and code < 0:
            return _killed(-code)
        return EngineError(
            f"the process of vLLM's engine core (EngineCore, {self._process.pid}) ended with exit code {code}; what it "
            "wrote before says why."
        )

    def _watch(self) -> None:
        """Answers whoever waits for the core when it has ended."""
        connection.wait([self._process.sentinel])
        if self._closing:
            return
        # In this order: who asks later is refused, and whoever asked before waits for one of the two.
        self._ended = end = self._end()
        self._client.resources.engine_dead = True
        for future in list(self._client.utility_results.values()):
            if not future.done():
                future.set_exception(end)
        self._client.outputs_queue.put(end)

"""One trajectory of an agent, played in a thread and an event loop of its own.

So an agent that blocks, or never ends, holds up nobody else: its thread is abandoned, as a hung environment's is.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gspo_rllib.agents.messages import RequestRefused
from gspo_rllib.env_pool.calls import EnvFailure
from gspo_rllib.errors import described


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the function ended.

    Attributes:
        returned: What it returned; untrusted.
        failure: What it raised, if it did.
    """

    returned: Any = None
    failure: EnvFailure | None = None


class AgentThread:
    """Runs an asynchronous function to its end.

    Args:
        play: The function; called in the thread.
        on_end: Called in the thread with what became of it, unless the process ends first.
        name: Name of the thread.
    """

    def __init__(self, play: Callable[[], Awaitable[Any]], on_end: Callable[[Outcome], object], *, name: str) -> None:
        self._play = play
        self._on_end = on_end
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelled = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def cancel(self) -> bool:
        """Asks the agent to stop where it next waits for something; returns at once, always True."""
        with self._lock:
            asked_before, self._cancelled = self._cancelled, True
            if not asked_before and self._loop is not None and self._task is not None:
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    self._loop.call_soon_threadsafe(self._task.cancel)
        return True

    def _run(self) -> None:
        # In a thread of its own even a KeyboardInterrupt is the agent's: people interrupt the main thread.
        with contextlib.suppress(BaseException), asyncio.Runner() as runner:
            try:
                outcome = Outcome(runner.run(self._main()))
            except BaseException as error:  # noqa: BLE001, foreign code; what it raises fails this trajectory alone
                outcome = Outcome(failure=_failure(error))
            # Before the loop is closed: what the agent left running may refuse to end.
            self._on_end(outcome)

    async def _main(self) -> Any:
        with self._lock:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            if self._cancelled:
                raise asyncio.CancelledError
        return await self._play()


def _failure(error: BaseException) -> EnvFailure:
    if isinstance(error, RequestRefused) and error.code == "context_length_exceeded":
        return EnvFailure("context", f"the agent let this pass: {error}")
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return EnvFailure("raised", f"the agent raised {described(error)}{where}")

"""Places for agents, and what they ask of the thread that drives the engine.

Agents run in threads of their own. What they want done is posted here as a function, and the thread that advances the
rollout runs it, so that the engine, the groups and the counts belong to one thread.
"""

from __future__ import annotations

import queue
from collections.abc import Callable

import gymnasium as gym

from gspo_rllib.agents.endpoint import Endpoint
from gspo_rllib.agents.workers import Workers

Posted = Callable[[], object]


class AgentSlots:
    """A fixed number of places for agents.

    Args:
        size: Trajectories that are played at a time.
        workers: Play them; closed with the places.
        endpoint: Serves them for others, too, and is theirs to stop; None makes one that is stopped with the places.

    Attributes:
        endpoint: Serves the sessions of agents that ask for an address.
        workers: Play the trajectories.
    """

    def __init__(self, size: int, workers: Workers, endpoint: Endpoint | None = None) -> None:
        self.endpoint = Endpoint() if endpoint is None else endpoint
        self.workers = workers
        self._owns_endpoint = endpoint is None
        self._posted: queue.SimpleQueue[Posted] = queue.SimpleQueue()
        self._free = list(range(size - 1, -1, -1))

    def acquire(self) -> int | None:
        """Takes a free place; None when all are in use."""
        return self._free.pop() if self._free else None

    def release(self, slot: int) -> None:
        """Gives a place back."""
        self._free.append(slot)

    def post(self, function: Posted) -> None:
        """Has a function run by the thread that advances the rollout; may be called from any thread."""
        self._posted.put(function)

    def run_posted(self, timeout_s: float) -> bool:
        """Runs what was posted.

        Args:
            timeout_s: Longest to sleep until something is; 0 does not sleep.

        Returns:
            Whether there was anything, a ``wake`` included.
        """
        any_posted = False
        try:
            function = self._posted.get(timeout=timeout_s) if timeout_s > 0 else self._posted.get_nowait()
            while True:
                any_posted = True
                function()
                function = self._posted.get_nowait()
        except queue.Empty:
            return any_posted

    def wake(self) -> None:
        """Ends a sleep of ``run_posted``, or the next one; may be called from any thread."""
        self.post(lambda: None)

    def env(self, slot: int) -> gym.Env | None:
        """An agent has no environment that callbacks could be given."""
        return None

    def close(self) -> None:
        """Ends the workers and the server; a rollout that ends abandons its agents itself."""
        self.workers.close()
        if self._owns_endpoint:
            self.endpoint.stop()

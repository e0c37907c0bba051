"""Which session a key opens, and the server that asks, started when the first agent needs it."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from gspo_rllib.agents.door import Door, OpenSession
from gspo_rllib.agents.messages import RequestRefused, SessionEnded
from gspo_rllib.errors import SettingError

if TYPE_CHECKING:
    from gspo_rllib.agents.server import AgentServer

MOST_REMEMBERED = 100_000
"""Keys of ended sessions that are told from keys that never were."""


class Endpoint:
    """The sessions of one env runner's agents, by key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, OpenSession] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._server: AgentServer | None = None
        self._stopped = False

    def open(self, door: Door) -> str:
        """Makes a key of 128 random bits for a session."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._open[key] = OpenSession(door)
        return key

    def end(self, key: str) -> None:
        """From now on the key is answered with 410."""
        with self._lock:
            if self._open.pop(key, None) is not None:
                self._ended[key] = None
            while len(self._ended) > MOST_REMEMBERED:
                self._ended.popitem(last=False)

    def find(self, key: str) -> OpenSession:
        """The session of a key.

        Raises:
            SessionEnded: It has ended.
            RequestRefused: There never was one.
        """
        with self._lock:
            if key in self._open:
                return self._open[key]
            if key in self._ended:
                raise SessionEnded
        raise RequestRefused(
            "this key opens no session; send the one that the trajectory was given as the API key.",
            code="invalid_api_key",
            status=401,
        )

    def url(self) -> str:
        """Where the server listens, e.g. ``http://127.0.0.1:40001/v1``; started by the first call.

        Raises:
            SettingError: The server's packages are not installed, or this endpoint was stopped.
        """
        with self._lock:
            if self._stopped:
                raise SettingError("the env runner of this session was stopped; its address is gone.")
            if self._server is None:
                try:
                    from gspo_rllib.agents.server import AgentServer
                except ModuleNotFoundError as error:
                    raise SettingError(
                        f"an agent asked for an address, which needs the package {error.name!r}: pip install "
                        "'gspo-rllib[agents]'. Without it, agents can call session.chat()."
                    ) from error
                self._server = AgentServer(self.find)
            return self._server.url

    def stop(self) -> None:
        """Ends all sessions and the server; returns at once."""
        for key in list(self._open):
            self.end(key)
        with self._lock:
            self._stopped = True
            server, self._server = self._server, None
        if server is not None:
            server.stop()

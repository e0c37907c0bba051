"""Which session a key opens, and the server that asks, started when the first agent needs it."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from gspo_rllib.agents.address import LOOPBACK, MoreRoutes, check_server_packages
from gspo_rllib.agents.door import Door, OpenSession
from gspo_rllib.agents.messages import RequestRefused, SessionEnded
from gspo_rllib.errors import SettingError

if TYPE_CHECKING:
    from gspo_rllib.agents.server import AgentServer

MOST_REMEMBERED = 100_000
"""Keys of ended sessions that are told from keys that never were."""


class Endpoint:
    """The sessions of one env runner's agents, by key.

    Args:
        host: IP address that the server listens on.
        more_routes: What the server answers beside sessions' calls; None for nothing.
    """

    def __init__(self, host: str = LOOPBACK, more_routes: MoreRoutes | None = None) -> None:
        self._host = host
        self._more_routes = more_routes
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
            SettingError: The server's packages are not installed, it cannot listen there, or this endpoint was stopped.
        """
        with self._lock:
            if self._stopped:
                raise SettingError("the env runner of this session was stopped; its address is gone.")
            if self._server is None:
                check_server_packages("an agent that asks for an address")
                from gspo_rllib.agents.server import AgentServer

                try:
                    self._server = AgentServer(self.find, host=self._host, more_routes=self._more_routes)
                except OSError as error:
                    raise SettingError(f"agents cannot be served on {self._host}: {error}.") from error
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

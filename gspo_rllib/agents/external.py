"""Agents that somebody else runs: one server for each env runner, and how a harness outside finds it and is let in.

Nothing here starts code of a user's. The token that opens a lobby comes from the environment of the process, or is made
here and written to the address file alone; it is in no setting, so in no checkpoint and no record of a run.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import secrets
import socket
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gspo_rllib.agents.endpoint import Endpoint
from gspo_rllib.agents.lobby import Lobby, Outside
from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.errors import SettingError

logger = logging.getLogger("gspo_rllib")

TOKEN_VARIABLE = "GSPO_RLLIB_AGENT_TOKEN"
SHORTEST_TOKEN = 22
"""Characters; 128 random bits have as many in base64."""


class ExternalDoor:
    """The lobby and the server of one env runner.

    Args:
        agent: The agent's settings.
        name: What the env runner is called in the log and, with a few random digits, in its folder of addresses: trials
            of a study may share that, and each has runners of the same names.

    Attributes:
        lobby: Where trajectories wait.
        endpoint: Serves their sessions.
        url: Base URL for harnesses; None until ``open``.

    Raises:
        SettingError: Nobody could be let in, or nobody may be; see ``check_external``.
    """

    def __init__(self, agent: AgentSettings, *, name: str) -> None:
        check_external(agent)
        token = os.environ.get(TOKEN_VARIABLE)
        self.lobby = Lobby(agent.trajectory_timeout_s)
        self.url: str | None = None
        made = token or secrets.token_urlsafe(16)
        self._outside = Outside(self.lobby, made, agent.trajectory_timeout_s, agent.idle_timeout_s)
        self.endpoint = Endpoint(agent.host, self._routes)
        self._name = name
        self._shows_token = token is None
        unique = f"{name}-{secrets.token_hex(3)}.json"
        self._file = None if agent.addresses is None else Path(agent.addresses) / unique
        self._taken_back: Callable[[], object] = _do_nothing

    def open(self) -> None:
        """Starts the server and says where it is, once.

        Raises:
            SettingError: It cannot listen there, its packages are not installed, or the address cannot be written.
        """
        if self.url is not None:
            return
        url = self.endpoint.url()
        if self._file is not None:
            self._write(self._file, {"url": url} | ({"token": self._outside.token} if self._shows_token else {}))
            # Also where a process ends without having stopped its env runner: a harness would wait for it for ever.
            self._taken_back = weakref.finalize(self, _remove, self._file.absolute(), os.getpid())
        self.url = url
        logger.warning("Agents are awaited at %s (%s): POST /sessions there with the admin token.", url, self._name)

    def close(self) -> None:
        """Ends the server and takes its address back; returns at once."""
        self.lobby.shut()
        self.endpoint.stop()
        self._taken_back()

    def _routes(self, read_body: Any, key_of: Any) -> Sequence[Any]:
        from gspo_rllib.agents.external_routes import external_routes  # loads starlette

        return external_routes(self._outside, read_body, key_of)

    def _write(self, file: Path, address: dict[str, str]) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            _remove_dead(file.parent)
            descriptor, new = tempfile.mkstemp(dir=file.parent, prefix=".", suffix=".new")  # for this user's eyes only
            with os.fdopen(descriptor, "w") as writing:
                json.dump(address, writing)
            os.replace(new, file)
        except OSError as error:
            raise SettingError(
                f"agent.addresses={str(file.parent)!r}: {file.name} cannot be written: {error}."
            ) from error


def check_external(agent: AgentSettings) -> None:
    """Refuses a door that would be open to everybody, or to nobody.

    Raises:
        SettingError: The address is none, others could reach it and there is no token, or nobody could learn the token.
    """
    token, host = os.environ.get(TOKEN_VARIABLE), _checked_host(agent.host)
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise SettingError(
            f"the environment variable {TOKEN_VARIABLE} holds {len(token)} characters; it must hold at least "
            f"{SHORTEST_TOKEN} printable ASCII characters, for example those of `openssl rand -hex 16`."
        )
    if token is None and not host.is_loopback:
        raise SettingError(
            f"agent.host={agent.host!r} can be reached from other machines, which needs an admin token: set the "
            f"environment variable {TOKEN_VARIABLE} for every process of the run, or keep the default host."
        )
    if agent.addresses is not None and (not agent.addresses or Path(agent.addresses).is_file()):
        raise SettingError(f"agent.addresses={agent.addresses!r} is no folder; name one, for example 'agents'.")
    if token is None and agent.addresses is None:
        raise SettingError(
            "agent.workers='external': nobody could learn the admin token. Name a folder for the addresses "
            f"(addresses='agents') and it is written there, or set the environment variable {TOKEN_VARIABLE}."
        )


def _checked_host(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        return ipaddress.ip_address(host)
    except ValueError as error:
        raise SettingError(f"agent.host={host!r} is no IP address, such as '127.0.0.1' or '10.0.0.5'.") from error


def _remove(file: Path, process: int) -> None:
    """Removes an address, in the process that wrote it: a copy of that process may end earlier."""
    if os.getpid() == process:
        with contextlib.suppress(OSError):
            file.unlink()


def _do_nothing() -> None:
    pass


def _remove_dead(folder: Path) -> None:
    """Removes the addresses of env runners that were killed: nobody listens there."""
    for file in folder.glob("*runner-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            address = urlsplit(json.loads(file.read_text())["url"])
            try:
                socket.create_connection((address.hostname, address.port), timeout=1.0).close()
            except ConnectionRefusedError:
                file.unlink()

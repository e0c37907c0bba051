"""Where a server listens, and what it takes to have one."""

from __future__ import annotations

import importlib.util
import ipaddress
import socket
from collections.abc import Callable, Sequence
from typing import Any

from gspo_rllib.errors import SettingError

LOOPBACK = "127.0.0.1"

MoreRoutes = Callable[[Any, Any], Sequence[Any]]
"""What reads a body within its limits and what finds a request's key -> Starlette's routes."""


def in_url(host: str) -> str:
    """The address that clients reach a server at, as it is written in a URL.

    Args:
        host: The IP address it listens on; of all addresses of this machine, one that others reach is chosen.

    Example:
        >>> in_url("127.0.0.1"), in_url("::1")
        ('127.0.0.1', '[::1]')
    """
    address = ipaddress.ip_address(host)
    if address.is_unspecified:
        # Which of its addresses this machine talks to others with; nothing is sent to the one that is asked about.
        family, elsewhere = (socket.AF_INET, "192.0.2.1") if address.version == 4 else (socket.AF_INET6, "2001:db8::1")
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            try:
                asking.connect((elsewhere, 9))
                host = asking.getsockname()[0]
            except OSError:  # it talks to no other
                host = LOOPBACK if address.version == 4 else "::1"
    return f"[{host}]" if ":" in host else host


def check_server_packages(needed_by: str) -> None:
    """Refuses what needs the server where its packages are not installed.

    Raises:
        SettingError: One of them is missing.
    """
    for name in ("starlette", "uvicorn"):
        if importlib.util.find_spec(name) is None:
            raise SettingError(
                f"{needed_by} needs the package {name!r}: pip install 'gspo-rllib[agents]'. Without it, agents in "
                "threads can call session.chat()."
            )

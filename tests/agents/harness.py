"""Harnesses outside: plain HTTP and a policy asked one question, as far as most tests need one, and the page's own."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def post(url: str, key: str, body: Any = None) -> tuple[int, Any]:
    """Status and JSON of one POST; bytes are sent as they are."""
    address = urlsplit(url)
    raw = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
    connection = http.client.HTTPConnection(address.netloc, timeout=60)
    try:
        connection.request("POST", address.path, raw, {"authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status >= 400:
            assert answer.getheader("x-should-retry") == "false"
        return answer.status, json.loads(text) if text else None
    finally:
        connection.close()


class Harness:
    """What one env runner says in its folder of addresses.

    Attributes:
        url: Base URL of its server.
        token: The admin token; "" where it is not written there.
    """

    def __init__(self, file: Path) -> None:
        address = json.loads(file.read_text())
        self.url: str = address["url"]
        self.token: str = address.get("token", "")

    def take(self, wait_s: float = 20.0) -> dict[str, Any]:
        """The next session."""
        status, session = post(f"{self.url}/sessions", self.token, {"wait_s": wait_s})
        assert status == 200
        return session  # type: ignore[no-any-return]

    def settle(self, session: dict[str, Any], how: str = "finish", **body: Any) -> tuple[int, Any]:
        """Status and JSON of a finish or a fail."""
        return post(f"{self.url}/sessions/{session['id']}/{how}", self.token, body)

    def chat(self, session: dict[str, Any], text: str = "hello") -> tuple[int, Any]:
        """Status and JSON of one call of a session."""
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 2}
        return post(f"{session['base_url']}/chat/completions", session["api_key"], body)

    def play(self, reward: float = 1.0) -> dict[str, Any]:
        """Takes a session and plays it to its end."""
        session = self.take()
        assert self.chat(session)[0] == 200
        assert self.settle(session, reward=reward) == (200, {"settled": True})
        return session


_PAGE = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
(_HARNESS,) = [block for block in re.findall(r"^```python\n(.*?)^```", _PAGE, flags=re.M | re.S) if "sys.argv" in block]


@contextlib.contextmanager
def page_harness(folder: Path) -> Iterator[None]:
    """The harness of docs/agents.md, without this package, in a process of its own.

    Args:
        folder: The addresses are in its folder ``agents``.
    """
    (folder / "harness.py").write_text(_HARNESS)
    process = subprocess.Popen([sys.executable, "-I", "harness.py", "agents"], cwd=folder, stderr=subprocess.PIPE)
    try:
        yield
    finally:
        process.kill()
        _, errors = process.communicate()
        assert errors == b""

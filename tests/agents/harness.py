"""A harness outside, as far as tests need one: plain HTTP, and a policy asked one question."""

from __future__ import annotations

import http.client
import json
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

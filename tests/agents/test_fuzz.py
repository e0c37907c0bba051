"""Requests meant to break the server, in every dialect: none is its own fault, and it goes on serving."""

from __future__ import annotations

import http.client
import json
import random
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from benchmarks.agent_fuzz import DIALECTS, fuzzed
from gspo_rllib.agents.rendering import MessageRenderer
from tests.agents.serving import Served, served


@pytest.fixture
def one(rich_renderer: MessageRenderer) -> Iterator[Served]:
    with served(rich_renderer) as session:
        session.script = ['<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'] * 10_000
        yield session


COUNTS = [(path, 600 if path == "/v1/chat/completions" else 300, 0) for path in DIALECTS]
MANY = [
    pytest.param(path, 10_000 if path == "/v1/chat/completions" else 5000, 1, marks=pytest.mark.slow)
    for path in DIALECTS
]


@pytest.mark.parametrize(("path", "count", "seed"), [*COUNTS, *MANY])
def test_no_request_is_the_servers_own_fault(one: Served, path: str, count: int, seed: int) -> None:
    sound, _ = DIALECTS[path]
    draw = random.Random(seed)
    connection = http.client.HTTPConnection(urlsplit(one.endpoint.url()).netloc, timeout=30)
    headers = {"authorization": f"Bearer {one.key}"}
    seen = set()
    for raw in [json.dumps(sound).encode()] + [fuzzed(draw, path) for _ in range(count)]:
        connection.request("POST", path, raw, headers)
        answer = connection.getresponse()
        text = answer.read()
        seen.add(answer.status)
        assert answer.status in (200, 400), (raw, text)
        if answer.status == 400:
            assert json.loads(text)["error"]["message"], raw
        elif answer.getheader("content-type", "").startswith("text/event-stream"):
            assert all(json.loads(line[6:]) for line in text.decode().splitlines()
                       if line.startswith("data: ") and line != "data: [DONE]"), raw  # fmt: skip
    assert seen == {200, 400}
    assert one.post(sound, path)[0] == 200

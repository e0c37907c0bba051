"""Requests meant to break the server, in every dialect: none is its own fault, and it goes on serving."""

from __future__ import annotations

import copy
import http.client
import json
import random
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from gspo_rllib.agents.rendering import MessageRenderer
from tests.agents.serving import Served, served

JUNK = [None, True, 0, -1, 10**30, 1.5, "", "x", "\ud800\0", [], [[]], [None], {}, {"a": {}}, [1, "b"], ["x"] * 20]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
SHARED = ["model", "stream", "temperature", "top_p", "user", "metadata", "tools", "tool_choice", "chat_template_kwargs"]
CALL = {"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}}
TEXT = {"type": "text", "text": "a"}

DIALECTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "/v1/chat/completions": (
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [TEXT]},
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "content": "3", "tool_call_id": "a"},
            ],
            "tools": [{"type": "function", "function": {"name": "add", "parameters": SCHEMA}}],
        },
        [
            "messages", "max_tokens", "max_completion_tokens", "n", "stop", "stream_options", "seed", "logprobs",
            "top_logprobs", "response_format", "logit_bias", "parallel_tool_calls", "return_token_ids", "audio",
            "functions",
        ],
    ),
    "/v1/responses": (
        {
            "instructions": "s",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "reasoning", "id": "r", "summary": []},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
                {"type": "function_call", "call_id": "a", "name": "add", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "a", "output": "3"},
            ],
            "tools": [{"type": "function", "name": "add", "parameters": SCHEMA}],
        },
        [
            "input", "instructions", "max_output_tokens", "include", "text", "reasoning", "previous_response_id",
            "conversation", "prompt", "background", "store", "truncation", "top_logprobs",
        ],
    ),
    "/v1/completions": (
        {"prompt": [[5, 6, 7]]},
        ["prompt", "max_tokens", "n", "stop", "stream_options", "logprobs", "echo", "suffix", "best_of", "seed"],
    ),
    "/v1/messages": (
        {
            "system": [TEXT],
            "max_tokens": 9,
            "messages": [
                {"role": "user", "content": [TEXT]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "t", "signature": "s"},
                        TEXT,
                        {"type": "tool_use", "id": "a", "name": "add", "input": {"a": 1}},
                    ],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [TEXT]}, TEXT]},
            ],
            "tools": [{"name": "add", "input_schema": SCHEMA}],
        },
        ["messages", "system", "max_tokens", "stop_sequences", "thinking", "output_config", "mcp_servers", "container"],
    ),
}  # fmt: skip


@pytest.fixture
def one(rich_renderer: MessageRenderer) -> Iterator[Served]:
    with served(rich_renderer) as session:
        session.script = ['<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'] * 10_000
        yield session


def _fuzzed(random: random.Random, sound: dict[str, Any], fields: list[str]) -> bytes:
    """A call with a few things wrong with it, at any depth."""
    body = copy.deepcopy(sound)
    for _ in range(random.randint(1, 3)):
        place: Any = body
        key: Any = random.choice(fields)
        while random.random() < 0.7:
            inner = place.get(key) if isinstance(place, dict) else place[key]
            if not isinstance(inner, dict | list) or not inner:
                break
            place = inner
            key = random.choice(list(inner)) if isinstance(inner, dict) else random.randrange(len(inner))
        place[key] = copy.deepcopy(random.choice(JUNK))
    raw = json.dumps(body).encode()
    if random.random() < 0.1:
        raw = raw[: random.randrange(len(raw))] + bytes([random.randrange(256)])
    return raw


COUNTS = [(path, 600 if path == "/v1/chat/completions" else 300, 0) for path in DIALECTS]
MANY = [
    pytest.param(path, 10_000 if path == "/v1/chat/completions" else 5000, 1, marks=pytest.mark.slow)
    for path in DIALECTS
]


@pytest.mark.parametrize(("path", "count", "seed"), [*COUNTS, *MANY])
def test_no_request_is_the_servers_own_fault(one: Served, path: str, count: int, seed: int) -> None:
    sound, fields = DIALECTS[path]
    draw = random.Random(seed)
    connection = http.client.HTTPConnection(urlsplit(one.endpoint.url()).netloc, timeout=30)
    headers = {"authorization": f"Bearer {one.key}"}
    seen = set()
    for raw in [json.dumps(sound).encode()] + [_fuzzed(draw, sound, [*fields, *SHARED]) for _ in range(count)]:
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

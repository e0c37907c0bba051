"""Calls of the agents' server with a few things wrong with them, at any depth, in every dialect."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    "",
    "x",
    "\ud800\0",
    [],
    [[]],
    [None],
    {},
    {"a": {}},
    [1, "b"],
    ["x"] * 20,
    json.loads('{"a":[' * 30 + "]}" * 30),
    json.loads('{"a":[' * 200 + "]}" * 200),
]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
SHARED = [
    "model", "stream", "temperature", "top_p", "user", "metadata", "tools", "tool_choice", "chat_template_kwargs",
    "chat_template", "documents", "reasoning_effort", "\ud800",
]  # fmt: skip
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
"""Path of each dialect -> a call that is in order, and the fields that it knows."""


def fuzzed(draw: random.Random, path: str) -> bytes:
    """A broken call.

    Args:
        draw: What is wrong with it.
        path: Dialect, one of ``DIALECTS``.
    """
    sound, own = DIALECTS[path]
    fields = [*own, *SHARED]
    body = copy.deepcopy(sound)
    for _ in range(draw.randint(1, 3)):
        place: Any = body
        key: Any = draw.choice(fields)
        while draw.random() < 0.7:
            inner = place.get(key) if isinstance(place, dict) else place[key]
            if not isinstance(inner, dict | list) or not inner:
                break
            place = inner
            key = draw.choice(list(inner)) if isinstance(inner, dict) else draw.randrange(len(inner))
        place[key] = copy.deepcopy(draw.choice(JUNK))
    raw = json.dumps(body).encode()
    if draw.random() < 0.05:  # says a field twice
        raw = raw[:-1] + b', "model": "a", "model": "b"}'
    if draw.random() < 0.1:
        raw = raw[: draw.randrange(len(raw))] + bytes([draw.randrange(256)])
    return raw

"""The dialect of ``/v1/messages``, Anthropic's: contents are blocks, and results of tools are the user's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gspo_rllib.agents.dialect import (
    Asked,
    Dialect,
    flag,
    model_name,
    named_event,
    some_tools,
    template_kwargs,
    token_counts,
)
from gspo_rllib.agents.fields import Fields, tools_are_off
from gspo_rllib.agents.messages import (
    Message,
    RequestRefused,
    check_says_something,
    checked_max_tokens,
    checked_stop,
    sound_text,
    text_of,
    tool_call,
)
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.replies import stop_string_in
from gspo_rllib.agents.session import Call, ChatRequest
from gspo_rllib.errors import shown

FIELDS = Fields(
    read=("model", "messages", "system", "tools", "max_tokens", "stop_sequences", "chat_template_kwargs", "stream"),
    refused={
        "container": "nothing is run for a client",
        "mcp_servers": "call the tools in the agent",
        "thread": "nothing is stored between calls: send the whole conversation",
    },
    passed_over=("context_management",),
    harmless=("betas", "cache_control", "diagnostics", "inference_geo"),
)
_ROLES = ("user", "assistant", "system")
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 413: "request_too_large"}
_KINDS |= {408: "timeout_error", 410: "invalid_request_error", 429: "rate_limit_error"}
_STOP_REASONS = {"tool_calls": "tool_use", "length": "max_tokens"}
_BLOCKS = {"user": "text, tool_result", "assistant": "text, tool_use, thinking", "system": "text"}


def read_request(body: Mapping[str, Any], renderer: MessageRenderer) -> Asked:
    """Reads a body.

    Args:
        body: The body, untrusted.
        renderer: Knows the variables of the chat template.

    Raises:
        RequestRefused: It is no call that can be answered.
    """
    passed_over = FIELDS.check(body)
    kwargs, unread = template_kwargs(body, renderer)
    return Asked(
        ChatRequest(
            _checked_messages(body.get("system"), body.get("messages")),
            _checked_tools(body.get("tools")),
            max_tokens=checked_max_tokens(body.get("max_tokens"), "max_tokens"),
            stop=checked_stop(body.get("stop_sequences"), "stop_sequences"),
            template_kwargs=kwargs,
            reads_tool_calls=not tools_are_off(body),
        ),
        model=model_name(body),
        stream=flag(body, "stream"),
        passed_over=(*passed_over, *unread),
    )


def message(request: Asked, calls: Sequence[Call], renderer: MessageRenderer) -> dict[str, Any]:
    """The whole answer.

    Args:
        request: What was asked.
        calls: The one reply.
        renderer: Writes token ids as text.
    """
    (call,) = calls
    reply = call.reply
    content: list[dict[str, Any]] = []
    if reply.content or not reply.tool_calls:
        content.append({"type": "text", "text": reply.content})
    for tool in reply.tool_calls:
        arguments = json.loads(tool["function"]["arguments"])
        content.append({"type": "tool_use", "id": tool["id"], "name": tool["function"]["name"], "input": arguments})
    stopped_at = stop_string_in(call.text, request.chat.stop) if reply.finish_reason == "stop" else None
    prompt, sampled = token_counts(calls)
    return {
        "id": f"msg_{call.number}",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": content,
        "stop_reason": _STOP_REASONS.get(reply.finish_reason, "end_turn" if stopped_at is None else "stop_sequence"),
        "stop_sequence": stopped_at,
        "usage": {"input_tokens": prompt, "output_tokens": sampled},
    }


def events(request: Asked, calls: Sequence[Call], renderer: MessageRenderer) -> Iterator[str]:
    """The answer as server-sent events, in the order of Anthropic's."""
    whole = message(request, calls, renderer)
    usage = whole["usage"]
    begun: dict[str, Any] = {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "output_tokens": 0},
    }
    yield named_event("message_start", {"message": {**whole, **begun}})
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            empty, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            empty, delta = {**block, "input": {}}, {"type": "input_json_delta"}
            delta["partial_json"] = json.dumps(block["input"], ensure_ascii=False)
        yield named_event("content_block_start", {"index": index, "content_block": empty})
        yield named_event("content_block_delta", {"index": index, "delta": delta})
        yield named_event("content_block_stop", {"index": index})
    ended = {name: whole[name] for name in ("stop_reason", "stop_sequence")}
    yield named_event("message_delta", {"delta": ended, "usage": usage})
    yield named_event("message_stop", {})


def error(refused: RequestRefused) -> dict[str, Any]:
    """A refusal as Anthropic's clients read it; they look for words where others look for a code."""
    words = "prompt is too long: " if refused.code == "context_length_exceeded" else ""
    told: dict[str, Any] = {
        "type": _KINDS.get(refused.status, "api_error"),
        "message": words + sound_text(str(refused)),
        "param": refused.param,
        "code": refused.code,
    }
    if refused.param == "thread":  # its client then sends whole conversations
        told["details"] = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    return {"type": "error", "error": told}


def error_event(refused: RequestRefused) -> str:
    """The same in a stream that has begun."""
    return named_event("error", error(refused))


def _checked_messages(system: Any, given: Any) -> list[Message]:
    """The conversation as messages."""
    messages: list[Message] = []
    if system is not None:
        messages.append({"role": "system", "content": text_of(system, "system")})
    if not isinstance(given, list) or not given:
        raise RequestRefused(f"messages is {shown(given)}; it must be a list of at least one message.", "messages")
    for number, message in enumerate(given):
        place = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise RequestRefused(f"{place} is {shown(message)}; it must be an object with role and content.", place)
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestRefused(f"{place}.role is {shown(role)}; allowed: {', '.join(_ROLES)}.", f"{place}.role")
        messages += _spoken(role, message.get("content"), f"{place}.content")
    if messages[-1]["role"] == "assistant":
        raise RequestRefused(
            "the last message is the assistant's, which asks for a reply that begins with it. A reply is sampled "
            "whole: end with a user's message.",
            "messages",
        )
    return messages


def _spoken(role: str, content: Any, place: str) -> list[Message]:
    """The messages of a role's turn: one, but for results of tools, which are messages of their own."""
    check_says_something(role, content, place)
    if not isinstance(content, list):
        return [{"role": role, "content": text_of(content, place)}]
    found: list[Message] = []
    for number, block in enumerate(content):
        here = f"{place}[{number}]"
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_result" and role == "user":
            found.append(_result(block, here))
            continue
        if kind in ("thinking", "redacted_thinking") and role == "assistant":
            continue  # what the policy thought is in its sampled ids
        if not found or found[-1]["role"] != role:
            found.append({"role": role, "content": ""})
        if kind == "text":
            found[-1]["content"] += text_of([block], here)
        elif kind == "tool_use" and role == "assistant":
            call = tool_call(block.get("id"), block.get("name"), block.get("input"), here)
            found[-1].setdefault("tool_calls", []).append(call)
        else:
            raise RequestRefused(f"{here} is {shown(block)}; allowed are blocks of type {_BLOCKS[role]}.", here)
    return found or [{"role": role, "content": ""}]


def _result(block: Mapping[str, Any], place: str) -> Message:
    call_id = block.get("tool_use_id")
    if not isinstance(call_id, str):
        raise RequestRefused(f"{place}.tool_use_id is {shown(call_id)}; it must be a string.", f"{place}.tool_use_id")
    text = text_of(block.get("content"), f"{place}.content")
    return {"role": "tool", "content": text, "tool_call_id": sound_text(call_id)}


def _checked_tools(tools: Any) -> tuple[dict[str, Any], ...]:
    """The tools as the chat template is given them."""
    if not isinstance(tools, list):
        return some_tools(tools)
    nested = []
    for number, tool in enumerate(tools):
        is_own = isinstance(tool, Mapping) and tool.get("type") in (None, "custom")
        if not is_own or not isinstance(tool.get("name"), str) or not tool["name"]:
            raise RequestRefused(
                f'tools[{number}] is {shown(tool)}; it must be {{"name": …, "input_schema": …}}: tools of Anthropic\'s '
                "own are not here.",
                "tools",
            )
        described = {
            "name": tool["name"],
            "description": tool.get("description"),
            "parameters": tool.get("input_schema"),
        }
        function = {name: value for name, value in described.items() if value is not None}
        nested.append({"type": "function", "function": function})
    return some_tools(nested)


ANTHROPIC_MESSAGES = Dialect("/v1/messages", FIELDS, read_request, message, events, error, error_event)

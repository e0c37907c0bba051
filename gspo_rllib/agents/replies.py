"""Sampled text as the message a client is given: cut at a stop string, its tool calls read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gspo_rllib.agents.messages import Message
from gspo_rllib.envs.tools.calls import ToolCall, ToolCallError, parse_tool_calls, typed
from gspo_rllib.seeds import derive_seed
from gspo_rllib.types import FinishReason


@dataclass(frozen=True, slots=True)
class Reply:
    """What the policy answered, as a client reads it.

    Attributes:
        message: The assistant message; appended to the messages of the next call as it is, it is recognised there.
        finish_reason: ``"tool_calls"`` where the reply calls tools, else why sampling ended.
        malformed_call: Whether the policy tried to call a tool and got it wrong; the message is then its text.
    """

    message: Message
    finish_reason: FinishReason | Literal["tool_calls"]
    malformed_call: bool = False

    @property
    def content(self) -> str:
        """The text of the message, reasoning included; "" where it only calls tools."""
        return self.message["content"] or ""

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """The tool calls of the message as ``{"id", "type", "function": {"name", "arguments"}}``, arguments in JSON."""
        calls: list[dict[str, Any]] = self.message.get("tool_calls", [])
        return calls


def read_reply(
    text: str,
    *,
    number: int,
    tools: Sequence[Mapping[str, Any]],
    stop: Sequence[str],
    finish_reason: FinishReason,
) -> Reply:
    """Reads a sampled reply.

    Args:
        text: The decoded reply, with the stop string that ended it.
        number: Number of the call within its session; names its tool calls.
        tools: Tools that the call declared.
        stop: Stop strings of the call.
        finish_reason: Why sampling ended.

    Example:
        >>> read_reply("4 = x", number=0, tools=(), stop=("=",), finish_reason="stop").message
        {'role': 'assistant', 'content': '4 '}
    """
    stopped_at = stop_string_in(text, stop) if finish_reason == "stop" else None
    shown = text if stopped_at is None else text[: text.find(stopped_at)]
    message: Message = {"role": "assistant", "content": shown}
    if not tools:
        return Reply(message, finish_reason)
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    calls = parse_tool_calls(shown, declared=schemas.keys())
    if isinstance(calls, ToolCallError):
        return Reply(message, finish_reason, malformed_call=True)
    if not calls:
        return Reply(message, finish_reason)
    for call in calls:
        shown = shown.replace(call.raw, "", 1)
    message = {"role": "assistant", "content": shown.strip() or None}
    message["tool_calls"] = [
        {"id": _call_id(number, place), "type": "function", "function": _written(call, schemas.get(call.name))}
        for place, call in enumerate(calls)
    ]
    return Reply(message, "tool_calls")


def _written(call: ToolCall, schema: Any) -> dict[str, str]:
    arguments = typed(call, schema) if isinstance(schema, Mapping) else call.arguments
    return {"name": call.name, "arguments": json.dumps(arguments, ensure_ascii=False)}


def stop_string_in(text: str, stop: Sequence[str]) -> str | None:
    """The stop string that comes first in a text, if any does.

    Example:
        >>> stop_string_in("4 = x; y", (";", "="))
        '='
    """
    found = [one for one in stop if one in text]
    return min(found, key=text.find) if found else None


def _call_id(number: int, place: int) -> str:
    """Nine letters and digits, which every chat template takes; from names, as templates may write it out."""
    left, digits = derive_seed("tool call", number, place, bits=48), ""
    for _ in range(9):
        left, digit = divmod(left, 36)
        digits += "0123456789abcdefghijklmnopqrstuvwxyz"[digit]
    return digits

"""Sampled text as the message a client is given: cut at a stop string, its tool calls read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from gspo_rllib.agents.messages import Message, RequestRefused
from gspo_rllib.envs.tools.calls import ToolCall, ToolCallError, parse_tool_calls, typed
from gspo_rllib.seeds import derive_seed
from gspo_rllib.types import FinishReason


class ToolParser(Protocol):
    """Finds in replies what they call, in place of ``envs.tools.calls``.

    Attributes:
        sees_special_tokens: Whether it reads replies in which special tokens are written out.
    """

    sees_special_tokens: bool

    def check(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """Raises ValueError where calls of these tools cannot be read."""

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, str]]] | None:
        """The text beside the calls, and name and arguments (a JSON object) of each; None where a call went wrong."""


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
    parser: ToolParser | None = None,
    with_tokens: Callable[[], str] | None = None,
) -> Reply:
    """Reads a sampled reply.

    Args:
        text: The decoded reply, with the stop string that ended it.
        number: Number of the call within its session; names its tool calls.
        tools: Tools that the call declared.
        stop: Stop strings of the call.
        finish_reason: Why sampling ended.
        parser: Finds the calls; None for all formats that ``envs.tools`` knows.
        with_tokens: Writes the reply with its special tokens, for a parser that sees them.

    Example:
        >>> read_reply("4 = x", number=0, tools=(), stop=("=",), finish_reason="stop").message
        {'role': 'assistant', 'content': '4 '}
    """
    stopped_at = stop_string_in(text, stop) if finish_reason == "stop" else None
    shown = _up_to(stopped_at, text)
    message: Message = {"role": "assistant", "content": shown}
    if not tools:
        return Reply(message, finish_reason)
    if parser is None:
        found = _read(shown, tools)
    else:
        whole = with_tokens() if with_tokens is not None and parser.sees_special_tokens else text
        found = parser.read(_up_to(stopped_at, whole), tools)
    if found is None:
        return Reply(message, finish_reason, malformed_call=True)
    beside, calls = found
    if not calls:
        return Reply(message, finish_reason)
    message = {"role": "assistant", "content": beside.strip() or None}
    message["tool_calls"] = [
        {"id": _call_id(number, place), "type": "function", "function": {"name": name, "arguments": arguments}}
        for place, (name, arguments) in enumerate(calls)
    ]
    return Reply(message, "tool_calls")


def check_tools(parser: ToolParser | None, tools: Sequence[Mapping[str, Any]]) -> None:
    """Refuses tools whose calls a parser cannot read.

    Raises:
        RequestRefused: It cannot.
    """
    if parser is None or not tools:
        return
    try:
        parser.check(tools)
    except ValueError as error:
        raise RequestRefused(f"agent.tool_parser does not take these tools: {str(error)[:500]}", "tools") from error


def _up_to(stopped_at: str | None, text: str) -> str:
    return text if stopped_at is None else text.partition(stopped_at)[0]


def _read(text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, str]]] | None:
    """The same as ``ToolParser.read``, by the formats that ``envs.tools`` knows."""
    schemas = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools}
    calls = parse_tool_calls(text, declared=schemas.keys())
    if isinstance(calls, ToolCallError):
        return None
    beside = text
    for call in calls:
        beside = beside.replace(call.raw, "", 1)
    return beside, [(call.name, _arguments(call, schemas.get(call.name))) for call in calls]


def _arguments(call: ToolCall, schema: Any) -> str:
    arguments = typed(call, schema) if isinstance(schema, Mapping) else call.arguments
    return json.dumps(arguments, ensure_ascii=False)


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

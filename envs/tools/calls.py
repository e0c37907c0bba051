"""Tool calls in a reply: what model families write, read into names and arguments.

    hermes       <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>       Hermes, Qwen 2.5 and 3
    qwen_xml     <tool_call><function=add><parameter=a>1</parameter></function></tool_call>   Qwen3-Coder, Qwen 3.5
    llama_json   {"name": "add", "parameters": {"a": 1}}, or with "type": "function"        Llama 3.1 and later
    mistral      [TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]                Mistral

Some families' markers are special tokens, which the text of a reply does not hold; a reply that has the rest of their
form is a call too, ``name{…}`` under ``"mistral"`` alone. Where the declared tools are known, such a reply is a call
only if it calls one of them: else it is an answer that happens to be JSON.

A reply is untrusted text: whatever it holds, reading it never raises. Text around calls is allowed; a marker that opens
or closes no call is a ``ToolCallError``, so a call that went wrong is never taken for an answer. Reasoning, up to the
first ``</think>``, is not looked at.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

ToolFormat = Literal["auto", "hermes", "qwen_xml", "llama_json", "mistral"]
TOOL_FORMATS: tuple[str, ...] = get_args(ToolFormat)

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_FUNCTION, _END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"
_PYTHON_TAG = "<|python_tag|>"
_MISTRAL = "[TOOL_CALLS]"
_MISTRAL_NAMED = re.compile(r"(?:\[TOOL_CALLS\])?\s*+([A-Za-z0-9_.-]{1,64})\s*+(?:\[ARGS\])?\s*+(?=\{)")
_OPENS_CALL = re.compile(r'\s*+\{\s*+"(?:name"\s*+:|type"\s*+:\s*+"function")')
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAX_DEPTH = 32  # how deep arguments may be nested: what checks and prints them is recursive


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call as the policy wrote it.

    Attributes:
        name: The tool's name.
        arguments: The arguments, by name.
        raw: The text of the call.
        values_are_text: Whether the arguments are all strings because the format has no types; see ``typed``.
    """

    name: str
    arguments: dict[str, Any]
    raw: str
    values_are_text: bool = False


@dataclass(frozen=True, slots=True)
class ToolCallError:
    """A reply that tried to call a tool and got it wrong.

    Attributes:
        message: What is wrong, in one short line for the policy.
        raw: The text at fault.
    """

    message: str
    raw: str


class _Malformed(Exception):
    """Carries a message for the policy up to ``parse_tool_calls``."""


def parse_tool_calls(
    reply: str, tool_format: ToolFormat = "auto", declared: Collection[str] | None = None
) -> list[ToolCall] | ToolCallError:
    """Reads the tool calls of a reply.

    Args:
        reply: Any text.
        tool_format: How calls are written; ``"auto"`` goes by the markers in the text.
        declared: The names of the tools there are; None where any name may be one.

    Returns:
        The calls in the order they were written, none where the reply is an answer; or what is wrong with them.

    Example:
        >>> (call,) = parse_tool_calls('Let me see. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>')
        >>> call.name, call.arguments
        ('add', {'a': 1})
        >>> parse_tool_calls("The sum is 3."), parse_tool_calls("<tool_call>{").message
        ([], 'tool call 1 is not valid JSON: Expecting property name enclosed in double quotes')
    """
    text = without_reasoning(reply)
    try:
        return _READERS[tool_format](text, declared)
    except _Malformed as error:
        return ToolCallError(str(error), text)


def without_reasoning(reply: str) -> str:
    """A reply without what precedes the first ``</think>``, and without spaces at its ends.

    Example:
        >>> without_reasoning("<think>5 or 6?</think> 6 "), without_reasoning(" 6")
        ('6', '6')
    """
    _, found, rest = reply.partition("</think>")
    return (rest if found else reply).strip()


def render_tool_call(name: str, arguments: Mapping[str, Any], tool_format: ToolFormat = "auto") -> str:
    """A call as a model of that family writes it, e.g. for an expert's reply.

    Args:
        name: The tool's name.
        arguments: The arguments, by name; JSON-able.
        tool_format: ``"auto"`` is ``"hermes"``.

    Raises:
        ValueError: The format has no way to write the arguments: qwen_xml cannot hold its own markers.

    Example:
        >>> render_tool_call("add", {"a": 1})
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    """
    if tool_format == "llama_json":
        return json.dumps({"name": name, "parameters": dict(arguments)}, ensure_ascii=False)
    body = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    if tool_format == "mistral":
        return f"{_MISTRAL}[{body}]"
    if tool_format != "qwen_xml":
        return f"{_OPEN}{body}{_CLOSE}"
    lines = []
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if _END_PARAMETER in text or ">" in key or not key:
            raise ValueError(f"qwen_xml cannot write the argument {key[:40]!r}: {text[:80]!r}")
        lines.append(f"{_PARAMETER}{key}>\n{text}\n{_END_PARAMETER}\n")
    return f"{_OPEN}\n{_FUNCTION}{name}>\n{''.join(lines)}{_END_FUNCTION}\n{_CLOSE}"


def typed(call: ToolCall, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call, those written as plain text turned into what the tool's schema asks for.

    Args:
        call: A call, whichever format it was written in.
        parameters: The tool's JSON schema.

    Example:
        >>> schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
        >>> typed(ToolCall("f", {"a": "1", "b": "1"}, "", values_are_text=True), schema)
        {'a': 1, 'b': '1'}
    """
    if not call.values_are_text:
        return call.arguments
    declared = parameters.get("properties", {})
    return {key: _typed_value(text, declared.get(key, {})) for key, text in call.arguments.items()}


def _typed_value(text: str, schema: Any) -> Any:
    parts = [schema, *schema.get("anyOf", [])] if isinstance(schema, Mapping) else []
    kinds = [part.get("type") for part in parts if isinstance(part, Mapping)]
    if "string" in kinds or not any(kinds):
        return None if "null" in kinds and text.strip() == "null" else text
    try:
        return _json_value(text.strip())
    except _Malformed:
        return text


def _read_auto(text: str, declared: Collection[str] | None) -> list[ToolCall]:
    # What begins first decides: an argument may hold any other format's marker.
    wrapped = min((place for place in (text.find(_OPEN), text.find(_CLOSE)) if place >= 0), default=len(text))
    mistral = text.find(_MISTRAL) if _MISTRAL in text else len(text)
    marked = min(wrapped, mistral) < len(text)
    if text.startswith((_PYTHON_TAG, "{")):
        try:
            calls = _read_llama_json(text, declared)
        except _Malformed:
            if not marked:
                raise
        else:
            if calls or not marked:
                return calls
    if text.startswith(_FUNCTION) or (
        wrapped < mistral and text[wrapped:].removeprefix(_OPEN).lstrip().startswith(_FUNCTION)
    ):
        return _read_qwen_xml(text, declared)
    if wrapped < mistral:
        return _read_hermes(text, declared)
    return _read_mistral(text, declared) if marked or re.match(r"\[\s*\{", text) else []


def _read_hermes(text: str, declared: Collection[str] | None) -> list[ToolCall]:
    del declared  # what is marked is a call, and an unknown name is told to the policy
    calls: list[ToolCall] = []
    position = 0
    while (start := _next_opener(text, position)) >= 0:
        label = f"tool call {len(calls) + 1}"
        value, end = _decode(text, _skip_spaces(text, start + len(_OPEN)), label)
        end = _skip_spaces(text, end)
        if not text.startswith(_CLOSE, end):
            raise _Malformed(f"{label} is not closed by {_CLOSE} after its JSON object")
        position = end + len(_CLOSE)
        calls.append(_call(value, text[start:position], label))
    return calls


def _read_qwen_xml(text: str, declared: Collection[str] | None) -> list[ToolCall]:
    del declared  # likewise
    calls: list[ToolCall] = []
    position = 0
    while (start := _next_opener(text, position, _OPEN if _OPEN in text else _FUNCTION)) >= 0:
        label = f"tool call {len(calls) + 1}"
        wrapped = text.startswith(_OPEN, start)
        place = _skip_spaces(text, start + len(_OPEN)) if wrapped else start
        name, place = _tag(text, place, _FUNCTION, label)
        arguments: dict[str, Any] = {}
        while (place := _skip_spaces(text, place)) < len(text) and text.startswith(_PARAMETER, place):
            key, place = _tag(text, place, _PARAMETER, label)
            end = text.find(_END_PARAMETER, place)
            if end < 0:
                raise _Malformed(f"{label}: a parameter is not closed by {_END_PARAMETER}")
            arguments[key] = text[place:end].removeprefix("\n").removesuffix("\n")
            place = end + len(_END_PARAMETER)
        for closing in (_END_FUNCTION, _CLOSE) if wrapped else (_END_FUNCTION,):
            place = _skip_spaces(text, place)
            if not text.startswith(closing, place):
                raise _Malformed(f"{label} is not closed by {closing}")
            place += len(closing)
        position = place
        calls.append(ToolCall(_checked_name(name, label), arguments, text[start:position], values_are_text=True))
    return calls


def _read_llama_json(text: str, declared: Collection[str] | None) -> list[ToolCall]:
    tagged = text.startswith(_PYTHON_TAG)
    if not tagged and not text.startswith("{"):
        return []
    calls: list[ToolCall] = []
    place = len(_PYTHON_TAG) if tagged else 0
    while True:
        label = f"tool call {len(calls) + 1}"
        start = _skip_spaces(text, place)
        try:
            value, place = _decode(text, start, label)
        except _Malformed:
            if tagged or calls or _OPENS_CALL.match(text):
                raise
            return []  # an answer in braces
        if not calls and not tagged and not _looks_like_call(value, declared):
            return []  # an answer that is JSON
        calls.append(_call(value, text[start:place], label))
        place = _skip_spaces(text, place)
        if place == len(text):
            return calls
        if text[place] != ";":
            raise _Malformed(f"there is text after {label}; calls stand alone, with ';' between them")
        place += 1


def _looks_like_call(value: Any, declared: Collection[str] | None) -> bool:
    if not isinstance(value, dict):
        return False
    called = _unwrapped(value)
    if "name" not in called or not ("parameters" in called or "arguments" in called or value.get("type") == "function"):
        return False
    return declared is None or (isinstance(called["name"], str) and called["name"].strip() in declared)


def _unwrapped(value: dict[str, Any]) -> dict[str, Any]:
    """Llama's other ways to write a call, in the plain one: name and parameters within or behind ``"function"``."""
    inner = value.get("function")
    if "name" in value or inner is None:
        return value
    return inner if isinstance(inner, dict) else {**value, "name": inner}


def _read_mistral(text: str, declared: Collection[str] | None) -> list[ToolCall]:
    marker = text.find(_MISTRAL)
    start = marker + len(_MISTRAL) if marker >= 0 else 0
    start = _skip_spaces(text, start)
    if marker >= 0 and not text.startswith("[", start):
        return _read_mistral_named(text, marker)
    if marker < 0 and not re.match(r"\[\s*\{", text):
        named = _MISTRAL_NAMED.match(text)
        return _read_mistral_named(text, 0) if named and (declared is None or named[1] in declared) else []
    try:
        values, end = _decode(text, start, "the list of tool calls")
    except _Malformed:
        if marker >= 0 or _OPENS_CALL.match(text, 1):
            raise
        return []  # an answer in brackets
    if marker < 0 and not any(_looks_like_call(value, declared) for value in values):
        return []  # an answer that is JSON
    if text[end:].strip() or not values:
        raise _Malformed(f"{_MISTRAL} must be followed by a list of calls alone")
    return [_call(value, text[start:end], f"tool call {number}") for number, value in enumerate(values, start=1)]


def _read_mistral_named(text: str, place: int) -> list[ToolCall]:
    """Newer Mistrals: ``[TOOL_CALLS]name[ARGS]{…}`` for each call."""
    calls: list[ToolCall] = []
    while place < len(text):
        label = f"tool call {len(calls) + 1}"
        named = _MISTRAL_NAMED.match(text, place)
        if not named:
            raise _Malformed(f"{label} is not {_MISTRAL}name[ARGS]{{…}}")
        arguments, end = _decode(text, named.end(), label)
        calls.append(_call({"name": named[1], "arguments": arguments}, text[place:end], label))
        place = _skip_spaces(text, end)
    return calls


_READERS: dict[str, Callable[[str, Collection[str] | None], list[ToolCall]]] = {
    "auto": _read_auto,
    "hermes": _read_hermes,
    "qwen_xml": _read_qwen_xml,
    "llama_json": _read_llama_json,
    "mistral": _read_mistral,
}


def _next_opener(text: str, position: int, opener: str = _OPEN) -> int:
    start = text.find(opener, position)
    stray = text.find(_CLOSE, position, start if start >= 0 else len(text))
    if stray >= 0:
        raise _Malformed(f"{_CLOSE} without {_OPEN} before it")
    return start


def _skip_spaces(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _tag(text: str, place: int, opening: str, label: str) -> tuple[str, int]:
    end = text.find(">", place)
    if not text.startswith(opening, place) or end < 0:
        raise _Malformed(f"{label}: expected {opening}…>")
    return text[place + len(opening) : end], end + 1


def _call(value: Any, raw: str, label: str) -> ToolCall:
    if not isinstance(value, dict):
        raise _Malformed(f'{label} is not a JSON object such as {{"name": ..., "arguments": {{...}}}}')
    value = _unwrapped(value)
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json_value(arguments)
    if not isinstance(arguments, dict):
        raise _Malformed(f"{label}: its arguments are not a JSON object")
    return ToolCall(_checked_name(value.get("name"), label), arguments, raw)


def _checked_name(name: Any, label: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name.strip()):
        raise _Malformed(f"{label} does not name a tool")
    return name.strip()


def _json_value(text: str) -> Any:
    value, end = _decode(text, 0, "an argument")
    if text[end:].strip():
        raise _Malformed("an argument has text after its JSON")
    return value


def _decode(text: str, place: int, label: str) -> tuple[Any, int]:
    try:
        value, end = _DECODER.raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise _Malformed(f"{label} is not valid JSON: {error.msg}") from error
    except ValueError as error:  # a number too long to read, or not finite
        raise _Malformed(f"{label} holds a number that is not allowed") from error
    except RecursionError as error:
        raise _Malformed(f"{label} is nested too deeply") from error
    if _is_deeper(value, _MAX_DEPTH):
        raise _Malformed(f"{label} is nested too deeply")
    return value, end


def _is_deeper(value: Any, depth: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return depth == 0 or any(_is_deeper(part, depth - 1) for part in inner)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)

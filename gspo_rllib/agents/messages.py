"""What clients send: messages and what goes with them, checked, brought into one form, and compared.

A client sends the whole history with every call, as text. A reply of the policy must be recognised in it, because its
sampled ids are reused; so two assistant messages are the same one if they differ only in what clients are known to
change: reasoning that was cut out or moved, outer spaces, ids of tool calls, spaces and key order of their arguments.
Every other message must be equal to the letter, or the context is another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gspo_rllib.envs.tools.calls import without_reasoning
from gspo_rllib.errors import GSPOError, shown

Message = dict[str, Any]
"""``role``, ``content`` (str), and where there are any ``tool_calls``, ``tool_call_id`` and ``name``."""

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""Roles that a message may have, and the role it is shown in."""

MAX_STOP_STRINGS = 16

# Made once: json.dumps makes an encoder for every text that is not written in its default form.
_in_json = json.JSONEncoder(ensure_ascii=False).encode
_in_canonical_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode

_TEXT_PARTS = ("text", "input_text", "output_text")


class RequestRefused(GSPOError):
    """A call that cannot be answered as it was made.

    Args:
        message: What is wrong, for the author of the agent.
        param: The field at fault.
        code: A word that frameworks look for, such as ``"context_length_exceeded"``.
        status: HTTP status.

    Attributes:
        message: What is wrong.
        param: The field at fault; None where it is no single one.
        code: The word that frameworks look for, if there is one.
        status: HTTP status.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message, param, code, status)
        self.message = message
        self.param = param
        self.code = code
        self.status = status

    def __str__(self) -> str:
        return self.message


class SessionEnded(RequestRefused):
    """A call in a session that is finished, timed out, or whose group was started again."""

    def __init__(
        self,
        message: str = "this session has ended: its trajectory is finished, timed out, or was started again.",
        param: str | None = None,
        code: str | None = "session_ended",
        status: int = 410,
    ) -> None:
        super().__init__(message, param, code, status)


def checked_messages(messages: Any) -> list[Message]:
    """The messages of a call in one form.

    Args:
        messages: What the client sent, untrusted.

    Returns:
        At least one message; content parts joined, ``developer`` as ``system``, lone surrogates as ``?``.

    Raises:
        RequestRefused: They are no list of messages that can be shown to the policy as text.

    Example:
        >>> checked_messages([{"role": "user", "content": [{"type": "text", "text": "1+1"}]}])
        [{'role': 'user', 'content': '1+1'}]
        >>> checked_messages([{"role": "user", "content": 2}])
        Traceback (most recent call last):
        gspo_rllib.agents.messages.RequestRefused: messages[0].content is 2; it must be a string, a list of text \
parts, or null.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise RequestRefused(f"messages is {shown(messages)}; it must be a list of at least one message.", "messages")
    return [_checked_message(message, f"messages[{number}]") for number, message in enumerate(messages)]


def checked_tools(tools: Any) -> tuple[dict[str, Any], ...]:
    """The tools of a call, as the chat template is given them.

    Args:
        tools: What the client sent, untrusted; None for no tools.

    Raises:
        RequestRefused: It is no list of functions.
    """
    if tools is None:
        return ()
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise RequestRefused(f"tools is {shown(tools)}; it must be a list of functions.", "tools")
    for number, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) and tool.get("type") == "function" else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise RequestRefused(
                f'tools[{number}] is {shown(tool)}; it must be {{"type": "function", "function": {{"name": …}}}}.',
                "tools",
            )
    try:
        declared = [_sound(tool) for tool in tools]
        json.dumps(declared, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestRefused(f"tools cannot be written as JSON: {str(error)[:200]}.", "tools") from error
    _check_meaning(declared)
    return tuple(declared)


def _check_meaning(tools: Sequence[dict[str, Any]]) -> None:
    by_name: dict[str, dict[str, Any]] = {}
    for number, tool in enumerate(tools):
        name, parameters = tool["function"]["name"], tool["function"].get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            place = f"tools[{number}].function.parameters"
            raise RequestRefused(f"{place} is {shown(parameters)}; it must be a JSON schema, an object.", "tools")
        if by_name.setdefault(name, tool) != tool:
            raise RequestRefused(
                f"tools[{number}]: another tool has the name {shown(name)}, too; a call could mean either.", "tools"
            )


def checked_max_tokens(value: Any, name: str) -> int | None:
    """A client's limit on the tokens of a reply.

    Raises:
        RequestRefused: It is no whole number of at least 1.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RequestRefused(f"{name} is {shown(value)}; it must be a whole number of at least 1.", name)
    return value


def checked_stop(value: Any, name: str) -> tuple[str, ...]:
    """A client's stop strings; without those that no reply can hold.

    Raises:
        RequestRefused: They are neither a string nor a list of a few strings, or one is empty.
    """
    if value is None:
        return ()
    strings = (value,) if isinstance(value, str) else value
    fits = isinstance(strings, Sequence) and all(isinstance(one, str) and one for one in strings)
    if not fits or len(strings) > MAX_STOP_STRINGS:
        raise RequestRefused(
            f"{name} is {shown(value)}; it must be a string or a list of at most {MAX_STOP_STRINGS}, none empty.",
            name,
        )
    # What has no UTF-8 form is never sampled, and cannot be sent to an engine in another process.
    return tuple(one for one in strings if one == sound_text(one))


def start_key(tools: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any]) -> bytes:
    """What decides beside its messages how a conversation is written; equal keys mean the same."""
    return _digest([_canonical(list(tools)), _canonical(dict(template_kwargs))])


def form_of(message: Message) -> bytes:
    """What counts of a message; equal forms mean the same message, whatever clients are known to change.

    Example:
        >>> reply = {"role": "assistant", "content": "<think>easy</think> 2 "}
        >>> form_of(reply) == form_of({"role": "assistant", "content": "2"})
        True
        >>> form_of({"role": "user", "content": "2 "}) == form_of({"role": "user", "content": "2"})
        False
    """
    content = message["content"]
    if message["role"] != "assistant":
        return _digest([message["role"], content, message.get("name")])
    calls = [
        [call["function"]["name"], _canonical_arguments(call["function"]["arguments"])]
        for call in message.get("tool_calls", ())
    ]
    return _digest(["assistant", without_reasoning(content), calls])


def sound_text(text: str) -> str:
    """A text that has a UTF-8 form: ``?`` takes the place of each lone surrogate, on which tokenizers raise."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _checked_message(message: Any, place: str) -> Message:
    if not isinstance(message, Mapping):
        raise RequestRefused(f"{place} is {shown(message)}; it must be an object with role and content.", place)
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestRefused(f"{place}.role is {shown(role)}; allowed: {', '.join(ROLES)}.", f"{place}.role")
    check_says_something(role, message.get("content"), f"{place}.content")
    checked: Message = {"role": ROLES[role], "content": text_of(message.get("content"), f"{place}.content")}
    if message.get("function_call") is not None:
        raise RequestRefused(f"{place}.function_call is not supported; use tool_calls.", f"{place}.function_call")
    if message.get("tool_calls") is not None:
        calls = _checked_calls(message["tool_calls"], role, f"{place}.tool_calls")
        if calls:
            checked["tool_calls"] = calls
    for name in ("tool_call_id", "name"):
        value = message.get(name)
        if value is not None and not isinstance(value, str):
            raise RequestRefused(f"{place}.{name} is {shown(value)}; it must be a string.", f"{place}.{name}")
        if value is not None and role != "assistant":
            checked[name] = sound_text(value)
    return checked


def check_says_something(role: str, content: Any, place: str) -> None:
    """Refuses a message without content of those whose role is to say something: most likely a task lacks a field.

    Raises:
        RequestRefused: It is one.
    """
    if content is None and ROLES[role] in ("system", "user"):
        raise RequestRefused(f'{place} is missing or null; a {role} message must say something, if only "".', place)


def text_of(content: Any, place: str) -> str:
    """The text of a message's content.

    Args:
        content: A string, a list of text parts (joined without anything between them), or None.
        place: What to call it in a message.

    Raises:
        RequestRefused: It is something else.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return sound_text(content)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise RequestRefused(f"{place} is {shown(content)}; it must be a string, a list of text parts, or null.", place)
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _TEXT_PARTS:
            raise RequestRefused(
                f"{place}[{number}] is {shown(part)}; only parts of type text can be shown to this policy.", place
            )
        if not isinstance(part.get("text"), str):
            raise RequestRefused(f"{place}[{number}].text is {shown(part.get('text'))}; it must be a string.", place)
        texts.append(sound_text(part["text"]))
    return "".join(texts)


def tool_call(call_id: Any, name: Any, arguments: Any, place: str) -> dict[str, Any]:
    """A call of a tool in the form it has within a message.

    Args:
        call_id: What names the call; None for nothing.
        name: The tool, untrusted.
        arguments: A JSON string or an object, untrusted; None for no arguments.
        place: What to call the call in a message.

    Raises:
        RequestRefused: It names no tool, or its arguments are something else.
    """
    if not isinstance(name, str) or not name:
        raise RequestRefused(f"{place}.name is {shown(name)}; it must be the name of a tool.", place)
    if arguments is None:
        arguments = "{}"
    elif isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not isinstance(arguments, str):
        raise RequestRefused(f"{place}.arguments is {shown(arguments)}; it must be a JSON string.", place)
    called = {"name": sound_text(name), "arguments": sound_text(arguments)}
    return {"id": sound_text(str(call_id or "")), "type": "function", "function": called}


def _checked_calls(calls: Any, role: str, place: str) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise RequestRefused(f"{place} is {shown(calls)}; it must be a list of calls.", place)
    if calls and role != "assistant":
        raise RequestRefused(f"{place}: only an assistant message may have tool calls, not a {role} message.", place)
    checked = []
    for number, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise RequestRefused(
                f'{place}[{number}] is {shown(call)}; it must be {{"id": …, "type": "function", "function": '
                '{"name": …, "arguments": …}}.',
                place,
            )
        checked.append(tool_call(call.get("id"), name, function.get("arguments"), f"{place}[{number}].function"))
    return checked


def _canonical_arguments(arguments: str) -> str:
    """Arguments without what SDKs change: spaces and the order of keys."""
    try:
        return _canonical(json.loads(arguments))
    except (ValueError, RecursionError):
        return arguments


def _canonical(value: Any) -> str:
    return _in_canonical_json(value)


def _digest(parts: list[Any]) -> bytes:
    return hashlib.blake2b(_in_json(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _sound(value: Any) -> Any:
    """Plain data with every text in a UTF-8 form."""
    if isinstance(value, str):
        return sound_text(value)
    if isinstance(value, Mapping):
        return {_sound(key): _sound(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_sound(inner) for inner in value]
    return value

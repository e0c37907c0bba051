"""The dialect of ``/v1/responses``: a conversation as a list of items, of which several are one reply.

A reply that says something and calls two tools is three items here, and comes back as three; they are joined to the
one assistant message that the session knows. Nothing is stored, so every call holds its whole conversation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gspo_rllib.agents.dialect import (
    Asked,
    Dialect,
    flag,
    model_name,
    named_event,
    openai_error,
    some_tools,
    template_kwargs,
    token_counts,
    token_logprobs,
)
from gspo_rllib.agents.fields import Fields, tools_are_off
from gspo_rllib.agents.messages import (
    ROLES,
    Message,
    RequestRefused,
    check_says_something,
    checked_max_tokens,
    sound_text,
    text_of,
    tool_call,
)
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.session import Call, ChatRequest
from gspo_rllib.errors import shown

_NOTHING_IS_STORED = "nothing is stored between calls: send the whole conversation as input"
FIELDS = Fields(
    read=(
        "model", "input", "instructions", "tools", "max_output_tokens", "chat_template_kwargs", "stream", "include",
        "text",
    ),
    refused={
        "previous_response_id": _NOTHING_IS_STORED,
        "conversation": _NOTHING_IS_STORED,
        "prompt": "prompts are not stored: send instructions and input",
        "background": "the reply comes as the answer to its call",
    },
    passed_over=("truncation", "max_tool_calls", "context_management"),
    harmless=("stream_options",),
)  # fmt: skip
_ROLES = [role for role in ROLES if role != "tool"]
_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
_LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True)
class ResponseRequest(Asked):
    """A checked body.

    Attributes:
        tools: The tools as the client declared them.
        logprobs: Whether the answer holds log-probabilities.
    """

    tools: list[dict[str, Any]]
    logprobs: bool


def read_request(body: Mapping[str, Any], renderer: MessageRenderer) -> ResponseRequest:
    """Reads a body.

    Args:
        body: The body, untrusted.
        renderer: Knows the variables of the chat template.

    Raises:
        RequestRefused: It is no call that can be answered.
    """
    passed_over = FIELDS.check(body)
    include = body.get("include")
    if include is not None and not isinstance(include, list):
        raise RequestRefused(f"include is {shown(include)}; it must be a list.", "include")
    passed_over += _asked_of_text(body.get("text"))
    kwargs, unread = template_kwargs(body, renderer)
    tools = _checked_tools(body.get("tools"))
    return ResponseRequest(
        ChatRequest(
            _checked_input(body.get("instructions"), body.get("input")),
            tools,
            max_tokens=checked_max_tokens(body.get("max_output_tokens"), "max_output_tokens"),
            template_kwargs=kwargs,
            reads_tool_calls=not tools_are_off(body),
        ),
        model=model_name(body),
        stream=flag(body, "stream"),
        passed_over=(*passed_over, *unread),
        tools=[{"type": "function", "parameters": None, "strict": None, **tool["function"]} for tool in tools],
        logprobs=_LOGPROBS in (include or ()),
    )


def response(request: ResponseRequest, calls: Sequence[Call], renderer: MessageRenderer) -> dict[str, Any]:
    """The whole answer.

    Args:
        request: What was asked.
        calls: The one reply.
        renderer: Writes token ids as text.
    """
    (call,) = calls
    is_cut = call.reply.finish_reason == "length"
    prompt, sampled = token_counts(calls)
    return {
        **_begun(request, call),
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "output": _output(request, call, renderer),
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": sampled,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + sampled,
        },
    }


def events(request: ResponseRequest, calls: Sequence[Call], renderer: MessageRenderer) -> Iterator[str]:
    """The answer as server-sent events, numbered and in the order of OpenAI's."""
    whole = response(request, calls, renderer)
    told: list[tuple[str, dict[str, Any]]] = [
        (f"response.{state}", {"response": _begun(request, calls[0])}) for state in ("created", "in_progress")
    ]
    for place, item in enumerate(whole["output"]):
        told += _item_events(place, item)
    told.append((f"response.{whole['status']}", {"response": whole}))
    for number, (name, data) in enumerate(told):
        yield named_event(name, {"sequence_number": number, **data})


def error_event(refused: RequestRefused) -> str:
    """A refusal in a stream that has begun: as OpenAI documents it, and with the field its clients raise on."""
    error = openai_error(refused)["error"]
    told = {name: error[name] for name in ("code", "message", "param")}
    return named_event("error", {"sequence_number": 0, **told, "error": error})


def _begun(request: ResponseRequest, call: Call) -> dict[str, Any]:
    """A response before anything was sampled."""
    return {
        "id": f"resp_{call.number}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "model": request.model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "top_p": None,
        "tool_choice": "auto",
        "tools": request.tools,
        "usage": None,
    }


def _output(request: ResponseRequest, call: Call, renderer: MessageRenderer) -> list[dict[str, Any]]:
    """The items of a reply: what it says, if anything, then the tools it calls."""
    status = "incomplete" if call.reply.finish_reason == "length" else "completed"
    items: list[dict[str, Any]] = []
    if call.reply.content or not call.reply.tool_calls:
        logprobs = token_logprobs(call, renderer) if request.logprobs else []
        text = {"type": "output_text", "text": call.reply.content, "annotations": [], "logprobs": logprobs}
        items.append(
            {"id": f"msg_{call.number}", "type": "message", "status": status, "role": "assistant", "content": [text]}
        )
    for tool in call.reply.tool_calls:
        called = {"id": f"fc_{tool['id']}", "type": "function_call", "status": status, "call_id": tool["id"]}
        items.append({**called, **tool["function"]})
    return items


def _item_events(place: int, item: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What a stream tells of one item."""
    here = {"item_id": item["id"], "output_index": place}
    if item["type"] == "function_call":
        begun, arguments = {**item, "status": "in_progress", "arguments": ""}, item["arguments"]
        told = [
            ("response.function_call_arguments.delta", {**here, "delta": arguments}),
            ("response.function_call_arguments.done", {**here, "name": item["name"], "arguments": arguments}),
        ]
    else:
        begun = {**item, "status": "in_progress", "content": []}
        (part,) = item["content"]
        inside = {**here, "content_index": 0}
        said = {"logprobs": part["logprobs"]}
        empty = {**part, "text": "", "logprobs": []}
        told = [
            ("response.content_part.added", {**inside, "part": empty}),
            ("response.output_text.delta", {**inside, "delta": part["text"], **said}),
            ("response.output_text.done", {**inside, "text": part["text"], **said}),
            ("response.content_part.done", {**inside, "part": part}),
        ]
    return [
        ("response.output_item.added", {"output_index": place, "item": begun}),
        *told,
        ("response.output_item.done", {"output_index": place, "item": item}),
    ]


def _checked_input(instructions: Any, given: Any) -> list[Message]:
    """The conversation as messages."""
    messages: list[Message] = []
    if instructions is not None:
        if not isinstance(instructions, str):
            raise RequestRefused(f"instructions is {shown(instructions)}; it must be a string.", "instructions")
        messages.append({"role": "system", "content": sound_text(instructions)})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": sound_text(given)}]
    if not isinstance(given, list) or not given:
        raise RequestRefused(f"input is {shown(given)}; it must be text or a list of at least one item.", "input")
    for number, item in enumerate(given):
        _add(messages, item, f"input[{number}]")
    if not messages:
        raise RequestRefused("input holds nothing but reasoning; it must hold a message.", "input")
    return messages


def _add(messages: list[Message], item: Any, place: str) -> None:
    """Appends an item, or joins it to the reply it is a part of."""
    if not isinstance(item, Mapping):
        raise RequestRefused(f"{place} is {shown(item)}; it must be an object with a type.", place)
    kind = item.get("type", "message" if "role" in item else None)
    if kind == "message":
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestRefused(f"{place}.role is {shown(role)}; allowed: {', '.join(_ROLES)}.", f"{place}.role")
        check_says_something(role, item.get("content"), f"{place}.content")
        messages.append({"role": ROLES[role], "content": text_of(item.get("content"), f"{place}.content")})
    elif kind == "function_call":
        call = tool_call(item.get("call_id"), item.get("name"), item.get("arguments"), place)
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            raise RequestRefused(f"{place}.call_id is {shown(call_id)}; it must be a string.", f"{place}.call_id")
        output = text_of(item.get("output"), f"{place}.output")
        messages.append({"role": "tool", "content": output, "tool_call_id": sound_text(call_id)})
    elif kind == "item_reference":
        raise RequestRefused(f"{place}: item_reference is not supported; {_NOTHING_IS_STORED}.", place)
    elif kind != "reasoning":  # what the policy thought is in its sampled ids
        raise RequestRefused(f"{place}.type is {shown(kind)}; allowed: {', '.join(_ITEMS)}.", f"{place}.type")


def _checked_tools(tools: Any) -> tuple[dict[str, Any], ...]:
    """The tools as the chat template is given them; this dialect writes a function's fields beside its type."""
    if not isinstance(tools, list):
        return some_tools(tools)
    nested = []
    for number, tool in enumerate(tools):
        is_function = isinstance(tool, Mapping) and tool.get("type") == "function"
        if not is_function or not isinstance(tool.get("name"), str) or not tool["name"]:
            raise RequestRefused(
                f'tools[{number}] is {shown(tool)}; it must be {{"type": "function", "name": …, "parameters": …}}.',
                "tools",
            )
        # The others of its fields are for OpenAI's own server.
        described = {name: tool[name] for name in ("name", "description", "parameters") if tool.get(name) is not None}
        nested.append({"type": "function", "function": described})
    return some_tools(nested)


def _asked_of_text(text: Any) -> list[str]:
    """What is asked of how the reply is written, of which nothing has an effect."""
    if text is None:
        return []
    if not isinstance(text, Mapping):
        raise RequestRefused(f"text is {shown(text)}; it must be an object.", "text")
    form = text.get("format")
    asked = ["text.format"] if isinstance(form, Mapping) and form.get("type") != "text" else []
    return [*asked, "text.verbosity"] if text.get("verbosity") is not None else asked


RESPONSES = Dialect("/v1/responses", FIELDS, read_request, response, events, openai_error, error_event)

"""The dialect of ``/v1/chat/completions``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gspo_rllib.agents.dialect import (
    Asked,
    Dialect,
    choices,
    flag,
    model_name,
    openai_error,
    openai_error_event,
    some_tools,
    template_kwargs,
    token_counts,
    token_logprobs,
)
from gspo_rllib.agents.fields import Fields, tools_are_off
from gspo_rllib.agents.messages import RequestRefused, checked_max_tokens, checked_messages, checked_stop
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.session import Call, ChatRequest
from gspo_rllib.errors import shown

FIELDS = Fields(
    read=(
        "model", "messages", "tools", "max_tokens", "max_completion_tokens", "stop", "n", "chat_template_kwargs",
        "stream", "stream_options", "logprobs", "return_token_ids",
    ),
    refused={
        "previous_response_id": "nothing is stored between calls: send the whole conversation",
        "functions": "use tools",
        "function_call": "use tool_choice",
        "audio": "this policy writes text",
        "chat_template": "prompts are written with the model's own chat template",
        "documents": "write them into a message",
        "continue_final_message": "a reply is sampled whole: end with a user's message, or use /v1/completions",
        "add_generation_prompt": "a prompt ends where the reply begins; /v1/completions takes any other",
        "echo": "the answer holds what was sampled; the messages are known to the client",
        "best_of": "use n, and choose among the replies",
    },
)  # fmt: skip


MALFORMED_CALL = "malformed_tool_call"
"""Field of a choice whose reply tried to call a tool and got it wrong; OpenAI's answers have none like it."""


@dataclass(frozen=True, slots=True)
class CompletionRequest(Asked):
    """A checked body of this dialect, or of ``/v1/completions``.

    Attributes:
        with_usage: Whether the chunks end with the counts of tokens.
        logprobs: Whether the answer holds log-probabilities.
        token_ids: Whether the answer holds token ids.
    """

    with_usage: bool
    logprobs: bool
    token_ids: bool


def read_request(body: Mapping[str, Any], renderer: MessageRenderer) -> CompletionRequest:
    """Reads a body.

    Args:
        body: The body, untrusted.
        renderer: Knows the variables of the chat template.

    Raises:
        RequestRefused: It is no call that can be answered.
    """
    passed_over = FIELDS.check(body)
    kwargs, unread = template_kwargs(body, renderer)
    tools = some_tools(body.get("tools"))
    options = stream_options(body)
    limits = [checked_max_tokens(body.get(name), name) for name in ("max_tokens", "max_completion_tokens")]
    return CompletionRequest(
        ChatRequest(
            checked_messages(body.get("messages")),
            tools,
            max_tokens=min((limit for limit in limits if limit is not None), default=None),
            stop=checked_stop(body.get("stop"), "stop"),
            choices=choices(body),
            template_kwargs=kwargs,
            reads_tool_calls=not tools_are_off(body),
        ),
        model=model_name(body),
        stream=flag(body, "stream"),
        passed_over=(*passed_over, *unread),
        with_usage=flag(options, "include_usage"),
        logprobs=flag(body, "logprobs"),
        token_ids=flag(body, "return_token_ids"),
    )


def stream_options(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a client wants of a stream.

    Raises:
        RequestRefused: It is no object.
    """
    options = body.get("stream_options")
    if options is not None and not isinstance(options, Mapping):
        raise RequestRefused(f"stream_options is {shown(options)}; it must be an object.", "stream_options")
    return options or {}


def completion(request: CompletionRequest, calls: Sequence[Call], renderer: MessageRenderer) -> dict[str, Any]:
    """The whole answer.

    Args:
        request: What was asked.
        calls: The replies, one for each choice.
        renderer: Writes token ids as text.
    """
    chosen: list[dict[str, Any]] = []
    for index, call in enumerate(calls):
        choice = {"index": index, "message": call.reply.message, "finish_reason": call.reply.finish_reason}
        choice["logprobs"] = _logprobs(call, renderer) if request.logprobs else None
        if request.token_ids:
            choice["token_ids"] = call.token_ids.tolist()
        if call.reply.malformed_call:
            choice[MALFORMED_CALL] = True
        chosen.append(choice)
    answer = {**head(request, calls, "chat.completion", "chatcmpl"), "choices": chosen, "usage": usage(calls)}
    if request.token_ids:
        answer["prompt_token_ids"] = calls[0].prompt().tolist()
    return answer


def chunks(request: CompletionRequest, calls: Sequence[Call], renderer: MessageRenderer) -> Iterator[str]:
    """The answer as server-sent events."""
    shared = head(request, calls, "chat.completion.chunk", "chatcmpl")

    def event(chosen: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**shared, 'choices': chosen, **more})}\n\n"

    for index, call in enumerate(calls):
        message = call.reply.message
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": message["content"] or ""}]
        deltas += [{"tool_calls": [{"index": n, **tool}]} for n, tool in enumerate(call.reply.tool_calls)]
        for place, delta in enumerate(deltas):
            choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": None}
            if place == 0 and request.logprobs:
                choice["logprobs"] = _logprobs(call, renderer)
            if place == 0 and request.token_ids:
                choice["token_ids"] = call.token_ids.tolist()
            yield event([choice])
        yield event([{"index": index, "delta": {}, "finish_reason": call.reply.finish_reason}])
    if request.with_usage:
        yield event([], usage=usage(calls))
    yield "data: [DONE]\n\n"


def head(request: Asked, calls: Sequence[Call], kind: str, prefix: str) -> dict[str, Any]:
    """What every answer of OpenAI's older dialects, and every chunk of one, begins with."""
    return {
        "id": f"{prefix}-{calls[0].number}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": f"weights-{calls[0].sampled.version}",
    }


def usage(calls: Sequence[Call]) -> dict[str, int]:
    """The counts of tokens."""
    prompt, sampled = token_counts(calls)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def _logprobs(call: Call, renderer: MessageRenderer) -> dict[str, Any]:
    return {"content": token_logprobs(call, renderer), "refusal": None}


CHAT_COMPLETIONS = Dialect(
    "/v1/chat/completions", FIELDS, read_request, completion, chunks, openai_error, openai_error_event
)

"""The dialect of ``/v1/chat/completions``: a body becomes a checked call, and replies become an answer.

What a client may not decide is the distribution that is sampled from, since the learner scores the run's own: such
fields are passed over. They are no error, because frameworks send them unasked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gspo_rllib.agents.messages import (
    RequestRefused,
    checked_max_tokens,
    checked_messages,
    checked_stop,
    checked_tools,
    sound_text,
)
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.session import Call, ChatRequest
from gspo_rllib.errors import shown

MAX_CHOICES = 16
MAX_TOOLS = 128

PASSED_OVER = (
    "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "logit_bias", "seed", "response_format",
)  # fmt: skip
"""Fields that would sample from another distribution than the one the learner scores, or make all replies alike."""

_REFUSED = {
    "previous_response_id": "nothing is stored between calls: send the whole conversation",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "audio": "this policy writes text",
}


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A checked body.

    Attributes:
        chat: What is sampled.
        model: What the client calls the model; any name is the policy.
        stream: Whether the answer is sent as chunks.
        with_usage: Whether the chunks end with the counts of tokens.
        logprobs: Whether the answer holds log-probabilities.
        token_ids: Whether the answer holds token ids.
        passed_over: Fields the client sent that have no effect.
    """

    chat: ChatRequest
    model: str
    stream: bool
    with_usage: bool
    logprobs: bool
    token_ids: bool
    passed_over: tuple[str, ...]


def read_request(raw: bytes, renderer: MessageRenderer) -> CompletionRequest:
    """Reads a body.

    Args:
        raw: The body, untrusted.
        renderer: Knows the variables of the chat template.

    Raises:
        RequestRefused: It is no call that can be answered.
    """
    body = parsed_object(raw)
    for name, remedy in _REFUSED.items():
        if body.get(name) is not None:
            raise RequestRefused(f"{name} is not supported; {remedy}.", name)
    tools = checked_tools(body.get("tools"))
    if len(tools) > MAX_TOOLS:
        raise RequestRefused(f"tools holds {len(tools)} tools; at most {MAX_TOOLS} are allowed.", "tools")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, Mapping):
        raise RequestRefused(f"stream_options is {shown(options)}; it must be an object.", "stream_options")
    model = body.get("model", "policy")
    if not isinstance(model, str):
        raise RequestRefused(f"model is {shown(model)}; it must be a string.", "model")
    limits = [checked_max_tokens(body.get(name), name) for name in ("max_tokens", "max_completion_tokens")]
    passed_over = [name for name in PASSED_OVER if body.get(name) is not None]
    if body.get("tool_choice") not in (None, "auto"):
        passed_over.append("tool_choice")
    return CompletionRequest(
        ChatRequest(
            checked_messages(body.get("messages")),
            tools,
            max_tokens=min((limit for limit in limits if limit is not None), default=None),
            stop=checked_stop(body.get("stop"), "stop"),
            choices=_choices(body.get("n")),
            template_kwargs=renderer.checked_template_kwargs(body.get("chat_template_kwargs")),
        ),
        model=sound_text(model),
        stream=_flag(body, "stream"),
        with_usage=_flag(options or {}, "include_usage"),
        logprobs=_flag(body, "logprobs"),
        token_ids=_flag(body, "return_token_ids"),
        passed_over=tuple(passed_over),
    )


def parsed_object(raw: bytes) -> dict[str, Any]:
    """A body as a JSON object.

    Raises:
        RequestRefused: It is none.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(f"the body is not JSON: {type(error).__name__}: {str(error)[:200]}.") from error
    if not isinstance(body, dict):
        raise RequestRefused(f"the body is {shown(body)}; it must be a JSON object.")
    return body


def completion(request: CompletionRequest, calls: Sequence[Call], renderer: MessageRenderer) -> dict[str, Any]:
    """The whole answer.

    Args:
        request: What was asked.
        calls: The replies, one for each choice.
        renderer: Writes token ids as text.
    """
    choices: list[dict[str, Any]] = []
    for index, call in enumerate(calls):
        choice = {"index": index, "message": call.reply.message, "finish_reason": call.reply.finish_reason}
        choice["logprobs"] = _logprobs(call, renderer) if request.logprobs else None
        if request.token_ids:
            choice["token_ids"] = call.token_ids.tolist()
        choices.append(choice)
    answer = {**_head(request, calls, "chat.completion"), "choices": choices, "usage": _usage(calls)}
    if request.token_ids:
        answer["prompt_token_ids"] = calls[0].prompt().tolist()
    return answer


def chunks(request: CompletionRequest, calls: Sequence[Call], renderer: MessageRenderer) -> Iterator[str]:
    """The answer as server-sent events: replies are whole when they come, so each is a few large pieces."""
    head = _head(request, calls, "chat.completion.chunk")

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n"

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
        yield event([], usage=_usage(calls))
    yield "data: [DONE]\n\n"


def _head(request: CompletionRequest, calls: Sequence[Call], kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{calls[0].number}",
        "object": kind,
        "created": int(time.time()),
        "model": request.model,
        "system_fingerprint": f"weights-{calls[0].sampled.version}",
    }


def _usage(calls: Sequence[Call]) -> dict[str, int]:
    prompt = len(calls[0].prompt())
    sampled = sum(len(call.sampled.generation.token_ids) for call in calls)
    return {"prompt_tokens": prompt, "completion_tokens": sampled, "total_tokens": prompt + sampled}


def _logprobs(call: Call, renderer: MessageRenderer) -> dict[str, Any]:
    generation = call.sampled.generation
    texts = renderer.token_texts(generation.token_ids)
    content = [
        {"token": text, "logprob": float(logp), "bytes": list(text.encode()), "top_logprobs": []}
        for text, logp in zip(texts, generation.logp, strict=True)
    ]
    return {"content": content, "refusal": None}


def _choices(value: Any) -> int:
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_CHOICES:
        raise RequestRefused(f"n is {shown(value)}; it must be a whole number from 1 to {MAX_CHOICES}.", "n")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestRefused(f"{name} is {shown(value)}; it must be true or false.", name)
    return bool(value)

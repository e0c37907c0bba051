"""The dialect of ``/v1/completions``: the agent writes the prompt itself, as text or as token ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gspo_rllib.agents.chat_completions import CompletionRequest, head, stream_options, usage
from gspo_rllib.agents.dialect import (
    Dialect,
    choices,
    flag,
    model_name,
    openai_error,
    openai_error_event,
)
from gspo_rllib.agents.fields import Fields
from gspo_rllib.agents.messages import RequestRefused, checked_max_tokens, checked_stop, sound_text
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.session import Call, ChatRequest
from gspo_rllib.errors import shown

FIELDS = Fields(
    read=(
        "model", "prompt", "max_tokens", "stop", "n", "stream", "stream_options", "logprobs", "return_token_ids",
    ),
    refused={
        "echo": "the answer holds what was sampled; the prompt is known to the client",
        "suffix": "the policy writes what follows a prompt",
        "best_of": "use n, and choose among the replies",
    },
)  # fmt: skip


def read_request(body: Mapping[str, Any], renderer: MessageRenderer) -> CompletionRequest:
    """Reads a body.

    Args:
        body: The body, untrusted.
        renderer: Knows the vocabulary.

    Raises:
        RequestRefused: It is no call that can be answered.
    """
    passed_over = tuple(FIELDS.check(body))
    options = stream_options(body)
    return CompletionRequest(
        ChatRequest(
            raw=_checked_prompt(body.get("prompt"), renderer.num_tokens),
            max_tokens=checked_max_tokens(body.get("max_tokens"), "max_tokens"),
            stop=checked_stop(body.get("stop"), "stop"),
            choices=choices(body),
        ),
        model=model_name(body),
        stream=flag(body, "stream"),
        passed_over=passed_over,
        with_usage=flag(options, "include_usage"),
        logprobs=_wants_logprobs(body.get("logprobs")),
        token_ids=flag(body, "return_token_ids"),
    )


def completion(request: CompletionRequest, calls: Sequence[Call], renderer: MessageRenderer) -> dict[str, Any]:
    """The whole answer.

    Args:
        request: What was asked.
        calls: The replies, one for each choice.
        renderer: Writes token ids as text.
    """
    chosen = [_choice(request, index, call, renderer) for index, call in enumerate(calls)]
    answer = {**head(request, calls, "text_completion", "cmpl"), "choices": chosen, "usage": usage(calls)}
    if request.token_ids:
        answer["prompt_token_ids"] = calls[0].prompt().tolist()
    return answer


def chunks(request: CompletionRequest, calls: Sequence[Call], renderer: MessageRenderer) -> Iterator[str]:
    """The answer as server-sent events."""
    shared = head(request, calls, "text_completion", "cmpl")
    for index, call in enumerate(calls):
        yield f"data: {json.dumps({**shared, 'choices': [_choice(request, index, call, renderer)]})}\n\n"
    if request.with_usage:
        yield f"data: {json.dumps({**shared, 'choices': [], 'usage': usage(calls)})}\n\n"
    yield "data: [DONE]\n\n"


def _choice(request: CompletionRequest, index: int, call: Call, renderer: MessageRenderer) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": index,
        "text": call.reply.content,
        "finish_reason": call.reply.finish_reason,
        "logprobs": _logprobs(call, renderer) if request.logprobs else None,
    }
    if request.token_ids:
        choice["token_ids"] = call.token_ids.tolist()
    return choice


def _logprobs(call: Call, renderer: MessageRenderer) -> dict[str, Any]:
    generation = call.sampled.generation
    texts = renderer.token_texts(generation.token_ids)
    offsets, place = [], 0
    for text in texts:
        offsets.append(place)
        place += len(text)
    logps = [float(logp) for logp in generation.logp]
    return {"tokens": texts, "token_logprobs": logps, "text_offset": offsets, "top_logprobs": None}


def _wants_logprobs(value: Any) -> bool:
    """OpenAI's field is the number of alternatives, of which there are none here; 0 asks for the sampled token."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if not isinstance(value, int) or value < 0:
        raise RequestRefused(f"logprobs is {shown(value)}; it must be a whole number of at least 0.", "logprobs")
    return True


def _checked_prompt(prompt: Any, num_tokens: int) -> str | tuple[int, ...]:
    """One prompt, also where a client sends it as a list of one.

    Args:
        prompt: What the client sent, untrusted.
        num_tokens: Size of the vocabulary.

    Raises:
        RequestRefused: It is empty, or something else than text or token ids, or there are several.
    """
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str) and prompt:
        return sound_text(prompt)
    if not isinstance(prompt, list) or not prompt:
        raise RequestRefused(f"prompt is {shown(prompt)}; it must be text or a list of token ids, not empty.", "prompt")
    if any(isinstance(one, str | list) for one in prompt):
        raise RequestRefused(f"prompt holds {len(prompt)} prompts; send one in each call.", "prompt")
    for place, token_id in enumerate(prompt):
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < num_tokens:
            raise RequestRefused(
                f"prompt[{place}] is {shown(token_id)}; a token id is a whole number from 0 to {num_tokens - 1}.",
                "prompt",
            )
    return tuple(prompt)


COMPLETIONS = Dialect("/v1/completions", FIELDS, read_request, completion, chunks, openai_error, openai_error_event)

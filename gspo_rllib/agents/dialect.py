"""What a dialect of the server is: a body becomes a checked call, and replies become an answer or a stream.

All dialects ask the same session in the same way, so what is recognised, refused and passed over (``fields``) does not
depend on the one that is spoken.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gspo_rllib.agents.fields import TEMPLATE_KWARGS, Fields
from gspo_rllib.agents.messages import RequestRefused, checked_tools, sound_text
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.session import Call, ChatRequest
from gspo_rllib.errors import repeated, shown

MAX_CHOICES = 16
MAX_TOOLS = 128
MAX_DEPTH = 64
"""How deep a body may be nested."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked body.

    Attributes:
        chat: What is sampled.
        model: What the client calls the model; any name is the policy.
        stream: Whether the answer is sent as events.
        passed_over: Fields the client sent that have no effect.
    """

    chat: ChatRequest
    model: str
    stream: bool
    passed_over: tuple[str, ...]


A = TypeVar("A", bound=Asked)


@dataclass(frozen=True, slots=True)
class Dialect(Generic[A]):
    """How one kind of client speaks.

    Attributes:
        path: Where it is served.
        fields: What becomes of each field of a body.
        read: Checks a body; raises RequestRefused where it is no call that can be answered.
        answer: What was asked and its replies -> the whole answer.
        events: The same as server-sent events. Replies are whole when they come, so each is a few large pieces.
        error: A refusal as the client's SDK understands it.
        error_event: The same in a stream that has begun.
    """

    path: str
    fields: Fields
    read: Callable[[Mapping[str, Any], MessageRenderer], A]
    answer: Callable[[A, Sequence[Call], MessageRenderer], dict[str, Any]]
    events: Callable[[A, Sequence[Call], MessageRenderer], Iterator[str]]
    error: Callable[[RequestRefused], dict[str, Any]]
    error_event: Callable[[RequestRefused], str]


def parsed_object(raw: bytes) -> dict[str, Any]:
    """A body as a JSON object.

    Args:
        raw: The body, untrusted.

    Raises:
        RequestRefused: It is none, an object in it says something twice, or it is nested too deep.
    """
    try:
        body = json.loads(raw, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise RequestRefused(f"the body is not JSON: {type(error).__name__}: {str(error)[:200]}.") from error
    if not isinstance(body, dict):
        raise RequestRefused(f"the body is {shown(body)}; it must be a JSON object.")
    _check_depth(body)
    return body


def _check_depth(body: dict[str, Any]) -> None:
    # What checks, compares and renders nested data is recursive, and so are the template's own filters.
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        inner = [one.values() if type(one) is dict else one for one in level]
        level = [value for values in inner for value in values if type(value) in (dict, list)]
        if not level:
            return
    raise RequestRefused(f"the body is nested more than {MAX_DEPTH} deep.")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Which of two values counts differs from parser to parser.
    found = dict(pairs)
    if len(found) < len(pairs):
        name, times = next(iter(repeated(name for name, _ in pairs).items()))
        raise RequestRefused(f"the body holds {shown(name)} {times} times in one object; send it once.")
    return found


def model_name(body: Mapping[str, Any]) -> str:
    """What the client calls the model.

    Raises:
        RequestRefused: It is no string.
    """
    model = body.get("model", "policy")
    if not isinstance(model, str):
        raise RequestRefused(f"model is {shown(model)}; it must be a string.", "model")
    return sound_text(model)


def flag(body: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false; absent and null are false.

    Raises:
        RequestRefused: It is something else.
    """
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestRefused(f"{name} is {shown(value)}; it must be true or false.", name)
    return bool(value)


def choices(body: Mapping[str, Any]) -> int:
    """How many replies are asked for.

    Raises:
        RequestRefused: It is no whole number from 1 to MAX_CHOICES.
    """
    value = body.get("n")
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_CHOICES:
        raise RequestRefused(f"n is {shown(value)}; it must be a whole number from 1 to {MAX_CHOICES}.", "n")
    return value


def template_kwargs(body: Mapping[str, Any], renderer: MessageRenderer) -> tuple[dict[str, Any], list[str]]:
    """What a client tells the chat template, and the fields of it that this template never reads.

    Raises:
        RequestRefused: It is no object of plain values, or would change more than the template's own variables.
    """
    given = renderer.checked_template_kwargs(body.get("chat_template_kwargs"))
    unread = [f"{TEMPLATE_KWARGS}{name}" for name in given if not renderer.reads(name)]
    return {name: value for name, value in given.items() if renderer.reads(name)}, unread


def some_tools(tools: Any) -> tuple[dict[str, Any], ...]:
    """The tools of a call, of which there are not too many.

    Raises:
        RequestRefused: They are no list of functions, or too many.
    """
    checked = checked_tools(tools)
    if len(checked) > MAX_TOOLS:
        raise RequestRefused(f"tools holds {len(checked)} tools; at most {MAX_TOOLS} are allowed.", "tools")
    return checked


def token_counts(calls: Sequence[Call]) -> tuple[int, int]:
    """Tokens of the prompt, and of all replies."""
    return calls[0].num_prompt_tokens, sum(len(call.token_ids) for call in calls)


def token_logprobs(call: Call, renderer: MessageRenderer) -> list[dict[str, Any]]:
    """The log-probability of each sampled token beside its text."""
    generation = call.sampled.generation
    texts = renderer.token_texts(generation.token_ids)
    return [
        {"token": text, "logprob": float(logp), "bytes": list(text.encode()), "top_logprobs": []}
        for text, logp in zip(texts, generation.logp, strict=True)
    ]


def openai_error(refused: RequestRefused) -> dict[str, Any]:
    """A refusal as OpenAI's clients read it."""
    error = {
        "message": sound_text(str(refused)),
        "type": "invalid_request_error",
        "param": refused.param,
        "code": refused.code,
    }
    return {"error": error}


def openai_error_event(refused: RequestRefused) -> str:
    """The same in a stream of chunks."""
    return f"data: {json.dumps(openai_error(refused))}\n\n"


def named_event(name: str, data: Mapping[str, Any]) -> str:
    """A server-sent event with a name, which its data repeats as ``type``."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n"

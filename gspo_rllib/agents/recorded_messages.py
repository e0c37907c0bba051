"""Recorded messages of one trajectory, as the calls they stand for: prompts are written as for live agents.

Only replies of the policy become calls: messages with ``sampled_ids``, and those marked ``"trainable": true`` one by
one, whose text is tokenised as the policy should have sampled it. Every other message is context, also an assistant's:
what another model said, or a person, is never trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gspo_rllib.agents.messages import Message, RequestRefused, checked_messages, checked_tools
from gspo_rllib.agents.record_fields import checked_choice, checked_fields, checked_ids, checked_list
from gspo_rllib.agents.recorded_calls import SAMPLED_FIELDS
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.errors import RecordError

CONVERSATION_FIELDS = ("messages", "tools")
"""What a recorded conversation may hold."""

_CHAT_FIELDS = (
    "role", "content", "name", "tool_calls", "tool_call_id", "function_call", "refusal", "annotations", "audio",
    "reasoning", "reasoning_content",
)  # fmt: skip
_POLICY_FIELDS = (*SAMPLED_FIELDS, "trainable")


def calls_of_conversations(rows: Sequence[Any], renderer: MessageRenderer, place: str) -> list[dict[str, Any]]:
    """What ``linked_calls`` takes, of each reply of the policy in these conversations.

    Args:
        rows: ``{"messages": [...], "tools": [...]}`` each; one for each context that the agent kept.
        renderer: Writes messages as the policy's prompts.
        place: Where.

    Raises:
        RecordError: One of them is wrong, or no message is the policy's.
    """
    calls: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        where = f"{place}, conversation {number}"
        checked_fields(row, CONVERSATION_FIELDS, where)
        given = checked_list(row.get("messages"), "message", f"{where}: messages")
        for n, message in enumerate(given):
            _check_message(message, f"{where}, message {n}")
        chat = [{name: value for name, value in one.items() if name not in _POLICY_FIELDS} for one in given]
        try:
            messages, tools = checked_messages(chat), checked_tools(row.get("tools"))
            calls += _calls(given, messages, tools, renderer, len(calls), where)
        except RequestRefused as error:
            raise RecordError(f"{where}: {error}") from error
    if not calls:
        raise RecordError(
            f'{place}: no message is a reply of the policy. One has sampled_ids, or is marked "trainable": true if its '
            "text is to be trained although nothing recorded the ids."
        )
    return calls


def _calls(
    given: Sequence[Mapping[str, Any]],
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    renderer: MessageRenderer,
    first: int,
    place: str,
) -> Iterator[dict[str, Any]]:
    """The calls of one conversation; the first of them has this number."""
    system = [message for message in messages[:1] if message["role"] == "system"]
    known, ids = 0, [0]  # messages up to the last reply of the policy, and that reply
    count = 0
    for place_of, message in enumerate(given):
        if not _is_policys(message):
            continue
        where = f"{place}, message {place_of}"
        if not place_of:
            raise RecordError(f"{where} is the policy's; a conversation begins with what it replies to.")
        tail = messages[known:place_of]
        bridge = renderer.bridge(tail, tools, {}, reply=ids, system=system) if known and tail else None
        if bridge is None:
            prompt = renderer.full(messages[:place_of], tools, {})
            row: dict[str, Any] = {"prompt_ids": prompt, "after": None}
        else:
            prompt = bridge
            row = {"appended_ids": bridge, "after": first + count - 1}
        ids = _reply(message, messages[place_of], renderer, prompt or ids, where)
        row |= {name: message[name] for name in SAMPLED_FIELDS if message.get(name) is not None}
        row |= {"sampled_ids": ids, "text": renderer.decode(ids)}
        row["observation"] = "\n".join(one["content"] for one in tail if one["content"])
        known, count = place_of + 1, count + 1
        yield row


def _reply(
    message: Mapping[str, Any], shown: Message, renderer: MessageRenderer, prompt: Sequence[int], place: str
) -> list[int]:
    """The ids of a reply of the policy: those that were sampled, or its text as it should have been."""
    if message.get("sampled_ids") is not None:
        return [int(i) for i in checked_ids(message["sampled_ids"], f"{place}: sampled_ids")]
    if shown.get("tool_calls"):
        raise RecordError(
            f"{place} is trainable and has tool_calls, which every model writes in its own way. Give the reply as the "
            "policy writes it: in content, or as sampled_ids."
        )
    ended = message.get("finish_reason", "stop") == "stop"
    return renderer.reply(shown["content"], prompt, ended=ended)


def _is_policys(message: Mapping[str, Any]) -> bool:
    return message.get("sampled_ids") is not None or message.get("trainable") is True


def _check_message(message: Any, place: str) -> None:
    checked_fields(message, (*_CHAT_FIELDS, *_POLICY_FIELDS), place)
    if "trainable" in message:
        checked_choice(message["trainable"], (True, False), f"{place}: trainable")
    said = [name for name in _POLICY_FIELDS if message.get(name) is not None and message[name] is not False]
    if said and message.get("role") != "assistant":
        raise RecordError(f"{place} has {said[0]} and the role {message.get('role')!r}; only an assistant's may.")
    if said and message.get("trainable") is False:
        raise RecordError(f'{place} has {said[0]} and "trainable": false; leave out one of the two.')
    if said and not _is_policys(message):
        raise RecordError(
            f'{place} has {said[0]} and is no reply of the policy: that has sampled_ids, or "trainable": true.'
        )
    if message.get("logprobs") is not None and message.get("sampled_ids") is None:
        raise RecordError(f"{place} has logprobs without the sampled_ids they belong to.")

"""The replies of one session to conversations of messages, and which of them a history holds.

A conversation has a key after each of its messages (``messages.next_key``), and a reply is found under the key of the
conversation that it ends. Clients write some replies in another way than they were given, and not always the same
one: each of these ways leads to the reply's own key, so what follows it in a history is found as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Generic, Protocol, TypeVar

from gspo_rllib.agents.messages import Message, next_key
from gspo_rllib.agents.replies import Reply


class Answered(Protocol):
    """A call that was answered.

    Attributes:
        text: The reply as it was sampled.
        reply: What the client was given.
        children: What goes on from it.
    """

    @property
    def text(self) -> str: ...  # noqa: D102

    @property
    def reply(self) -> Reply: ...  # noqa: D102

    @property
    def children(self) -> Sequence[Any]: ...  # noqa: D102


_Answered = TypeVar("_Answered", bound=Answered)


class KnownReplies(Generic[_Answered]):
    """What the policy said in one session."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, list[_Answered]] = {}
        self._own: dict[bytes, bytes] = {}  # key of another way to write a reply -> the reply's own
        self._latest: tuple[bytes, Sequence[Message], list[bytes]] = (b"", (), [])  # start, messages and their keys

    def chain(self, start: bytes, messages: Sequence[Message]) -> list[bytes]:
        """The keys of a conversation after 0, 1, 2 … of its messages.

        Those of messages that the call before had too are taken from there.
        """
        before_start, before, chain = self._latest
        shared = 0
        if before_start == start:
            alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, messages, strict=False))
            shared = sum(1 for _ in alike)
        chain = chain[: shared + 1] if shared else [start]
        for message in messages[shared:]:
            key = next_key(chain[-1], message)
            chain.append(key if key in self._by_key else self._own.get(key, key))
        self._latest = (start, messages, chain)
        return chain

    def note(self, key: bytes, answered: _Answered) -> None:
        """Adds a reply; from now on it is recognised.

        Args:
            key: The key of the conversation that it answers.
            answered: The reply.
        """
        reply = answered.reply
        as_given: Message = {**reply.message, "content": reply.content}
        own = next_key(key, as_given)
        # Clients put the stop string back, and some show a call of a tool as the text it was written in.
        others: list[Message] = [{"role": "assistant", "content": answered.text}]
        if reply.tool_calls:  # or leave out what was said beside calls
            others.append({**as_given, "content": ""})
        for other in others:
            self._own[next_key(key, other)] = own
        self._by_key.setdefault(own, []).append(answered)

    def recognised(self, chain: Sequence[bytes], messages: Sequence[Message]) -> tuple[_Answered | None, int]:
        """The latest reply in a history that is known, and the number of messages up to it.

        Args:
            chain: The keys of the conversation.
            messages: The conversation; something must follow the reply.
        """
        for known in range(len(messages) - 1, 0, -1):
            back = messages[known - 1]
            if back["role"] == "assistant" and (found := self._by_key.get(chain[known])):
                return min(found, key=lambda one: _unlikeness(one, back)), known
        return None, 0


def _unlikeness(answered: Answered, back: Message) -> tuple[bool, bool, int]:
    # Several replies may read alike: one that was written just so, then one that nothing goes on from yet, which makes
    # no second branch.
    reply = answered.reply
    ids = [call["id"] for call in back.get("tool_calls", ())]
    return reply.content != back["content"], [call["id"] for call in reply.tool_calls] != ids, len(answered.children)

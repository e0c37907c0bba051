"""The replies of one session to conversations of messages, and which of them a history holds.

A history holds a reply if the message at the reply's place is it, and what stands before is the conversation that it
answered: other replies that were given, and to the letter what was said between them. Clients write some replies in
another way than they were given, and not always the same one, so a reply has several forms (``messages.form_of``).

Replies may read alike, above all where an agent holds conversations in parallel. Then the one is meant whose
conversation is most as the history has it, words and ids of calls; and where nothing tells them apart, one that nothing
goes on from yet, so that parallel conversations stay one context each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from gspo_rllib.agents.messages import Message, form_of
from gspo_rllib.agents.replies import Reply


class Answered(Protocol):
    """A call that was answered.

    Attributes:
        text: The reply as it was sampled.
        reply: What the client was given.
        delivered: Whether the client received it, as far as is known.
        num_followers: How many calls go on from it, those under way included.
    """

    delivered: bool

    @property
    def text(self) -> str: ...  # noqa: D102

    @property
    def reply(self) -> Reply: ...  # noqa: D102

    @property
    def num_followers(self) -> int: ...  # noqa: D102


_Answered = TypeVar("_Answered", bound=Answered)


@dataclass(frozen=True, eq=False, slots=True)
class _Known(Generic[_Answered]):
    """A reply within its conversation.

    Attributes:
        answered: The reply.
        parent: The reply before it in the conversation; None where what stands there was never sampled.
        said: The part of the chain between the two.
        place: Where in a chain the reply stands.
        forms: The forms in which clients write it.
    """

    answered: _Answered
    parent: _Known[_Answered] | None
    said: list[bytes]
    place: int
    forms: frozenset[bytes]


class KnownReplies(Generic[_Answered]):
    """What the policy said in one session.

    Conversations are compared as chains: what decides how they are written (``messages.start_key``), then the form of
    each message, so that message n stands at place n + 1.
    """

    def __init__(self) -> None:
        self._known: dict[_Answered, _Known[_Answered]] = {}
        self._at: dict[tuple[int, bytes], list[_Known[_Answered]]] = {}  # by place and form
        self._latest: tuple[Sequence[Message], list[bytes]] = ((), [])  # messages and their forms

    def chain(self, start: bytes, messages: Sequence[Message]) -> list[bytes]:
        """The chain of a conversation; the forms of messages that the call before had too are taken from there."""
        before, forms = self._latest
        alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, messages, strict=False))
        shared = sum(1 for _ in alike)
        forms = [*forms[:shared], *map(form_of, messages[shared:])]
        self._latest = messages, forms
        return [start, *forms]

    def note(self, chain: Sequence[bytes], answered: _Answered, parent: _Answered | None) -> None:
        """Adds a reply; from now on it is recognised.

        Args:
            chain: The conversation that it answers.
            answered: The reply.
            parent: The reply in it that the call went on from.
        """
        reply = answered.reply
        as_given: Message = {**reply.message, "content": reply.content}
        ways = [as_given]
        if reply.content != answered.text:
            # Clients put the stop string back, and some show a call of a tool as the text it was written in,
            ways.append({"role": "assistant", "content": answered.text})
        if reply.tool_calls:  # or leave out what was said beside calls.
            ways.append({**as_given, "content": ""})
        before = None if parent is None else self._known[parent]
        said = list(chain[0 if before is None else before.place + 1 :])
        known = _Known(answered, before, said, len(chain), frozenset(map(form_of, ways)))
        self._known[answered] = known
        for form in known.forms:
            self._at.setdefault((known.place, form), []).append(known)

    def recognised(self, chain: Sequence[bytes], messages: Sequence[Message]) -> tuple[_Answered | None, int]:
        """The latest reply in a history that is known, and the number of messages up to it.

        Args:
            chain: The conversation.
            messages: The same, as messages; something must follow the reply.
        """
        for place in range(len(messages) - 1, 0, -1):
            if messages[place - 1]["role"] == "assistant":
                found = [known for known in self._at.get((place, chain[place]), ()) if _is_held(known, chain)]
                if found:
                    likely = found[0] if len(found) == 1 else min(found, key=lambda one: _unlikeness(one, messages))
                    return likely.answered, place
        return None, 0


def _is_held(known: _Known[Any], chain: Sequence[bytes]) -> bool:
    """Whether a conversation begins with the one that ends with this reply."""
    one: _Known[Any] | None = known
    while one is not None:
        begin = 0 if one.parent is None else one.parent.place + 1
        if chain[one.place] not in one.forms or chain[begin : one.place] != one.said:
            return False
        one = one.parent
    return True


def _unlikeness(known: _Known[Any], messages: Sequence[Message]) -> tuple[int, int, bool, int]:
    """How many replies of a conversation a history holds in other words, and with other ids of calls; then the rest."""
    words = ids = 0
    one: _Known[Any] | None = known
    while one is not None:
        reply, back = one.answered.reply, messages[one.place - 1]
        words += reply.content != back["content"]
        ids += [call["id"] for call in reply.tool_calls] != [call["id"] for call in back.get("tool_calls", ())]
        one = one.parent
    return words, ids, not known.answered.delivered, known.answered.num_followers

"""Replies that read alike: every call goes on from the one that is meant, and parallel conversations stay apart."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from gspo_rllib.agents.door import Door
from gspo_rllib.agents.messages import RequestRefused, checked_messages
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.session import Call, ChatRequest, Prepared
from tests.agents.made_up_policy import MadeUpPolicy, user
from tests.agents.serving import served

NUM_AGENTS = 300
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>{"name": "add", "arguments": {"b": 2, "a": 1}}</tool_call>'

Message = dict[str, Any]


@dataclass
class Branch:
    """One of several conversations that an agent holds in parallel; all are told the same.

    Attributes:
        length: Replies after which it ends.
        calls: Its replies so far.
        history: What it heard and said, as the agent has it.
        asked: The call under way.
    """

    length: int
    calls: list[Call] = field(default_factory=list)
    history: list[Message] = field(default_factory=lambda: [user("q")])
    asked: Prepared | None = None


def _as_given(message: Message) -> Message:
    return message


def _without_reasoning(message: Message) -> Message:
    """As pydantic-ai sends it, and with new ids of calls."""
    calls = [call | {"id": f"new{n}"} for n, call in enumerate(message.get("tool_calls", []))]
    content = (message["content"] or "").split("</think>")[-1]
    return {**message, "content": content} | ({"tool_calls": calls} if calls else {})


def _play(policy: MadeUpPolicy, seed: int, write_back: Callable[[Message], Message], words: list[str]) -> list[Branch]:
    """Branches take turns at random; some calls are cancelled, and made again."""
    draw = random.Random(seed)
    branches = [Branch(draw.randint(1, 5)) for _ in range(draw.randint(2, 4))]
    while left := [branch for branch in branches if len(branch.calls) < branch.length]:
        branch = draw.choice(left)
        if branch.asked is None:
            request = ChatRequest(checked_messages(branch.history), tools=(ADD,))
            branch.asked = policy.session.prepare(request)
            continue
        asked, branch.asked = branch.asked, None
        if draw.random() < 0.15:
            policy.session.withdraw(asked)
            continue
        (call,) = policy.answer(asked, ids=policy.ids(draw.choice(words)))
        branch.calls.append(call)
        heard = {"role": "tool", "content": "3", "tool_call_id": "x"} if call.reply.tool_calls else user("go on")
        branch.history += [write_back(call.reply.message), heard]
    return branches


def _contexts(policy: MadeUpPolicy) -> int:
    calls = policy.session.trained_calls()
    return sum(not call.children for call in calls)


def _as_text(policy: MadeUpPolicy, branch: Branch) -> list[list[str]]:
    """What the calls of a branch were shown of earlier replies, and what those replies were."""
    shown = []
    for call in branch.calls:
        texts, parent = [], call.parent
        while parent is not None:
            texts.append(parent.text)
            parent = parent.parent
        shown.append(texts[::-1])
    return shown


@pytest.mark.parametrize("write_back", [_as_given, _without_reasoning])
def test_parallel_conversations_with_equal_replies_stay_one_context_each(
    rich_renderer: MessageRenderer, write_back: Callable[[Message], Message]
) -> None:
    num_alike = 0
    for seed in range(NUM_AGENTS):
        policy = MadeUpPolicy(rich_renderer, max_tokens=200)
        branches = _play(policy, seed, write_back, ["yes", CALL])
        assert _contexts(policy) == len(branches)
        for branch in branches:
            said = [call.text for call in branch.calls]
            assert _as_text(policy, branch) == [said[:n] for n in range(len(said))]
        beginnings = [tuple(call.text for call in branch.calls[:2]) for branch in branches if branch.length > 1]
        num_alike += len(set(beginnings)) < len(beginnings)
    assert num_alike > NUM_AGENTS / 4, "the replies became too different"


def test_what_an_agent_sends_back_as_it_was_given_names_the_reply_that_is_meant(rich_renderer: MessageRenderer) -> None:
    # What recognises a reply passes over reasoning, spaces and ids of calls; these tell replies apart all the same.
    words = [f"<think>{thought}</think>{said}" for thought in "ab" for said in ("yes", CALL)] + ["yes", "yes "]
    num_other = 0
    for seed in range(NUM_AGENTS):
        policy = MadeUpPolicy(rich_renderer, max_tokens=200)
        branches = _play(policy, seed, _as_given, words)
        assert _contexts(policy) == len(branches)
        for branch in branches:
            said = [call.text for call in branch.calls]
            assert _as_text(policy, branch) == [said[:n] for n in range(len(said))]
        num_other += any(
            call.parent is not parent
            for branch in branches
            for parent, call in zip(branch.calls, branch.calls[1:], strict=False)
        )
    assert num_other < NUM_AGENTS / 4  # the same reply, word by word, of another branch


def test_two_calls_at_a_time_go_on_from_one_reply_each(renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(renderer)
    replies = [policy.say([user("a")], "same") for _ in range(2)]
    request = ChatRequest(checked_messages([user("a"), replies[0].reply.message, user("b")]))
    asked = [policy.session.prepare(request) for _ in range(2)]
    assert [prepared.parent for prepared in asked] == replies
    # What is not waited for any more is counted no more, in whatever order calls end.
    policy.session.withdraw(asked[0])
    assert policy.session.prepare(request).parent is replies[0]


def test_a_call_that_is_refused_holds_no_reply(renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(renderer, max_model_len=60)
    replies = [policy.say([user("a")], "same") for _ in range(2)]
    long = [user("a"), replies[0].reply.message, user("b" * 100)]
    for _ in range(3):
        with pytest.raises(RequestRefused, match="maximum context length"):
            policy.session.prepare(ChatRequest(checked_messages(long)))
    assert [reply.num_followers for reply in replies] == [0, 0]


def test_a_call_that_is_cancelled_holds_no_reply(renderer: MessageRenderer) -> None:
    async def give_up(door: Door) -> None:
        (first,) = await door.answer(ChatRequest([user("a")]))
        one.hold.clear()
        history = [user("a"), {**first.reply.message, "content": first.text}, user("b")]
        asked = asyncio.ensure_future(door.answer(ChatRequest(history)))
        await asyncio.sleep(0)
        assert first.num_followers == 1
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        assert first.num_followers == 0

    with served(renderer) as one:
        asyncio.run(give_up(one.door))


def test_of_replies_that_read_alike_a_lost_one_is_not_gone_on_from(renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(renderer)
    (lost,) = policy.ask(ChatRequest([user("a")]), ids=policy.ids("same"), delivered=False)
    again = policy.say([user("a")], "same")
    child = policy.say([user("a"), again.reply.message, user("b")], "x")
    assert child.parent is again
    assert policy.session.trained_calls() == [again, child] and lost in policy.session.calls


def test_words_left_out_beside_calls_make_replies_alike_and_hide_none(rich_renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(rich_renderer, max_tokens=200)
    firsts = [policy.say([user("a")], f"{words} {CALL}", tools=(ADD,)) for words in ("One.", "Two.")]
    result = {"role": "tool", "content": "3", "tool_call_id": "x"}
    bare = [{**first.reply.message, "content": None} for first in firsts]
    # The ids of the calls name the reply.
    for first, message in reversed(list(zip(firsts, bare, strict=True))):
        assert policy.say([user("a"), message, result], "so?", tools=(ADD,)).parent is first
    # Without them either is meant, and what follows in the history is of one of them alone.
    seconds = [
        policy.say([user("a"), first.reply.message, result], text, tools=(ADD,))
        for first, text in zip(firsts, ("b", "c"), strict=True)
    ]
    plain = {**bare[0], "tool_calls": [{**bare[0]["tool_calls"][0], "id": "other"}]}
    for second in seconds:
        later = [user("a"), plain, result, second.reply.message, user("and?")]
        assert policy.say(later, "d", tools=(ADD,)).parent is second


def test_a_reply_that_is_another_with_its_stop_string_put_back_hides_neither(renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(renderer)
    ids = policy.ids("x;", ends=False)
    stopped = policy.say([user("a")], "x;", stop=(";",))
    (whole,) = policy.ask(ChatRequest([user("a")]), ids=ids)
    assert (stopped.reply.content, whole.reply.content) == ("x", "x;")
    put_back = [user("a"), {"role": "assistant", "content": "x;"}]
    after_whole = policy.say([*put_back, user("b")], "1")
    after_stopped = policy.say([user("a"), stopped.reply.message, user("b")], "2")
    assert (after_whole.parent, after_stopped.parent) == (whole, stopped)
    for after in (after_whole, after_stopped):
        assert policy.say([*put_back, user("b"), after.reply.message, user("c")], "3").parent is after

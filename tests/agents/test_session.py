"""A reply is recognised in what clients send back, and its sampled ids are what the next call goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gspo_rllib.agents.messages import RequestRefused, SessionEnded
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.session import Call, ChatRequest, Sampled
from gspo_rllib.engines.protocol import Generation
from tests.agents.made_up_policy import MadeUpPolicy, user

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = '<think>easy</think>\nLet me see. <tool_call>{"name": "add", "arguments": {"b": 2, "a": 1}}</tool_call>'


def _goes_on(policy: MadeUpPolicy, reply: Call, messages: list[Any], **request: Any) -> bool:
    """Whether a call with this history is the reply's child, its ids being all of the prompt but the bridge."""
    call = policy.say(messages, "yes", **request)
    context = policy.seen[reply.number][0] + policy.seen[reply.number][1]
    assert (call.parent is reply) == (policy.seen[call.number][0][: len(context)] == context)
    return call.parent is reply


def _call_message(**changes: Any) -> dict[str, Any]:
    call = {"id": "another", "type": "function", "function": {"name": "add", "arguments": '{"a":1,"b":2}'}}
    return {"role": "assistant", "content": "Let me see.", "tool_calls": [call]} | changes


REWRITTEN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "nothing changed": lambda message: message,
    "reasoning cut": lambda message: {**message, "content": message["content"].split("</think>")[1]},
    "reasoning moved": lambda message: {
        **message, "content": f"\n\n{message['content'].split('</think>')[1]}", "reasoning_content": "easy",
    },
    "reasoning with other spaces": lambda message: {
        **message, "content": message["content"].replace("<think>easy</think>", "<think>\neasy\n</think>\n\n"),
    },
    "outer spaces": lambda message: {**message, "content": f" {message['content']}\n"},
    "parts": lambda message: {**message, "content": [{"type": "text", "text": part} for part in message["content"]]},
    "call ids, spaces and key order of arguments": lambda message: _call_message(),
    "arguments as an object": lambda message: _call_message(
        tool_calls=[{"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}]
    ),
    "words beside the call left out": lambda message: _call_message(content=None),
    "the call as the text it was written in": lambda message: {"role": "assistant", "content": CALL},
    "other fields": lambda message: {**message, "refusal": None, "annotations": [], "audio": None},
}  # fmt: skip


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_reply_is_recognised_however_clients_rewrite_it(rich_renderer: MessageRenderer, name: str) -> None:
    policy = MadeUpPolicy(rich_renderer)
    reply = policy.say([user("1 + 2?")], CALL, tools=(ADD,))
    assert reply.reply.finish_reason == "tool_calls"
    rewritten = REWRITTEN[name](json.loads(json.dumps(reply.reply.message)))
    result = {"role": "tool", "tool_call_id": "another", "content": "3"}
    assert _goes_on(policy, reply, [user("1 + 2?"), rewritten, result], tools=(ADD,))


def test_the_bridge_is_what_the_template_writes_between_two_replies(rich_renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(rich_renderer)
    reply = policy.say([user("1 + 2?")], CALL, tools=(ADD,))
    messages = [user("1 + 2?"), reply.reply.message, {"role": "tool", "content": "3"}, user("and?")]
    call = policy.say(messages, "3", tools=(ADD,))
    bridge = rich_renderer._tokenizer.decode(call.appended)
    expected = "\n<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n<|im_start|>user\nand?<|im_end|>\n"
    assert bridge == f"{expected}<|im_start|>assistant\n"
    # A reply that was cut off is closed by the bridge.
    cut = policy.say([user("again")], "thr", ends=False)
    after = policy.say([user("again"), cut.reply.message, user("and?")], "3")
    assert rich_renderer._tokenizer.decode(after.appended).startswith("<|im_end|>\n<|im_start|>user\nand?")


def test_a_stop_string_is_cut_for_the_client_kept_in_the_ids_and_may_be_put_back(renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(renderer)
    reply = policy.say([user("a")], "x = 1</code>", ends=False, stop=("</code>",))
    assert reply.sampled.generation.finish_reason == "length" and reply.reply.content == "x = 1</code>"
    prepared = policy.session.prepare(ChatRequest([user("b")], stop=("</code>",)))
    ids = renderer._tokenizer.encode("x = 1</code>", add_special_tokens=False)
    sampled = Sampled(Generation("", ids, np.zeros(len(ids), np.float32), "stop"), 0)
    stopped = policy.session.record(prepared, prepared.numbers[0], sampled)
    policy.seen[stopped.number] = prepared.prompt, ids
    assert (stopped.text, stopped.reply.content) == ("x = 1</code>", "x = 1")
    for content in ("x = 1", "x = 1</code>"):
        assert _goes_on(policy, stopped, [user("b"), {"role": "assistant", "content": content}, user("c")])


def test_a_reply_that_is_rewritten_only_later_hides_none_that_follows(rich_renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(rich_renderer)
    history = [user("1 + 2?")]
    first = policy.say(history, CALL, tools=(ADD,))
    result = {"role": "tool", "tool_call_id": "another", "content": "3"}
    given = json.loads(json.dumps(first.reply.message))
    second = policy.say([*history, given, result], "3", tools=(ADD,))
    for name in ("words beside the call left out", "the call as the text it was written in", "nothing changed"):
        later = [*history, REWRITTEN[name](given), result, second.reply.message, user("sure?")]
        assert _goes_on(policy, second, later, tools=(ADD,))
    other = {**given, "content": "Let me think."}
    assert not _goes_on(policy, second, [*history, other, result, second.reply.message, user("sure?")], tools=(ADD,))


def test_of_replies_with_the_same_call_the_one_that_was_named_is_gone_on_from(rich_renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(rich_renderer)
    replies = [policy.say([user("a")], CALL, tools=(ADD,)) for _ in range(3)]
    for reply in replies[::-1]:
        assert _goes_on(policy, reply, [user("a"), reply.reply.message, user("b")], tools=(ADD,))


@pytest.mark.parametrize(
    ("messages", "tools", "cause"),
    [
        ([user("hello"), {"role": "assistant", "content": "2!"}, user("b")], (), "rewritten history"),
        ([user("it is 12:01"), {"role": "assistant", "content": "2"}, user("b")], (), "other first message"),
        ([user("hello"), {"role": "assistant", "content": "2"}, user("b")], (ADD,), "other tools"),
        ([user("something else")], (), "new conversation"),
    ],
)
def test_what_cannot_be_recognised_opens_a_context_and_says_why(
    rich_renderer: MessageRenderer, messages: list[Any], tools: Any, cause: str
) -> None:
    policy = MadeUpPolicy(rich_renderer)
    policy.say([user("hello")], "2")
    call = policy.say(messages, "3", tools=tools)
    assert call.parent is None
    assert policy.session.new_contexts == {cause: 1}


def test_history_as_sent_always_writes_the_conversation_anew(rich_renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(rich_renderer, history="as_sent")
    reply = policy.say([user("a")], "<think>why</think>b")
    call = policy.say([user("a"), reply.reply.message, user("c")], "d")
    assert call.parent is None and not policy.session.new_contexts
    # This template leaves out what was thought earlier, as it would after training.
    assert "why" not in rich_renderer._tokenizer.decode(policy.seen[call.number][0])


def test_replies_that_read_alike_are_gone_on_from_one_by_one(renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(renderer)
    first, second = (policy.say([user("a")], "same") for _ in range(2))
    history = [user("a"), first.reply.message, user("b")]
    assert policy.say(history, "x").parent is first
    assert policy.say(history, "y").parent is second


def test_of_replies_that_differ_by_spaces_the_one_that_was_sent_is_gone_on_from(renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(renderer)
    replies = [policy.say([user("a")], text) for text in (" 7", "7", "7 ")]
    for reply in replies[::-1]:
        assert policy.say([user("a"), reply.reply.message, user("b")], "x").parent is reply


def test_tokens_are_the_smallest_of_the_clients_the_runs_and_the_room(renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(renderer, max_model_len=40, max_tokens=8)
    request = ChatRequest([user("a")], max_tokens=3)
    prepared = policy.session.prepare(request)
    assert prepared.max_tokens == 3
    assert policy.session.prepare(ChatRequest([user("a")])).max_tokens == 8
    tight = MadeUpPolicy(renderer, max_model_len=len(prepared.prompt) + 5, max_tokens=8)
    assert tight.session.prepare(ChatRequest([user("a")], max_tokens=99)).max_tokens == 5
    with pytest.raises(RequestRefused, match="maximum context length is 40 tokens") as refused:
        policy.session.prepare(ChatRequest([user("a b c d e f g h i j k l m n o p q r s t")]))
    assert refused.value.code == "context_length_exceeded" and refused.value.status == 400


def test_after_its_last_call_a_trajectory_gets_no_more_replies(renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(renderer, max_calls=3)
    policy.ask(ChatRequest([user("a")], choices=2))
    with pytest.raises(RequestRefused, match="2 of at most 3 replies"):
        policy.session.prepare(ChatRequest([user("a")], choices=2))
    assert policy.session.is_out_of_calls
    policy.ask(ChatRequest([user("a")]))


def test_a_sealed_session_answers_and_records_nothing(renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(renderer)
    policy.ask(ChatRequest([user("a")]))
    prepared = policy.session.prepare(ChatRequest([user("b")]))
    policy.session.seal()
    with pytest.raises(SessionEnded) as ended:
        policy.session.prepare(ChatRequest([user("c")]))
    assert ended.value.status == 410
    sampled = Sampled(Generation("", [65], np.zeros(1, np.float32), "stop"), 0)
    with pytest.raises(SessionEnded):
        policy.session.record(prepared, prepared.numbers[0], sampled)
    assert len(policy.session.calls) == 1


def test_a_reply_that_nobody_received_is_not_trained_unless_a_call_goes_on_from_it(renderer: MessageRenderer) -> None:
    policy = MadeUpPolicy(renderer)
    (lost,) = policy.ask(ChatRequest([user("a")]), delivered=False)
    (known,) = policy.ask(ChatRequest([user("b")]), delivered=False)
    child = policy.say([user("b"), {**known.reply.message, "content": known.text}, user("c")], "d")
    assert child.parent is known
    assert policy.session.trained_calls() == [known, child]
    assert lost in policy.session.calls


def test_ids_that_the_model_does_not_have_are_refused_before_the_engine_sees_them(renderer: MessageRenderer) -> None:
    largest = max(renderer.full([user("a")], (), {}))
    MadeUpPolicy(renderer, vocab_size=largest + 1).session.prepare(ChatRequest([user("a")]))
    with pytest.raises(RequestRefused, match=f"hold the token id {largest}, but the model has only {largest} embed"):
        MadeUpPolicy(renderer, vocab_size=largest).session.prepare(ChatRequest([user("a")]))

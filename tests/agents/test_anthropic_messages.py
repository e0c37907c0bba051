"""Anthropic's client: blocks are one reply again when they come back, and refusals have its shape."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from gspo_rllib.agents import server
from gspo_rllib.agents.rendering import MessageRenderer
from tests.agents.made_up_policy import user
from tests.agents.serving import Served, served

if TYPE_CHECKING:
    import anthropic  # two seconds, which only those pay who run these tests

ADD: Any = {"name": "add", "description": "Adds.", "input_schema": {"type": "object"}}
CALLS = '<tool_call>{"name": "add", "arguments": {"b": 1, "a": 2}}</tool_call>' * 2


@pytest.fixture
def one(rich_renderer: MessageRenderer) -> Iterator[Served]:
    with served(rich_renderer) as session:
        yield session


@pytest.fixture
def client(one: Served) -> anthropic.Anthropic:
    import anthropic

    return anthropic.Anthropic(base_url=one.endpoint.url().removesuffix("/v1"), api_key=one.key)


def test_a_conversation_stays_one_context(one: Served, client: anthropic.Anthropic) -> None:
    messages: list[Any] = [user("1 + 1?")]
    for _ in range(3):
        answer = client.messages.create(model="mine", system="Be brief.", messages=messages, max_tokens=7)
        assert (answer.model, answer.content[0].to_dict(), answer.stop_reason) == (
            "mine",
            {"type": "text", "text": "2"},
            "end_turn",
        )
        messages += [{"role": "assistant", "content": answer.content}, user("and?")]
    assert len(one.session.calls) == 3 and one.is_one_context()
    assert all(call.delivered for call in one.session.calls)
    assert answer.usage.input_tokens == len(one.requests[2].prompt_token_ids)
    assert answer.usage.output_tokens == len(one.session.calls[2].token_ids)
    assert {request.max_tokens for request in one.requests} == {7}
    one.post({"messages": [{"role": "system", "content": "Be brief."}, user("1 + 1?")]})
    assert one.requests[3].prompt_token_ids == one.requests[0].prompt_token_ids


def test_words_and_calls_of_one_reply_come_back_as_one(one: Served, client: anthropic.Anthropic) -> None:
    one.script = [f"<think>well</think>Adding. {CALLS}", CALLS, "3"]
    messages: list[Any] = [user("1 + 2?")]
    for reason in ("tool_use", "tool_use", "end_turn"):
        answer = client.messages.create(model="m", messages=messages, tools=[ADD], max_tokens=200)
        assert answer.stop_reason == reason
        thought = {"type": "thinking", "thinking": "well", "signature": "s"}
        messages.append({"role": "assistant", "content": [thought, *answer.content]})
        called = [block for block in answer.content if block.type == "tool_use"]
        assert all(block.input == {"a": 2, "b": 1} and block.name == "add" for block in called)
        results: list[Any] = [{"type": "tool_result", "tool_use_id": block.id, "content": "3"} for block in called]
        messages.append({"role": "user", "content": [*results, {"type": "text", "text": "so?"}]})
    assert len(one.session.calls) == 3 and one.is_one_context()
    # Results are shown as such, and the policy is told the same of a tool as by the other dialect.
    shown = one.session.renderer.shown(one.session.calls[1].appended)
    assert shown.count("<tool_response>") == 2 and "so?" in shown
    function = {"name": "add", "description": "Adds.", "parameters": ADD["input_schema"]}
    one.post({"messages": [user("1 + 2?")], "tools": [{"type": "function", "function": function}]})
    assert one.requests[3].prompt_token_ids == one.requests[0].prompt_token_ids


def test_the_runner_of_its_client_sends_whole_conversations_when_nothing_is_stored(
    one: Served, client: anthropic.Anthropic
) -> None:
    import anthropic

    @anthropic.beta_tool
    def add(a: int, b: int) -> str:
        """Adds."""
        return str(a + b)

    one.script = [f"<think>well</think>Adding. {CALLS}", CALLS, "3"]
    runner = client.beta.messages.tool_runner(model="m", messages=[user("1 + 2?")], tools=[add], max_tokens=200)
    assert runner.until_done().content[0].to_dict() == {"type": "text", "text": "3"}
    assert len(one.session.calls) == 3 and one.is_one_context()


def test_a_stream_has_anthropics_events_and_ends_with_the_same_message(
    one: Served, client: anthropic.Anthropic
) -> None:
    one.script = [f"Adding. {CALLS}", "3"]
    messages: list[Any] = [user("1 + 2?")]
    body: Any = {"model": "m", "tools": [ADD], "max_tokens": 200}
    with client.messages.stream(messages=messages, **body) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["text", "tool_use", "tool_use"]
    assert final.content[1].type == "tool_use" and final.content[1].input == {"a": 2, "b": 1}
    assert final.stop_reason == "tool_use" and final.usage.output_tokens == len(one.session.calls[0].token_ids)
    messages.append({"role": "assistant", "content": final.content})
    messages.append({"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "3"}]}
        for block in final.content if block.type == "tool_use"
    ]})  # fmt: skip
    seen = [event.type for event in client.messages.create(messages=messages, stream=True, **body)]
    block = [f"content_block_{name}" for name in ("start", "delta", "stop")]
    assert seen == ["message_start", *block, "message_delta", "message_stop"]
    assert len(one.session.calls) == 2 and one.is_one_context()


def test_a_stop_sequence_is_named_and_kept_in_the_ids(one: Served, client: anthropic.Anthropic) -> None:
    one.text = "4 = x"
    answer = client.messages.create(model="m", messages=[user("a")], max_tokens=9, stop_sequences=["y", "="])
    assert (answer.stop_reason, answer.stop_sequence, answer.content[0].to_dict()["text"]) == (
        "stop_sequence",
        "=",
        "4 ",
    )
    messages: list[Any] = [user("a"), {"role": "assistant", "content": answer.content}, user("b")]
    cut = client.messages.create(model="m", messages=messages, max_tokens=1)
    assert (cut.stop_reason, cut.stop_sequence) == ("max_tokens", None)
    assert one.is_one_context()


@pytest.mark.parametrize(
    ("break_off", "kind", "status", "code", "words"),
    [
        (lambda one: one.session.seal(), "APIStatusError", 410, "session_ended", "this session has ended"),
        (lambda one: one.endpoint.end(one.key), "APIStatusError", 410, "session_ended", "this session has"),
        (
            lambda one: setattr(one.session, "_max_model_len", 3), "BadRequestError", 400,
            "context_length_exceeded", "prompt is too long: This model's maximum context length is 3 tokens.",
        ),
        (
            lambda one: setattr(one.session, "_max_calls", 0), "BadRequestError", 400, "max_turns_exceeded",
            "this trajectory has had 0 of at most 0 replies",
        ),
    ],
)  # fmt: skip
def test_a_refusal_is_an_error_of_anthropics_client(
    one: Served, client: anthropic.Anthropic, break_off: Any, kind: str, status: int, code: str, words: str
) -> None:
    import anthropic

    break_off(one)
    with pytest.raises(getattr(anthropic, kind)) as refused:
        client.messages.create(model="m", messages=[user("a")], max_tokens=9)
    assert refused.value.status_code == status
    body: Any = refused.value.body
    assert body["type"] == "error" and body["error"]["code"] == code
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"].startswith(words)


def test_a_wrong_key_and_a_wrong_address_are_named(one: Served, client: anthropic.Anthropic) -> None:
    import anthropic

    wrong = client.with_options(api_key="guess")
    with pytest.raises(anthropic.AuthenticationError, match="this key opens no session"):
        wrong.messages.create(model="m", messages=[user("a")], max_tokens=9)
    elsewhere = client.with_options(base_url=one.endpoint.url())
    with pytest.raises(anthropic.NotFoundError, match="Anthropic's client is given the address without /v1"):
        elsewhere.messages.create(model="m", messages=[user("a")], max_tokens=9)


def test_what_goes_wrong_late_ends_the_stream_with_an_error(
    one: Served, client: anthropic.Anthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anthropic

    monkeypatch.setattr(server, "COMMENT_S", 0.05)
    one.hold.clear()

    def end() -> None:
        one.session.seal()
        one.hold.set()

    threading.Timer(0.3, end).start()
    with pytest.raises(anthropic.APIStatusError, match="this session has ended"):
        list(client.messages.create(model="m", messages=[user("a")], max_tokens=9, stream=True))


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": None}, "messages", " is None; it must be a list of at least one message."),
    ({"messages": ["a"]}, "messages[0]", " is 'a'; it must be an object with role and content."),
    ({"messages": [{"role": "tool"}]}, "messages[0].role", " is 'tool'; allowed: user, assistant, system."),
    (
        {"messages": [{"role": "user", "content": 3}]},
        "messages[0].content",
        " is 3; it must be a string, a list of text parts, or null.",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "messages[0].content[0]",
        " is {'type': 'image'}; allowed are blocks of type text, tool_result.",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]},
        "messages[0].content[0].tool_use_id",
        " is None; it must be a string.",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]},
        "messages[0].content[0]",
        ".name is None; it must be the name of a tool.",
    ),
    ({"system": 3}, "system", " is 3; it must be a string, a list of text parts, or null."),
    ({"stop_sequences": [""]}, "stop_sequences", " is ['']; it must be a string or a list of at most 16, none empty."),
    ({"max_tokens": 0}, "max_tokens", " is 0; it must be a whole number of at least 1."),
    ({"mcp_servers": [{}]}, "mcp_servers", " is not supported; call the tools in the agent."),
    (
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        "tools",
        "[0] is {'type': 'bash_20250124', 'name': 'bash'}; it must be {\"name\": …, \"input_schema\": …}: tools of "
        "Anthropic's own are not here.",
    ),
]


@pytest.mark.parametrize(("changes", "param", "words"), REFUSED)
def test_a_broken_field_is_refused_by_its_name(one: Served, changes: dict[str, Any], param: str, words: str) -> None:
    status, headers, answer = one.post({"messages": [user("a")]} | changes, "/v1/messages")
    error = {"message": f"{param}{words}", "type": "invalid_request_error", "param": param, "code": None}
    assert (status, headers["x-should-retry"], answer) == (400, "false", {"type": "error", "error": error})
    assert not one.requests


def test_a_reply_cannot_be_begun_by_the_client(one: Served) -> None:
    messages = [user("a"), {"role": "assistant", "content": "The answer is"}]
    status, _, answer = one.post({"messages": messages}, "/v1/messages")
    assert status == 400 and "asks for a reply that begins with it" in answer["error"]["message"]

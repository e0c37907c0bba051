"""OpenAI's client of ``/v1/responses``: the items of a reply are one reply again when they come back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from gspo_rllib.agents import server
from gspo_rllib.agents.rendering import MessageRenderer
from tests.agents.made_up_policy import user
from tests.agents.serving import Served, served

ADD = {"type": "function", "name": "add", "description": "Adds.", "strict": True, "parameters": {"type": "object"}}
CALLS = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>' * 2


@pytest.fixture
def one(rich_renderer: MessageRenderer) -> Iterator[Served]:
    with served(rich_renderer) as session:
        yield session


def _client(one: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=one.endpoint.url(), api_key=one.key)


def test_a_conversation_of_items_stays_one_context(one: Served) -> None:
    client = _client(one)
    items: list[Any] = [{"role": "user", "content": "1 + 1?"}]
    for _ in range(3):
        answer = client.responses.create(
            model="mine", instructions="Be brief.", input=items, temperature=0, max_output_tokens=7
        )
        assert (answer.model, answer.output_text, answer.status, answer.error) == ("mine", "2", "completed", None)
        items += [*answer.output, {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "?"}]}]
    assert len(one.session.calls) == 3 and one.is_one_context()
    assert all(call.delivered for call in one.session.calls)
    assert answer.usage is not None and answer.usage.input_tokens == len(one.requests[2].prompt_token_ids)
    assert answer.usage.output_tokens == len(one.session.calls[2].token_ids)
    assert {request.temperature for request in one.requests} == {0.7}
    assert {request.max_tokens for request in one.requests} == {7}
    # The prompt is the one that the same messages have in the other dialect.
    one.post({"messages": [{"role": "system", "content": "Be brief."}, user("1 + 1?")]})
    assert one.requests[3].prompt_token_ids == one.requests[0].prompt_token_ids


def test_text_alone_is_the_users(one: Served) -> None:
    assert _client(one).responses.create(model="m", input="hello").output_text == "2"
    one.post({"messages": [user("hello")]})
    assert one.requests[1].prompt_token_ids == one.requests[0].prompt_token_ids


def test_words_and_calls_of_one_reply_come_back_as_one(one: Served) -> None:
    one.script = [f"<think>well</think>Adding. {CALLS}", CALLS, "3"]
    client = _client(one)
    items: list[Any] = [user("1 + 2?")]
    for number_of_items in (3, 2, 1):
        answer = client.responses.create(model="m", input=items, tools=[ADD])  # type: ignore[list-item]
        assert len(answer.output) == number_of_items
        # Reasoning models' items come back as well; the policy's own reasoning is in its ids.
        items += [{"type": "reasoning", "id": "rs_1", "summary": []}, *(i.to_dict() for i in answer.output)]
        for called in (item for item in answer.output if item.type == "function_call"):
            assert json.loads(called.arguments) == {"a": 1}
            items.append({"type": "function_call_output", "call_id": called.call_id, "output": "3"})
    assert answer.output_text == "3"
    assert len(one.session.calls) == 3 and one.is_one_context()
    # The policy is told the same of a tool as by the other dialect.
    function = {name: ADD[name] for name in ("name", "description", "parameters")}
    one.post({"messages": [user("1 + 2?")], "tools": [{"type": "function", "function": function}]})
    assert one.requests[3].prompt_token_ids == one.requests[0].prompt_token_ids


def test_a_stream_has_openais_events_and_ends_with_the_same_response(one: Served) -> None:
    one.script = [f"Adding. {CALLS}", "3"]
    client = _client(one)
    items: list[Any] = [user("1 + 2?")]
    with client.responses.stream(model="m", input=items, tools=[ADD]) as stream:  # type: ignore[list-item]
        seen = [event.type for event in stream]
        final = stream.get_final_response()
    item = "response.output_item.added", "response.output_item.done"
    text = [f"response.{name}" for name in (
        "content_part.added", "output_text.delta", "output_text.done", "content_part.done")]  # fmt: skip
    call = [f"response.function_call_arguments.{name}" for name in ("delta", "done")]
    begun = ["response.created", "response.in_progress"]
    words, called = [item[0], *text, item[1]], [item[0], *call, item[1]]
    assert seen == [*begun, *words, *called, *called, "response.completed"]
    assert final.output_text == "Adding." and final.usage is not None and final.usage.output_tokens > 50
    items += [i.to_dict() for i in final.output]
    items += [
        {"type": "function_call_output", "call_id": i.call_id, "output": [{"type": "input_text", "text": "3"}]}
        for i in final.output
        if i.type == "function_call"
    ]
    events = list(client.responses.create(model="m", input=items, tools=[ADD], stream=True))  # type: ignore[list-item]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "3"
    assert len(one.session.calls) == 2 and one.is_one_context()


def test_a_reply_that_was_cut_off_is_incomplete(one: Served) -> None:
    one.text = "two words"
    client = _client(one)
    answer = client.responses.create(model="m", input="hello", max_output_tokens=1)
    assert answer.status == "incomplete" and answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(model="m", input="hello", max_output_tokens=1, stream=True))
    assert events[-1].type == "response.incomplete"


def test_log_probabilities_are_those_of_the_engine(one: Served) -> None:
    answer = _client(one).responses.create(model="m", input="a", include=["message.output_text.logprobs"])
    (item,) = answer.output
    assert item.type == "message" and item.content[0].type == "output_text"
    assert [token.logprob for token in item.content[0].logprobs or []] == [-0.5] * len(one.session.calls[0].token_ids)


def test_a_retry_gets_the_same_response_and_no_other_dialects(one: Served) -> None:
    body = {"messages": [user("a")], "input": "a", "prompt": None}
    first = one.post(body, "/v1/responses")[2]
    assert one.post(body, "/v1/responses", x_stainless_retry_count="1")[2]["id"] == first["id"]
    assert one.post(body, x_stainless_retry_count="1")[2]["object"] == "chat.completion"
    assert len(one.requests) == 2


def test_what_goes_wrong_late_ends_the_stream_with_an_error(one: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "COMMENT_S", 0.05)
    one.hold.clear()

    def end() -> None:
        one.session.seal()
        one.hold.set()

    threading.Timer(0.3, end).start()
    with pytest.raises(openai.APIError, match="this session has ended"):
        list(_client(one).responses.create(model="m", input="a", stream=True))


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (
        {"previous_response_id": "resp_0"},
        "previous_response_id",
        " is not supported; nothing is stored between calls: send the whole conversation as input.",
    ),
    ({"background": True}, "background", " is not supported; the reply comes as the answer to its call."),
    ({"prompt": {"id": "p"}}, "prompt", " is not supported; prompts are not stored: send instructions and input."),
    ({"input": None}, "input", " is None; it must be text or a list of at least one item."),
    ({"input": []}, "input", " is []; it must be text or a list of at least one item."),
    ({"input": [3]}, "input[0]", " is 3; it must be an object with a type."),
    ({"input": [{"role": "tool"}]}, "input[0].role", " is 'tool'; allowed: system, developer, user, assistant."),
    (
        {"input": [{"type": "web_search_call"}]},
        "input[0].type",
        " is 'web_search_call'; allowed: message, function_call, function_call_output, reasoning.",
    ),
    (
        {"input": [{"type": "item_reference", "id": "msg_0"}]},
        "input[0]",
        ": item_reference is not supported; nothing is stored between calls: send the whole conversation as input.",
    ),
    ({"input": [{"type": "reasoning"}]}, "input", " holds nothing but reasoning; it must hold a message."),
    ({"input": [{"type": "function_call"}]}, "input[0]", ".name is None; it must be the name of a tool."),
    (
        {"input": [{"type": "function_call", "name": "f", "arguments": 1}]},
        "input[0]",
        ".arguments is 1; it must be a JSON string.",
    ),
    ({"input": [{"type": "function_call_output"}]}, "input[0].call_id", " is None; it must be a string."),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
        "input[0].content",
        "[0] is {'type': 'input_image'}; only parts of type text can be shown to this policy.",
    ),
    ({"instructions": 3}, "instructions", " is 3; it must be a string."),
    ({"include": "x"}, "include", " is 'x'; it must be a list."),
    ({"max_output_tokens": 0}, "max_output_tokens", " is 0; it must be a whole number of at least 1."),
    (
        {"tools": [{"type": "web_search"}]},
        "tools",
        '[0] is {\'type\': \'web_search\'}; it must be {"type": "function", "name": …, "parameters": …}.',
    ),
    ({"tools": [ADD] * 129}, "tools", " holds 129 tools; at most 128 are allowed."),
]


@pytest.mark.parametrize(("changes", "param", "words"), REFUSED)
def test_a_broken_field_is_refused_by_its_name(one: Served, changes: dict[str, Any], param: str, words: str) -> None:
    status, headers, answer = one.post({"input": "a"} | changes, "/v1/responses")
    error = {"message": f"{param}{words}", "type": "invalid_request_error", "param": param, "code": None}
    assert (status, headers["x-should-retry"], answer) == (400, "false", {"error": error})
    assert not one.requests

"""Messages of clients: what is taken, what is refused and in which words."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from gspo_rllib.agents.messages import RequestRefused, SessionEnded, checked_messages, checked_stop, checked_tools

REFUSED: list[tuple[Any, str]] = [
    (None, "messages is None; it must be a list of at least one message."),
    ([], "messages is []; it must be a list of at least one message."),
    ("hi", "messages is 'hi'; it must be a list of at least one message."),
    ({"role": "user"}, "messages is {'role': 'user'}; it must be a list of at least one message."),
    ([1], "messages[0] is 1; it must be an object with role and content."),
    ([{"content": "a"}], "messages[0].role is None; allowed: system, developer, user, assistant, tool."),
    ([{"role": "robot"}], "messages[0].role is 'robot'; allowed: system, developer, user, assistant, tool."),
    (
        [{"role": "user", "content": 1}],
        "messages[0].content is 1; it must be a string, a list of text parts, or null.",
    ),
    ([{"role": "user"}], 'messages[0].content is missing or null; a user message must say something, if only "".'),
    (
        [{"role": "developer", "content": None}],
        'messages[0].content is missing or null; a developer message must say something, if only "".',
    ),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        "messages[0].content[0] is {'type': 'image_url', 'image_url': {'url': 'x'}}; only parts of type text can be "
        "shown to this policy.",
    ),
    (
        [{"role": "user", "content": [7]}],
        "messages[0].content[0] is 7; only parts of type text can be shown to this policy.",
    ),
    (
        [{"role": "user", "content": [{"type": "text", "text": 7}]}],
        "messages[0].content[0].text is 7; it must be a string.",
    ),
    ([{"role": "assistant", "tool_calls": 3}], "messages[0].tool_calls is 3; it must be a list of calls."),
    (
        [{"role": "assistant", "tool_calls": [{"id": "a"}]}],
        "messages[0].tool_calls[0] is {'id': 'a'}; it must be {\"id\": …, \"type\": \"function\", \"function\": "
        '{"name": …, "arguments": …}}.',
    ),
    (
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 1}}]}],
        "messages[0].tool_calls[0].function.arguments is 1; it must be a JSON string.",
    ),
    (
        [{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}],
        "messages[0].tool_calls: only an assistant message may have tool calls, not a user message.",
    ),
    ([{"role": "assistant", "function_call": {}}], "messages[0].function_call is not supported; use tool_calls."),
    ([{"role": "tool", "tool_call_id": 1}], "messages[0].tool_call_id is 1; it must be a string."),
]  # fmt: skip


@pytest.mark.parametrize(("messages", "words"), REFUSED)
def test_a_broken_message_is_refused_by_its_place(messages: Any, words: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        checked_messages(messages)
    assert str(refused.value) == words
    assert refused.value.param is not None and refused.value.status == 400


def test_what_clients_write_in_many_ways_comes_in_one_form() -> None:
    call = {"id": None, "function": {"name": "f", "arguments": None}}
    given = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}],
            "name": "Ann",
        },
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "name": "bot"},
        {"role": "tool", "content": "\ud800\0", "tool_call_id": "x"},
    ]
    assert checked_messages(given) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "ab", "name": "Ann"},
        {
            "role": "assistant", "content": "",
            "tool_calls": [{"id": "", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "?\0", "tool_call_id": "x"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ("f", "tools is 'f'; it must be a list of functions."),
        ([{"type": "web_search"}], 'it must be {"type": "function", "function": {"name": …}}.'),
        ([{"type": "function", "function": {"name": 3}}], 'it must be {"type": "function", "function": {"name": …}}.'),
        ([{"type": "function", "function": {"name": "f", "parameters": {1, 2}}}], "cannot be written as JSON"),
        (
            [{"type": "function", "function": {"name": "f", "parameters": 5}}],
            "tools[0].function.parameters is 5; it must be a JSON schema, an object.",
        ),
        (
            [{"type": "function", "function": {"name": "f", "description": text}} for text in "aab"],
            "tools[2]: another tool has the name 'f', too; a call could mean either.",
        ),
    ],
)
def test_broken_tools_are_refused(tools: Any, words: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        checked_tools(tools)
    assert words in str(refused.value)


def test_stop_strings_that_no_reply_can_hold_are_left_out() -> None:
    assert checked_stop(["a", "\ud800", "b\0"], "stop") == ("a", "b\0")
    assert checked_stop("\ud800", "stop") == ()


def test_refusals_survive_being_sent_to_another_process() -> None:
    refused = pickle.loads(pickle.dumps(RequestRefused("no", "n", "code", 413)))
    assert (refused.message, refused.param, refused.code, refused.status) == ("no", "n", "code", 413)
    assert pickle.loads(pickle.dumps(SessionEnded())).status == 410

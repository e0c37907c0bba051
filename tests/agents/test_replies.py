"""What a client is given of a sampled reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gspo_rllib.agents.messages import RequestRefused
from gspo_rllib.agents.replies import check_tools, read_reply

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
    },
}


def test_calls_are_read_and_their_text_is_left_out() -> None:
    text = 'So. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>\n<tool_call>{"name": "add"}</tool_call>'
    reply = read_reply(text, number=4, tools=(ADD,), stop=(), finish_reason="stop")
    assert (reply.content, reply.finish_reason) == ("So.", "tool_calls")
    assert [call["function"] for call in reply.tool_calls] == [
        {"name": "add", "arguments": '{"a": 1}'},
        {"name": "add", "arguments": "{}"},
    ]
    ids = [call["id"] for call in reply.tool_calls]
    assert len(set(ids)) == 2 and all(len(i) == 9 and i.isalnum() for i in ids)
    only_calls = read_reply(text.removeprefix("So. "), number=4, tools=(ADD,), stop=(), finish_reason="stop")
    assert only_calls.message["content"] is None and only_calls.content == ""
    assert [call["id"] for call in only_calls.tool_calls] == ids


def test_arguments_that_were_written_without_types_get_those_of_the_schema() -> None:
    text = "<tool_call><function=add><parameter=a>1</parameter><parameter=b>1</parameter></function></tool_call>"
    reply = read_reply(text, number=0, tools=(ADD,), stop=(), finish_reason="stop")
    assert reply.tool_calls[0]["function"]["arguments"] == '{"a": 1, "b": "1"}'


def test_a_broken_call_is_given_as_the_text_it_is() -> None:
    reply = read_reply("<tool_call>{", number=0, tools=(ADD,), stop=(), finish_reason="length")
    assert (reply.content, reply.finish_reason, reply.malformed_call) == ("<tool_call>{", "length", True)


def test_without_declared_tools_nothing_is_a_call() -> None:
    text = '<tool_call>{"name": "add"}</tool_call>'
    reply = read_reply(text, number=0, tools=(), stop=(), finish_reason="stop")
    assert (reply.content, reply.tool_calls, reply.finish_reason) == (text, [], "stop")
    # Nor is an answer that happens to be JSON, where the tools are others.
    answer = read_reply('{"name": "Ann", "parameters": {}}', number=0, tools=(ADD,), stop=(), finish_reason="stop")
    assert answer.tool_calls == [] and not answer.malformed_call


def test_the_first_of_several_stop_strings_ends_the_text() -> None:
    reply = read_reply("a;b\nc", number=0, tools=(), stop=("\n", ";"), finish_reason="stop")
    assert reply.content == "a"
    assert read_reply("a;b", number=0, tools=(), stop=(";",), finish_reason="length").content == "a;b"


class _Parser:
    """Takes what stands between bars for calls."""

    sees_special_tokens = True

    def check(self, tools: Sequence[Mapping[str, Any]]) -> None:
        if len(tools) > 1:
            raise ValueError("one at most")

    def read(self, text: str, tools: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, str]]] | None:
        before, bar, rest = text.partition("|")
        return None if bar and "|" not in rest else (before, [("add", rest.rstrip("|"))] if bar else [])


def test_a_parser_of_another_project_takes_the_place_of_the_formats_known_here() -> None:
    known: dict[str, Any] = {"number": 4, "tools": (ADD,), "stop": (";",), "finish_reason": "stop", "parser": _Parser()}
    reply = read_reply("So {};", with_tokens=lambda: "So |{}|;|", **known)
    assert (reply.content, reply.finish_reason, reply.malformed_call) == ("So", "tool_calls", False)
    assert [call["function"] for call in reply.tool_calls] == [{"name": "add", "arguments": "{}"}]
    broken = read_reply("So {", with_tokens=lambda: "So |{", **known)
    assert (broken.content, broken.finish_reason, broken.malformed_call) == ("So {", "stop", True)
    hermes = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'
    plain = read_reply(hermes, **known)
    assert (plain.content, plain.tool_calls, plain.malformed_call) == (hermes, [], False)
    check_tools(_Parser(), (ADD,))
    with pytest.raises(RequestRefused, match=r"agent\.tool_parser does not take these tools: one at most"):
        check_tools(_Parser(), (ADD, ADD))

"""What becomes of the fields that clients and frameworks send: read, harmless, passed over and counted, or refused."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gspo_rllib.agents.dialect import MAX_DEPTH
from gspo_rllib.agents.fields import OTHER, SAMPLING
from gspo_rllib.agents.once_told import MOST_TOLD
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.server import DIALECTS
from tests.agents.made_up_policy import user
from tests.agents.serving import Served, served

CHAT: dict[str, Any] = {"messages": [user("hello")]}
SOUND: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": {"input": "hello"},
    "/v1/completions": {"prompt": "hello"},
    "/v1/messages": {"messages": [user("hello")], "max_tokens": 99},
}
ADD = {"type": "function", "function": {"name": "add"}}
CALL = '<tool_call>{"name": "add", "arguments": {}}</tool_call>'


@pytest.fixture
def one(rich_renderer: MessageRenderer) -> Iterator[Served]:
    with served(rich_renderer) as session:
        yield session


PASSED_OVER: list[tuple[str, dict[str, Any], list[str]]] = [
    ("/v1/chat/completions", {"temperature": 0, "seed": 1, "parallel_tool_calls": False}, [
        "temperature", "seed", "parallel_tool_calls"]),
    # Ask for nothing else than what is done anyway.
    ("/v1/chat/completions", {"top_p": 1.0, "presence_penalty": 0, "logit_bias": {}, "response_format": {
        "type": "text"}, "tool_choice": "auto", "temperature": None, "top_logprobs": 0, "modalities": ["text"],
        "reasoning": {"effort": None}, "ignore_eos": False, "echo": False, "best_of": 1, "add_generation_prompt": True,
        "parallel_tool_calls": True, "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "flex"}, []),
    ("/v1/chat/completions", {"reasoning_effort": "high", "guided_json": {"a": 1}, "stop_token_ids": [1]}, [
        "reasoning_effort", "guided_json", "stop_token_ids"]),
    ("/v1/chat/completions", {"tool_choice": {"type": "function", "function": {"name": "add"}}}, ["tool_choice"]),
    ("/v1/chat/completions", {"keep_alive": 5, "num_ctx": 10}, [OTHER, OTHER]),
    ("/v1/responses", {"reasoning": {"effort": "low"}, "truncation": "auto", "max_tool_calls": 1, "n": 2}, [
        "reasoning", "truncation", "max_tool_calls", OTHER]),
    ("/v1/responses", {"text": {"format": {"type": "json_schema"}, "verbosity": "low"}}, [
        "text.format", "text.verbosity"]),
    ("/v1/responses", {"text": {"format": {"type": "text"}}, "truncation": "disabled", "include": []}, []),
    ("/v1/completions", {"min_tokens": 5, "best_of": 1, "echo": False}, ["min_tokens"]),
    ("/v1/messages", {"thinking": {"type": "enabled", "budget_tokens": 1024}, "top_k": 5}, ["thinking", "top_k"]),
    ("/v1/messages", {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, ["tool_choice"]),
    ("/v1/messages", {"tool_choice": {"type": "any"}}, ["tool_choice"]),
    ("/v1/messages", {"output_format": {"type": "json_schema"}, "output_config": {"effort": "low"}}, [
        "output_format", "output_config"]),
    ("/v1/messages", {"tool_choice": {"type": "auto"}, "cache_control": {"type": "ephemeral"}, "stop": ["a"]}, [
        OTHER]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "fields", "expected"), PASSED_OVER)
def test_a_field_without_effect_is_counted_and_one_that_asks_for_nothing_is_not(
    one: Served, path: str, fields: dict[str, Any], expected: list[str]
) -> None:
    for _ in range(2):
        assert one.post(SOUND[path] | fields, path)[0] == 200
    assert one.passed_over == Counter(2 * expected)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"chat_template": "{{ 1 }}"}, "prompts are written with the model's own chat template"),
    ("/v1/chat/completions", {"documents": [{"text": "a"}]}, "write them into a message"),
    (
        "/v1/chat/completions",
        {"continue_final_message": True},
        "a reply is sampled whole: end with a user's message, or use /v1/completions",
    ),
    (
        "/v1/chat/completions",
        {"add_generation_prompt": False},
        "a prompt ends where the reply begins; /v1/completions takes any other",
    ),
    (
        "/v1/chat/completions",
        {"echo": True},
        "the answer holds what was sampled; the messages are known to the client",
    ),
    ("/v1/chat/completions", {"best_of": 4}, "use n, and choose among the replies"),
    ("/v1/completions", {"suffix": "a"}, "the policy writes what follows a prompt"),
    ("/v1/responses", {"background": True}, "the reply comes as the answer to its call"),
    ("/v1/messages", {"mcp_servers": []}, "call the tools in the agent"),
]


@pytest.mark.parametrize(("path", "fields", "remedy"), REFUSED)
def test_a_field_that_would_change_what_the_answer_means_is_refused(
    one: Served, path: str, fields: dict[str, Any], remedy: str
) -> None:
    status, _, answer = one.post(SOUND[path] | fields, path)
    ((name, _),) = fields.items()
    assert status == 400 and answer["error"]["message"] == f"{name} is not supported; {remedy}."
    assert answer["error"]["param"] == name and not one.requests


def test_what_would_shape_a_reply_is_said_to_do_so_in_every_dialect(
    one: Served, caplog: pytest.LogCaptureFixture
) -> None:
    shaping = {
        "/v1/chat/completions": {"response_format": {"type": "json_object"}},
        "/v1/responses": {"text": {"format": {"type": "json_schema"}, "verbosity": "low"}},
        "/v1/completions": {"guided_json": {"a": 1}},
        "/v1/messages": {"output_format": {"type": "json_schema"}, "output_config": {"effort": "low"}},
    }
    with caplog.at_level(logging.WARNING, logger="gspo_rllib"):
        for path, fields in shaping.items():
            assert one.post(SOUND[path] | fields, path)[0] == 200
    assert len(caplog.messages) == 6
    assert all("the distribution that the learner scores" in message for message in caplog.messages)


@pytest.mark.parametrize("path", SOUND)
def test_every_field_has_one_meaning_in_a_dialect(path: str) -> None:
    (fields,) = [dialect.fields for dialect in DIALECTS if dialect.path == path]
    named = [*fields.read, *fields.refused, *fields.passed_over, *fields.harmless]
    assert len(named) == len(set(named)) and not SAMPLING & {*named}


def test_what_is_passed_over_is_told_once_by_name_and_not_without_end(
    one: Served, caplog: pytest.LogCaptureFixture
) -> None:
    made_up = {f"made_up_{n}": 1 for n in range(MOST_TOLD + 20)} | {"x" * 1000: 1}
    with caplog.at_level(logging.WARNING, logger="gspo_rllib"):
        for _ in range(2):
            assert one.post(CHAT | {"temperature": 0} | made_up)[0] == 200
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == (
        "An agent sends 'temperature'. It has no effect: replies are sampled from the distribution that the learner "
        "scores, at generation.temperature."
    )
    assert len(told) == len(set(told)) == MOST_TOLD
    assert one.passed_over == {"temperature": 2, OTHER: 2 * len(made_up)}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_what_the_template_never_reads_is_passed_over_and_changes_no_prompt(
    rich_renderer: MessageRenderer, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with served(rich_renderer) as one, caplog.at_level(logging.WARNING, logger="gspo_rllib"):
        for number, read in enumerate([False, False, True]):
            kwargs = {"enable_thinkng": number, "message": "x", "enable_thinking": read}
            assert one.post(SOUND[path] | {"chat_template_kwargs": kwargs}, path)[0] == 200
        prompts = [request.prompt_token_ids for request in one.requests]
        assert prompts[0] == prompts[1] != prompts[2]
        assert one.passed_over == {OTHER: 6}
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"An agent sends 'chat_template_kwargs.{name}'. It has no effect: the model's chat template never reads it."
        for name in ("enable_thinkng", "message")
    ]


@pytest.mark.parametrize(
    ("path", "choice", "tools"),
    [
        ("/v1/chat/completions", "none", [ADD]),
        ("/v1/responses", "none", [{"type": "function", "name": "add"}]),
        ("/v1/messages", {"type": "none"}, [{"name": "add"}]),
    ],
)
def test_without_a_choice_of_tools_a_call_is_text_and_the_prompt_is_the_same(
    one: Served, path: str, choice: Any, tools: list[Any]
) -> None:
    one.text = CALL
    for chosen in ("auto", choice) if path != "/v1/messages" else ({"type": "auto"}, choice):
        assert one.post(SOUND[path] | {"tools": tools, "tool_choice": chosen}, path)[0] == 200
    read, unread = one.session.calls
    assert len(read.reply.tool_calls) == 1
    assert (unread.reply.content, unread.reply.tool_calls, unread.reply.finish_reason) == (CALL, [], "stop")
    assert one.requests[0].prompt_token_ids == one.requests[1].prompt_token_ids
    assert not one.passed_over


def _nested(depth: int) -> Any:
    return json.loads('{"a":[' * (depth // 2) + "1" + "]}" * (depth // 2))


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/chat/completions", lambda deep: {"tools": [{**ADD, "function": {"name": "add", "parameters": deep}}]}),
        ("/v1/chat/completions", lambda deep: {"response_format": deep, "metadata": deep}),
        ("/v1/responses", lambda deep: {"tools": [{"type": "function", "name": "add", "parameters": deep}]}),
        ("/v1/messages", lambda deep: {"tools": [{"name": "add", "input_schema": deep}]}),
    ],
)
def test_what_is_nested_deep_is_served_or_refused(one: Served, path: str, field: Callable[[Any], Any]) -> None:
    assert one.post(SOUND[path] | field(_nested(50)), path)[0] == 200
    for depth in (80, 400, 900):
        status, _, answer = one.post(SOUND[path] | field(_nested(depth)), path)
        assert status == 400 and answer["error"]["message"] == f"the body is nested more than {MAX_DEPTH} deep."


@pytest.mark.parametrize(
    ("raw", "name", "times"),
    [
        (b'{"messages": [], "messages": []}', "messages", 2),
        (b'{"messages": [{"role": "user", "role": "system", "role": "user", "content": "a"}]}', "role", 3),
        (b'{"messages": [], "tools": [{"function": {"name": "a", "na\\u006de": "b"}}]}', "name", 2),
    ],
)
def test_what_is_said_twice_is_refused(one: Served, raw: bytes, name: str, times: int) -> None:
    status, _, answer = one.post(raw)
    assert status == 400
    assert answer["error"]["message"] == f"the body holds {name!r} {times} times in one object; send it once."

"""Tool calls: what each model family writes is read; whatever else a reply holds is a message, never an exception."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gspo_rllib.envs.tools.calls import (
    TOOL_FORMATS,
    ToolCall,
    ToolCallError,
    parse_tool_calls,
    render_tool_call,
    typed,
    without_reasoning,
)

FORMATS = [name for name in TOOL_FORMATS if name != "auto"]
PIECES = [
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "add>",
    "</function>",
    "<parameter=",
    "a>",
    "</parameter>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<|python_tag|>",
    "</think>",
    '{"name": "add", "arguments": {"a": 1}}',
    '{"name": "add", "parameters": ',
    '[{"name": "add"',
    "{",
    "}",
    "[",
    "]",
    ";",
    '"',
    "\\",
    "\ud800",
    "\n",
    " ",
    "add",
    "9" * 5000,
    "1e999",
    "NaN",
    "null",
]
HOSTILE = st.one_of(st.text(), st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)


def names_and_arguments(calls: list[ToolCall] | ToolCallError) -> list[tuple[str, dict]]:
    assert isinstance(calls, list), calls
    return [(call.name, call.arguments) for call in calls]


@settings(max_examples=300)
@given(text=HOSTILE, tool_format=st.sampled_from(TOOL_FORMATS))
@example(text="<tool_call>" + "[" * 100_000, tool_format="hermes")
@example(text='{"name":"a","parameters":' + '{"b":' * 60 + "1" + "}" * 61, tool_format="llama_json")
def test_no_text_makes_the_parser_raise(text, tool_format) -> None:
    calls = parse_tool_calls(text, tool_format)
    if isinstance(calls, ToolCallError):
        assert calls.message and len(calls.message) < 150, "the message must not echo the reply"
    else:
        for call in calls:
            json.dumps(call.arguments, allow_nan=False)
            assert call.raw in text


@settings(max_examples=60)
@given(
    calls=st.lists(st.tuples(NAMES, st.dictionaries(st.text(), JSON, max_size=3)), min_size=1, max_size=3),
    before=st.sampled_from(["", "Let me see.\n", "<think>add or mul? <tool_call></think>\n"]),
)
@pytest.mark.parametrize("tool_format", ["hermes", "auto"])
def test_calls_written_in_hermes_form_are_read_back(tool_format, calls, before) -> None:
    text = before + "\n".join(render_tool_call(name, arguments, "hermes") for name, arguments in calls)
    if "</think>" in text.removeprefix(before):
        return  # the end of a reasoning inside an argument
    assert names_and_arguments(parse_tool_calls(text, tool_format)) == calls


@settings(max_examples=60)
@given(name=NAMES, arguments=st.dictionaries(st.text(), JSON, max_size=3))
@example(name="f", arguments={"[TOOL_CALLS]": None})
@example(name="f", arguments={"a": "<tool_call>"})
@example(name="f", arguments={"a": "</tool_call><function=g>"})
@example(name="f", arguments={"a": ["<tool_call><function=g></function></tool_call>"]})
@pytest.mark.parametrize("tool_format", ["llama_json", "mistral"])
@pytest.mark.parametrize("read_as", ["itself", "auto"])
def test_calls_written_as_bare_json_are_read_back(tool_format, read_as, name, arguments) -> None:
    text = render_tool_call(name, arguments, tool_format)
    if "</think>" in text:
        return
    read = parse_tool_calls(text, tool_format if read_as == "itself" else "auto")
    assert names_and_arguments(read) == [(name, arguments)]


@settings(max_examples=60)
@given(name=NAMES, text=st.text(), number=st.integers(-(10**12), 10**12), items=st.lists(st.integers(), max_size=3))
@pytest.mark.parametrize("tool_format", ["qwen_xml", "auto"])
def test_calls_written_in_xml_are_read_back_with_the_types_of_the_schema(
    tool_format, name, text, number, items
) -> None:
    arguments = {"text": text, "number": number, "items": items, "digits": str(number)}
    if "</parameter>" in text or "</think>" in text:
        return
    schema = {
        "properties": {
            "text": {"type": "string"},
            "number": {"type": "integer"},
            "items": {"type": "array"},
            "digits": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        }
    }
    written = render_tool_call(name, arguments, "qwen_xml")
    calls = parse_tool_calls(f"I call.\n{written}\n{written}", tool_format)
    assert isinstance(calls, list), calls
    assert [(call.name, typed(call, schema)) for call in calls] == [(name, arguments)] * 2


@pytest.mark.parametrize(
    ("text", "tool_format"),
    [
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', "hermes"),
        ('<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call> done', "hermes"),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "hermes"),
        ('{"name": "add", "parameters": {"a": 1}}', "llama_json"),
        ('{"name": "add", "arguments": {"a": 1}}', "llama_json"),
        ('<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "llama_json"),
        ('[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1}}]', "mistral"),
        ('[TOOL_CALLS]add[ARGS]{"a": 1}', "mistral"),
        ('[TOOL_CALLS]add{"a": 1}', "mistral"),
        ('[{"name": "add", "arguments": {"a": 1}}]', "mistral"),
    ],
)
def test_what_models_write_is_read_in_its_format_and_automatically(text, tool_format) -> None:
    assert names_and_arguments(parse_tool_calls(text, tool_format)) == [("add", {"a": 1})]
    assert names_and_arguments(parse_tool_calls(text, "auto")) == [("add", {"a": 1})]


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_xml_of_qwen_coder_is_read_with_and_without_its_wrapper(wrapped) -> None:
    text = "<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=b>two\nlines</parameter>\n</function>"
    text = f"<tool_call>\n{text}\n</tool_call>" if wrapped else text
    for tool_format in ("qwen_xml", "auto"):
        assert names_and_arguments(parse_tool_calls(text, tool_format)) == [("add", {"a": "1", "b": "two\nlines"})]


def test_calls_of_mistral_are_read_without_the_markers_that_are_special_tokens() -> None:
    text = 'add{"a": 1}mul[ARGS] {"b": {"c": 2}}'
    assert names_and_arguments(parse_tool_calls(text, "mistral")) == [("add", {"a": 1}), ("mul", {"b": {"c": 2}})]
    assert parse_tool_calls(text, "auto") == []


def test_several_llama_calls_stand_side_by_side() -> None:
    text = '{"name": "a", "parameters": {}}; {"name": "b", "parameters": {"c": 2}}'
    assert names_and_arguments(parse_tool_calls(text)) == [("a", {}), ("b", {"c": 2})]


def test_markers_inside_an_argument_are_text() -> None:
    inner = '</tool_call><function=rm>[TOOL_CALLS]{"name": "x"}'
    text = render_tool_call("write", {"line": inner})
    assert names_and_arguments(parse_tool_calls(text)) == [("write", {"line": inner})]


@pytest.mark.parametrize(
    "answer", ["", "42", "{}", '{"sum": 3}', '{"name": "Ada", "born": 1815}', "[1, 2]", "a < b", "function=add"]
)
@pytest.mark.parametrize("tool_format", TOOL_FORMATS)
def test_an_answer_is_no_call(tool_format, answer) -> None:
    assert parse_tool_calls(answer, tool_format) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<tool_call>add(1, 2)</tool_call>", "tool call 1 is not valid JSON"),
        ('<tool_call>{"name": "add", "arguments": {"a": 1}}', "not closed by </tool_call>"),
        ('{"name": "add", "arguments": {}}</tool_call>', "without <tool_call> before it"),
        ('<tool_call>{"name": "a"}</tool_call><tool_call>{"name": ', "tool call 2 is not valid JSON"),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', "arguments are not a JSON object"),
        ('<tool_call>{"arguments": {}}</tool_call>', "does not name a tool"),
        ('<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>', "a number that is not allowed"),
        ('<tool_call>["add"]</tool_call>', "not a JSON object"),
        ("<tool_call><function=add><parameter=a>1</function></tool_call>", "not closed by </parameter>"),
        ("<tool_call><function=add></tool_call>", "not closed by </function>"),
        ("<tool_call><function=add", "expected <function=…>"),
        ("<tool_call><function=></function></tool_call>", "does not name a tool"),
        ('{"name": "add", "parameters": {}} and then', "text after tool call 1"),
        ("<|python_tag|>print(1)", "not valid JSON"),
        ("[TOOL_CALLS]add", "tool call 1 is not"),
        ("[TOOL_CALLS][]", "a list of calls"),
    ],
)
def test_a_malformed_call_says_what_is_wrong(text, message) -> None:
    error = parse_tool_calls(text)
    assert isinstance(error, ToolCallError)
    assert message in error.message


def test_reasoning_is_not_looked_at() -> None:
    text = "<think>maybe <tool_call>{</think>" + render_tool_call("add", {})
    assert names_and_arguments(parse_tool_calls(text)) == [("add", {})]
    assert without_reasoning(text.replace("<think>", "")) == render_tool_call("add", {})


@pytest.mark.parametrize("tool_format", TOOL_FORMATS)
@pytest.mark.parametrize("piece", PIECES)
def test_a_long_reply_is_read_in_time_that_grows_with_its_length(piece, tool_format) -> None:
    text = piece * (400_000 // len(piece))
    started = time.thread_time()
    parse_tool_calls(text, tool_format)
    assert time.thread_time() - started < 2.0


def test_xml_refuses_what_it_cannot_write() -> None:
    with pytest.raises(ValueError, match="cannot write the argument 'a'"):
        render_tool_call("f", {"a": "</parameter>"}, "qwen_xml")

"""vLLM's tool parsers read replies as its own server does; what they cannot read is shown as it is."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gspo_rllib import GSPOConfig
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.engines import registry
from gspo_rllib.env_runners.engine_spec import load_tool_parser
from gspo_rllib.errors import SettingError
from gspo_rllib.model_folder import load_tokenizer
from tests.agents.made_up_policy import user
from tests.agents.serving import served

if "vllm" not in registry.available_engines():
    pytest.skip("vllm is not installed", allow_module_level=True)

if TYPE_CHECKING:
    from gspo_rllib.engines.vllm_tool_parsers import VLLMToolParser

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
ADD = {"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}
HERMES = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
DEEPSEEK_TOKENS = [f"<｜tool▁{word}｜>" for word in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")]
DEEPSEEK = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
    '{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)


def _parser(name: str, tokenizer: Any) -> VLLMToolParser:
    from gspo_rllib.engines.vllm_tool_parsers import VLLMToolParser

    return VLLMToolParser(name, tokenizer)


@pytest.fixture(scope="module")
def tokenizer(tiny_dense: str) -> Any:
    return load_tokenizer(tiny_dense)


def _read(parser: VLLMToolParser, text: str) -> tuple[str, list[tuple[str, Any]]] | None:
    found = parser.read(text, (ADD,))
    return None if found is None else (found[0], [(name, json.loads(arguments)) for name, arguments in found[1]])


def test_a_call_is_read_by_the_parser_that_is_named(tokenizer: Any) -> None:
    hermes, pythonic = _parser("hermes", tokenizer), _parser("pythonic", tokenizer)
    assert _read(hermes, f"So. {HERMES}{HERMES}") == ("So. ", [("add", {"a": 1})] * 2)
    assert _read(pythonic, "[add(a=1, b=2), add(a=3)]") == ("", [("add", {"a": 1, "b": 2}), ("add", {"a": 3})])
    # What one family writes is text to another's parser.
    assert _read(pythonic, HERMES) == (HERMES, [])
    assert _read(hermes, "[add(a=1)]") == ("[add(a=1)]", [])


def test_reasoning_is_not_looked_at_and_stays(tokenizer: Any) -> None:
    thought = f"I could call {HERMES}, no.</think>"
    assert _read(_parser("hermes", tokenizer), thought + HERMES) == (thought, [("add", {"a": 1})])
    assert _read(_parser("hermes", tokenizer), f"{thought}2") == (f"{thought}2", [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<tool_call>{", ("<tool_call>{", [])),
        ('<tool_call>{"name": "add", "arguments": "a"}</tool_call>', None),
        ('<tool_call>{"name": "add", "arguments": [1]}</tool_call>', None),
        ('<tool_call>{"name": "", "arguments": {}}</tool_call>', None),
        ("", ("", [])),
    ],
)
def test_a_broken_call_is_no_call(tokenizer: Any, text: str, expected: Any) -> None:
    assert _read(_parser("hermes", tokenizer), text) == expected


def test_a_parser_that_is_not_there_or_cannot_read_is_refused_with_the_remedy(tokenizer: Any) -> None:
    with pytest.raises(SettingError, match=r"agent.tool_parser='hermess': vLLM has no such parser. Did you mean 'herm"):
        _parser("hermess", tokenizer)
    for name in ("openai", "deepseek_v3"):
        with pytest.raises(SettingError, match=f"'{name}': vLLM's parser cannot read replies of this model"):
            _parser(name, tokenizer)


def test_every_parser_of_vllm_is_taken_or_refused(tokenizer: Any) -> None:
    from vllm.tool_parsers import ToolParserManager

    taken = 0
    for name in ToolParserManager.list_registered():
        try:
            parser = _parser(name, tokenizer)
        except SettingError:
            continue
        taken += 1
        for text in ("2", HERMES, DEEPSEEK, "[add(a=1)]", "\0<|tool_call|>[{", "<function=add>"):
            parser.read(text, (ADD,))
    assert taken >= 10


def test_tokens_of_calls_are_seen_where_the_text_of_a_reply_leaves_them_out(tokenizer: Any) -> None:
    special = copy.deepcopy(tokenizer)
    special.add_special_tokens({"additional_special_tokens": [*DEEPSEEK_TOKENS, "<tool_call>", "</tool_call>"]})
    for name, text in (("hermes", HERMES), ("deepseek_v3", DEEPSEEK)):
        parser = _parser(name, special)
        with served(MessageRenderer(special), tool_parser=parser) as one:
            one.script = [text, "1"]
            body: dict[str, Any] = {"messages": [user("1 + 0?")], "tools": [ADD]}
            choice = one.post(body)[2]["choices"][0]
            if not parser.sees_special_tokens:  # vLLM's server would not show it the tokens either
                assert choice["finish_reason"] == "stop"
                continue
            (call,) = choice["message"]["tool_calls"]
            assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
            result = {"role": "tool", "tool_call_id": call["id"], "content": "1"}
            assert one.post(body | {"messages": [*body["messages"], choice["message"], result]})[0] == 200
            assert one.is_one_context()


def test_tools_that_vllm_does_not_take_are_refused_before_anything_is_sampled(tokenizer: Any) -> None:
    broken = {"type": "function", "function": {"name": "add", "description": 5}}
    with served(MessageRenderer(tokenizer), tool_parser=_parser("hermes", tokenizer)) as one:
        status, _, answer = one.post({"messages": [user("a")], "tools": [broken]})
        assert (status, answer["error"]["param"]) == (400, "tools") and not one.requests
        assert answer["error"]["message"].startswith("agent.tool_parser does not take these tools: ")


def test_a_run_names_its_parser(tiny_dense: str, tmp_path: Path) -> None:
    assert load_tool_parser(None, {"path": tiny_dense}) is None
    assert load_tool_parser("hermes", {"path": tiny_dense}) is not None
    config = GSPOConfig().rl_module(model_config={"path": tiny_dense})
    with pytest.raises(SettingError, match=r"agent.tool_parser is set, but agent.play is not"):
        config.agent(tool_parser="hermes").environment("gspo_rllib.envs:gspo_rllib/Calculator-v0").validate()

"""The snippets of docs/agent_frameworks.md, run with the real packages, and its table of what each does to history."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gspo_rllib.agents import server
from gspo_rllib.agents.agent_session import AgentSession
from gspo_rllib.agents.dialect import Asked
from gspo_rllib.agents.messages import Message
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.replies import Reply
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.agents.stitching import episode_of
from gspo_rllib.types import GroupMember, turns
from tests.agents.serving import Served, served

PAGE = Path(__file__).resolve().parents[2] / "docs" / "agent_frameworks.md"
TASK = {"question": "What is 17 + 25?", "answer": "42"}
CONVERSATION = {"model", "messages", "input", "prompt", "system", "instructions", "tools", "max_tokens"}

ADD = '<tool_call>{"name": "add", "arguments": {"b": 25, "a": 17}}</tool_call>'
# Reasoning, words and two calls in one reply; a call without words; an answer.
SCRIPT = (f"<think>\nI add.\n</think>\n\nLet me add. {ADD}{ADD}", f"<think>\nOnce more.\n</think>\n\n{ADD}")
ANSWER = "<think>\nDone.\n</think>\n\n42"
FINAL_CALL = '<tool_call>{"name": "final_answer", "arguments": {"answer": "42"}}</tool_call>'
CODE = (
    "<think>\nI add.\n</think>\n\nThought: I add.\n<code>\nprint(17 + 25)\n</code>",
    "Thought: that is it.\n<code>\nfinal_answer('42')\n</code>",
)


@dataclass(frozen=True)
class Client:
    """One snippet of the page, in its order.

    Attributes:
        name: The first cell of its row.
        script: What the policy says.
        asked: Fields that the snippet itself sends.
        is_slow: Whether its import takes more than two seconds.
    """

    name: str
    script: tuple[str, ...] = (*SCRIPT, ANSWER)
    asked: tuple[str, ...] = ()
    is_slow: bool = False


CLIENTS = [
    Client("openai, chat"),
    Client("openai, responses"),
    Client("openai, completions", ("add 17 25\nResult:", "It is 42"), asked=("stop",)),
    Client("anthropic"),
    Client("LangGraph"),
    Client("OpenAI Agents SDK, responses"),
    Client("OpenAI Agents SDK, chat"),
    Client("Pydantic AI"),
    Client("LiteLLM", is_slow=True),
    Client("smolagents, tool calls", (*SCRIPT, FINAL_CALL)),
    Client("smolagents, code", CODE),
]
FAST_AND_SLOW = [
    pytest.param(client, id=client.name, marks=pytest.mark.slow if client.is_slow else ()) for client in CLIENTS
]


def _snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


def _rows() -> dict[str, list[str]]:
    section = PAGE.read_text().split("\n## What they do to history\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: rest for name, *rest in cells[1:]}


def test_every_snippet_has_its_client_and_every_client_its_row() -> None:
    assert len(_snippets()) == len(CLIENTS)
    assert list(_rows()) == [client.name for client in CLIENTS]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Asked]]:
    """What the server was sent: the bodies, and what became of them."""
    bodies: list[tuple[dict[str, Any], Asked]] = []
    read = server._read

    def spy(dialect: Any, raw: bytes, renderer: MessageRenderer) -> Asked:
        asked = read(dialect, raw, renderer)
        bodies.append((json.loads(raw), asked))
        return asked

    monkeypatch.setattr(server, "_read", spy)
    return bodies


@pytest.mark.parametrize("client", FAST_AND_SLOW)
def test_an_agent_of_a_framework_is_served_and_does_to_history_what_the_page_says(
    rich_renderer: MessageRenderer,
    client: Client,
    tmp_path: Path,
    heard: list[tuple[dict[str, Any], Asked]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it asks the network for prices otherwise
    module = _module(_snippets()[CLIENTS.index(client)], tmp_path)
    with served(rich_renderer, max_model_len=12_000) as one:
        one.script = list(client.script)
        session = AgentSession(one.door, one.endpoint, key=one.key, seed=0)
        assert asyncio.run(module.play(TASK, session)) == 1.0
        assert [call.reply.finish_reason for call in one.session.calls][-1] in ("stop", "tool_calls")
        assert len(one.session.calls) == len(client.script) and all(call.delivered for call in one.session.calls)
        beside = {name for body, _ in heard for name in body} - CONVERSATION - {*client.asked}
        changes = dict.fromkeys(change for n in range(1, len(heard)) for change in _changes(one, *heard[n], n - 1))
        measured = [
            ", ".join(f"`{name}`" for name in sorted(beside)) or "-",
            ", ".join(changes) or "nothing",
            f"{_segments(one)} of {len(client.script)}",
        ]
    assert measured == _rows()[client.name]


async def _agents_streamed(session: AgentSession, kind: str) -> Any:
    import agents

    agents.set_tracing_disabled(True)
    model = getattr(agents, kind)("policy", session.client())
    agent: Any = agents.Agent(name="adder", model=model, tools=[agents.function_tool(add)])
    running = agents.Runner.run_streamed(agent, TASK["question"])
    async for _ in running.stream_events():
        pass
    again = [*running.to_input_list(), {"role": "user", "content": "Sure?"}]
    return (await agents.Runner.run(agent, again)).final_output


async def _langgraph_streamed(session: AgentSession, **options: Any) -> Any:
    from langchain_openai import ChatOpenAI
    from langgraph.prebuilt import create_react_agent

    model = ChatOpenAI(model="policy", base_url=session.base_url, api_key=session.api_key, streaming=True, **options)
    agent = create_react_agent(model, [add])
    state = await agent.ainvoke({"messages": [("user", TASK["question"])]})
    state = await agent.ainvoke({"messages": [*state["messages"], ("user", "Sure?")]})
    return state["messages"][-1].text


async def _pydantic_ai(session: AgentSession, model: Any) -> Any:
    from pydantic_ai import Agent

    agent = Agent(model, tools=[add])
    first = await agent.run(TASK["question"])
    return (await agent.run("Sure?", message_history=first.all_messages())).output


async def _pydantic_ai_responses(session: AgentSession) -> Any:
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(openai_client=session.client())
    return await _pydantic_ai(session, OpenAIResponsesModel("policy", provider=provider))


async def _pydantic_ai_anthropic(session: AgentSession) -> Any:
    from anthropic import AsyncAnthropic
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    client = AsyncAnthropic(base_url=session.base_url.removesuffix("/v1"), api_key=session.api_key)
    return await _pydantic_ai(session, AnthropicModel("policy", provider=AnthropicProvider(anthropic_client=client)))


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


OTHERWISE: dict[str, Callable[[AgentSession], Coroutine[Any, Any, Any]]] = {
    "OpenAI Agents SDK, responses streamed": lambda session: _agents_streamed(session, "OpenAIResponsesModel"),
    "OpenAI Agents SDK, chat streamed": lambda session: _agents_streamed(session, "OpenAIChatCompletionsModel"),
    "LangGraph, chat streamed": _langgraph_streamed,
    "LangGraph, responses streamed": lambda session: _langgraph_streamed(session, use_responses_api=True),
    "Pydantic AI, responses": _pydantic_ai_responses,
    "Pydantic AI, anthropic": _pydantic_ai_anthropic,
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_streams_other_dialects_and_a_second_question_stay_one_context(
    rich_renderer: MessageRenderer, name: str
) -> None:
    with served(rich_renderer) as one:
        one.script = [*SCRIPT, ANSWER, "Yes, 42"]
        session = AgentSession(one.door, one.endpoint, key=one.key, seed=0)
        assert asyncio.run(OTHERWISE[name](session)) == "Yes, 42"
        assert len(one.session.calls) == 4 and one.is_one_context() and _segments(one) == 1


def _module(snippet: str, folder: Path) -> Any:
    path = folder / "agent.py"  # in a file, since smolagents reads the source of a tool
    path.write_text(snippet)
    spec = importlib.util.spec_from_file_location("agent", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _segments(one: Served) -> int:
    """Contexts of the trajectory that is trained; in each, the ids are those that the engine saw and sampled."""
    calls = one.session.trained_calls()
    episode = episode_of(calls, AgentResult(1.0), GroupMember("g", 0, task_seed=0))
    contexts: list[np.ndarray] = []
    for turn in turns(episode):
        if not contexts or turn.starts_segment:
            contexts.append(np.empty(0, np.int32))
        contexts[-1] = np.concatenate([contexts[-1], turn.prompt_token_ids, turn.action_token_ids])
    # A last call of a context is one that no other goes on from.
    leaves = [call for call in calls if not call.children]
    assert [context.tolist() for context in contexts] == [one.context(call.number) for call in leaves]
    assert sum(len(turn.action_token_ids) for turn in turns(episode)) == sum(len(call.token_ids) for call in calls)
    return len(contexts)


def _changes(one: Served, body: Mapping[str, Any], asked: Asked, number: int) -> list[str]:
    """What became of one reply in the next call's history, in words."""
    reply = one.session.calls[number].reply
    if asked.chat.raw is not None:
        assert isinstance(asked.chat.raw, str)
        return [] if reply.content in asked.chat.raw else ["other text"]
    replies = [message for message in asked.chat.messages if message["role"] == "assistant"]
    sent = [message for message in body.get("messages", ()) if message["role"] == "assistant"]
    return _text_changes(reply, replies[number], sent[number] if sent else {}) + _call_changes(reply, replies[number])


def _text_changes(reply: Reply, back: Message, sent: Mapping[str, Any]) -> list[str]:
    words, written = back["content"], reply.content
    if words == written:
        return []
    if sent.get("reasoning_content"):
        assert words.strip() == written.partition("</think>")[2].strip()
        return ["moves the reasoning to `reasoning_content`"]
    if "".join(words.split()) == "".join(written.split()):
        return ["writes other line breaks around the reasoning"]
    return ["puts the stop string back"] if words.startswith(written + "</code>") else []


def _call_changes(reply: Reply, back: Message) -> list[str]:
    calls = [call["function"] for call in reply.tool_calls]
    returned = [call["function"] for call in back.get("tool_calls", ())]
    if "Calling tools:" in back["content"]:
        assert not returned
        return ["writes calls as prose"]
    assert [json.loads(call["arguments"]) for call in returned] == [json.loads(call["arguments"]) for call in calls]
    return [] if returned == calls else ["writes arguments without spaces"]

"""The snippets of docs/agent_frameworks.md, run with the real packages, and its table of what each does to history."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.rllib.core import DEFAULT_MODULE_ID

from gspo_rllib import GSPOConfig
from gspo_rllib.agents import server
from gspo_rllib.agents.agent_session import AgentSession
from gspo_rllib.agents.dialect import Asked
from gspo_rllib.agents.messages import Message
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.replies import Reply
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.agents.stitching import episode_of
from gspo_rllib.types import GroupMember, turns
from gspo_rllib.warmstart.models import build_model
from tests.agents.made_up_policy import user
from tests.agents.serving import Served, served

PAGE = Path(__file__).resolve().parents[2] / "docs" / "agent_frameworks.md"
TASK = {"question": "What is 17 + 25?", "answer": "42"}
SMALL: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "max_position_embeddings": 4096, "initializer_range": 0.3}
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
    import httpx
    from langchain_openai import ChatOpenAI
    from langgraph.prebuilt import create_react_agent

    options |= {"base_url": session.base_url, "api_key": session.api_key, "streaming": True}
    async with httpx.AsyncClient() as client:
        agent = create_react_agent(ChatOpenAI(model="policy", http_async_client=client, **options), [add])
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


async def _openai_chat(session: AgentSession) -> Any:
    messages: list[Any] = [user(TASK["question"])]
    for _ in range(2):
        answer = await session.client().chat.completions.create(model="policy", messages=messages)
        messages += [answer.choices[0].message, user("Sure?")]
    return answer.choices[0].message.content


async def _openai_responses(session: AgentSession) -> Any:
    items: list[Any] = [user(TASK["question"])]
    for _ in range(2):
        answer = await session.client().responses.create(model="policy", input=items)
        items += [*answer.output, user("Sure?")]
    return answer.output_text


async def _openai_completions(session: AgentSession) -> Any:
    prompt = TASK["question"]
    for _ in range(2):
        answer = await session.client().completions.create(model="policy", prompt=prompt)
        prompt += f"{answer.choices[0].text}\nSure?\n"
    return prompt


async def _anthropic(session: AgentSession) -> Any:
    from anthropic import AsyncAnthropic

    client = AsyncAnthropic(base_url=session.base_url.removesuffix("/v1"), api_key=session.api_key)
    messages: list[Any] = [user(TASK["question"])]
    for _ in range(2):
        answer = await client.messages.create(model="policy", messages=messages, max_tokens=16)
        messages += [{"role": "assistant", "content": answer.content}, user("Sure?")]
    return str(answer.content)


async def _smolagents(session: AgentSession) -> Any:
    from smolagents import OpenAIServerModel, ToolCallingAgent

    model = OpenAIServerModel("policy", api_base=session.base_url, api_key=session.api_key)
    agent = ToolCallingAgent([], model, max_steps=2, verbosity_level=0)
    agent.prompt_templates["system_prompt"] = "Answer."  # its own has 7,000 tokens
    return agent.run(TASK["question"])


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


CUT_OFF = "OpenAI Agents SDK, responses streamed"
UNTAUGHT = {name: play for name, play in OTHERWISE.items() if name != CUT_OFF} | {
    "openai, chat": _openai_chat,
    "openai, responses": _openai_responses,
    "openai, completions": _openai_completions,
    "anthropic": _anthropic,
    "smolagents": _smolagents,
}
"""Agents that a policy which says anything, and is mostly cut off, plays to an end."""


def test_the_agents_sdk_raises_where_a_streamed_response_is_cut_off(rich_renderer: MessageRenderer) -> None:
    from agents import ModelBehaviorError

    with served(rich_renderer, max_tokens=1) as one:
        one.text = "two words"
        session = AgentSession(one.door, one.endpoint, key=one.key, seed=0)
        with pytest.raises(ModelBehaviorError, match="max_output_tokens"):
            asyncio.run(OTHERWISE[CUT_OFF](session))


async def _played(task: dict[str, Any], session: AgentSession) -> float:
    return float(len(str(await UNTAUGHT[task["client"]](session))) % 3)


@pytest.mark.slow
def test_what_real_clients_asked_is_scored_as_it_was_sampled(ray_local: None, tmp_path: Path) -> None:
    # Threads that import packages for the first time, all at once, may see one that another has only begun to import.
    for package in ("httpx", "openai", "anthropic", "agents", "langchain_openai", "pydantic_ai", "smolagents"):
        importlib.import_module(package)
    folder = str(build_model(tmp_path / "model", **SMALL))
    config = (
        GSPOConfig()
        .agent(_played, tasks=[{"client": name} for name in UNTAUGHT])
        .rl_module(model_config={"path": folder})
        .generation(engine="transformers", max_tokens_per_turn=8)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=8)
        .training(group_size=2, groups_per_iteration=len(UNTAUGHT), num_minibatches=2, lr=1e-3)
        .debugging(seed=1)
    )
    algo = config.build_algo()
    try:
        result = algo.train()
        errors = algo.env_runner_group.local_env_runner.last_errors()
    finally:
        algo.stop()
    learner, played = result["learners"][DEFAULT_MODULE_ID], result["env_runners"]
    assert played["num_episodes"] == 2 * len(UNTAUGHT)
    assert not errors
    assert played["num_new_segments"] >= 2  # those of smolagents, a group of two
    assert learner["logp_gap_max"] <= 1e-4


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

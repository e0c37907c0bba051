"""Whatever a framework does to a history, the policy is shown what the framework sent, and where it can, its own ids.

Frameworks trim conversations, inject instructions for one call, change tools, repeat and edit messages. The prompt of
every such call is compared with the chat template's own rendering of the messages as they were sent.
"""

from __future__ import annotations

import copy
import random
import re
from typing import Any

import pytest

from gspo_rllib.agents.messages import checked_messages
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.session import Call
from tests.agents.made_up_policy import MadeUpPolicy, user

NUM_CONVERSATIONS = 60
TEXTS = ("yes", "no", "maybe so", "4", "", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>')

History = list[dict[str, Any]]


def _tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}


TOOLS: tuple[tuple[dict[str, Any], ...], ...] = ((), (_tool("f"),), (_tool("g"),))


def _trim(history: History, draw: random.Random) -> History:
    keeps = history[0]["role"] == "system"
    return [*history[:keeps], *history[draw.randrange(keeps, len(history)) :]]


def _inject(history: History, draw: random.Random) -> History:
    told = history[1:] if history[0]["role"] == "system" else history
    return [{"role": "system", "content": f"call {draw.randrange(9)}"}, *told]


def _edit(history: History, draw: random.Random) -> History:
    edited = draw.choice(history)
    edited["content"] = f"{edited['content'] or ''}!"
    return history


def _drop(history: History, draw: random.Random) -> History:
    del history[draw.randrange(len(history) - 1)]
    return history


def _repeat(history: History, draw: random.Random) -> History:
    return [*history, copy.deepcopy(draw.choice(history))]


def _nothing(history: History, draw: random.Random) -> History:
    return history


HABITS = (_nothing, _nothing, _nothing, _nothing, _trim, _inject, _edit, _drop, _repeat)


def _next(history: History, call: Call, draw: random.Random) -> History:
    """What a framework sends after a reply."""
    reply = {**copy.deepcopy(call.reply.message), "content": call.reply.content}
    answer = {"role": "tool", "content": "r", "tool_call_id": "x"} if call.reply.tool_calls else user("go on")
    sent = draw.choice(HABITS)([*copy.deepcopy(history), reply, answer], draw)
    return sent if sent[0]["role"] in ("system", "user") else [user("and?"), *sent]


@pytest.mark.parametrize("template", ["renderer", "rich_renderer"])
def test_the_policy_sees_what_was_sent(template: str, request: pytest.FixtureRequest) -> None:
    renderer: MessageRenderer = request.getfixturevalue(template)
    num_calls = num_bridged = 0
    for seed in range(NUM_CONVERSATIONS):
        draw, policy = random.Random(seed), MadeUpPolicy(renderer, seed)
        history, tools = [user("q")], draw.choice(TOOLS)
        for _ in range(draw.randint(2, 9)):
            call = policy.say(history, draw.choice(TEXTS), tools=tools)
            prompt, _ = policy.seen[call.number]
            assert _text(renderer, prompt) == _text(renderer, renderer.full(checked_messages(history), tools, {}))
            num_calls, num_bridged = num_calls + 1, num_bridged + (call.parent is not None)
            history = _next(history, call, draw)
            tools = draw.choice(TOOLS) if draw.random() < 0.05 else tools
    assert num_bridged > 0.4 * num_calls > 0.4 * 5 * NUM_CONVERSATIONS


def _text(renderer: MessageRenderer, ids: list[int]) -> str:
    # Around a call the policy and the template may break lines in other places.
    return re.sub(r"\s+", "", renderer.shown(ids))

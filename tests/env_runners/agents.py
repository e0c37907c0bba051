"""Agents that behave, and agents that do not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

from gspo_rllib.agents.agent_session import AgentSession
from gspo_rllib.agents.messages import RequestRefused

blocked = threading.Event()
"""Ends the blocking of ``blocks``."""


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def two_turns(task: dict[str, Any], session: AgentSession) -> float:
    messages: list[dict[str, Any]] = [user(f"{task.get('question', task)}")]
    for _ in range(2):
        reply = await session.chat(messages)
        messages += [reply.message, user("go on")]
    return float(len(reply.content) % 3)


async def two_turns_that_differ_in_worth(task: dict[str, Any], session: AgentSession) -> float:
    """The members of a group are never worth the same, so every update has something to learn from."""
    await two_turns(task, session)
    return float(session.name.split("/")[-2])


async def three_at_once(task: dict[str, Any], session: AgentSession) -> float:
    first = await session.chat([user("plan")])
    history = [user("plan"), first.message]
    await asyncio.gather(*(session.chat([*history, user(f"part {n}")]) for n in range(3)))
    return 1.0


async def sends_what_has_no_effect(task: dict[str, Any], session: AgentSession) -> float:
    client = session.client()
    for unknown in ({"made_up": 1}, {}):
        await client.chat.completions.create(model="m", messages=[user("a")], temperature=0, extra_body=unknown)
    return 1.0


async def cancels_a_call(task: dict[str, Any], session: AgentSession) -> float:
    lost = asyncio.ensure_future(session.chat([user("lost")]))
    await asyncio.sleep(0)
    lost.cancel()
    await session.chat([user("kept")], max_tokens=6)
    return 1.0


async def leaves_a_call_running(task: dict[str, Any], session: AgentSession) -> float:
    asyncio.ensure_future(session.chat([user("abandoned")], max_tokens=200))  # noqa: RUF006
    await session.chat([user("kept")], max_tokens=1)
    return 1.0


async def raises(task: dict[str, Any], session: AgentSession) -> float:
    await session.chat([user("a")])
    raise ValueError("boom")


async def interrupts(task: dict[str, Any], session: AgentSession) -> float:
    raise KeyboardInterrupt


async def yields(task: dict[str, Any], session: AgentSession) -> AsyncIterator[float]:
    yield 1.0


async def returns_nothing(task: dict[str, Any], session: AgentSession) -> None:
    await session.chat([user("a")])


async def never_calls(task: dict[str, Any], session: AgentSession) -> float:
    return 1.0


async def sleeps(task: dict[str, Any], session: AgentSession) -> float:
    await session.chat([user("a")])
    await asyncio.sleep(60)
    return 1.0


async def blocks(task: dict[str, Any], session: AgentSession) -> float:
    await session.chat([user("a")])
    blocked.wait(60)
    return 1.0


async def says_too_much(task: dict[str, Any], session: AgentSession) -> float:
    await session.chat([user("a " * 1000)])
    return 1.0


async def stops_at_nothing(task: dict[str, Any], session: AgentSession) -> float:
    await session.chat([user("a")], stop=[""])
    return 1.0


async def asks_for_no_tokens(task: dict[str, Any], session: AgentSession) -> float:
    await session.chat([user("a")], max_tokens=0)
    return 1.0


async def shortens(task: dict[str, Any], session: AgentSession) -> float:
    try:
        await session.chat([user("a " * 1000)])
    except RequestRefused as refused:
        if refused.code != "context_length_exceeded":
            raise
        await session.chat([user("a")])
    return 1.0


async def calls_until_refused(task: dict[str, Any], session: AgentSession) -> float:
    try:
        while True:
            await session.chat([user("again")])
    except RequestRefused as refused:
        if refused.code != "max_turns_exceeded":
            raise
    return 0.5


async def goes_on_without_a_reply(task: dict[str, Any], session: AgentSession) -> float:
    """One long call, then as many short ones as it takes."""
    try:
        await session.chat([user("long")], max_tokens=200)
    except RequestRefused as refused:
        if (refused.code, refused.status) != ("call_timeout", 408):
            raise
        await session.chat([user("short")], max_tokens=1)
        return 0.5
    return 1.0


class Unreliable:
    """Fails at the first attempt of every trajectory."""

    async def __call__(self, task: dict[str, Any], session: AgentSession) -> float:
        await session.chat([user("a")])
        if session.name.endswith("/0"):
            raise RuntimeError("first attempt")
        return 1.0


def not_asynchronous(task: dict[str, Any], session: AgentSession) -> float:
    return 1.0


async def takes_one(task: dict[str, Any]) -> float:
    return 1.0


NO_FUNCTION = 3

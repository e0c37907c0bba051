"""Agents for processes of their own: they behave, or bring their process down."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import Any

from gspo_rllib.agents.agent_session import AgentSession
from gspo_rllib.agents.result import AgentResult

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def behaves(task: dict[str, Any], session: AgentSession) -> AgentResult:
    """Answers with what it was given, after calls of every kind."""
    print("what an agent prints is its own business")
    assert sys.stdin.read() == ""
    first = await session.chat([user("plan")], tools=[ADD], max_tokens=50)
    assert first.finish_reason == "tool_calls" or first.malformed_call is task.get("malformed", False)
    history = [user("plan"), first.message]
    await asyncio.gather(*(session.chat([*history, user(f"part {n}")], tools=[ADD]) for n in range(3)))
    lost = asyncio.ensure_future(session.chat([user("lost")]))
    await asyncio.sleep(task.get("cancels_after", 0))
    lost.cancel()
    return AgentResult(float(os.getpid()), [float(session.seed)] * 4, True, {task["part"]: 1.0}, "time")


async def repeats(task: dict[str, Any], session: AgentSession) -> float:
    messages = [user(task["question"])]
    for _ in range(2):
        reply = await session.chat(messages)
        messages += [reply.message, user("go on")]
    return float(len(reply.content) % 3)


async def is_refused(task: dict[str, Any], session: AgentSession) -> float:
    await session.chat([{"role": "nobody", "content": "hello"}])
    return 1.0


async def raises(task: dict[str, Any], session: AgentSession) -> float:
    raise ValueError("boom")


async def says_it_is_worth_nan(task: dict[str, Any], session: AgentSession) -> float:
    return float("nan")


async def exits(task: dict[str, Any], session: AgentSession) -> float:
    sys.exit(4)


async def leaves(task: dict[str, Any], session: AgentSession) -> float:
    os._exit(3)


async def crashes(task: dict[str, Any], session: AgentSession) -> float:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 1.0


async def crashes_at_first(task: dict[str, Any], session: AgentSession) -> float:
    if session.name.endswith("/0/0"):
        os._exit(3)
    return await repeats(task, session)


async def never_ends(task: dict[str, Any], session: AgentSession) -> float:
    """Computes without ever letting another thread run, beside a process that it started."""
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open(task["file"], "a") as file:
        file.write(f"{os.getpid()} {started.pid}\n")
    sys.setswitchinterval(600)
    until = time.monotonic() + 600
    while time.monotonic() < until:
        pass
    return 1.0

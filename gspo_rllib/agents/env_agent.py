"""An environment played as an agent: what an agent looks like, and what to compare the two doors with.

``play`` calls the policy in its own process, ``play_over_http`` as an agent in any language would. An environment is
the faster door; this is for measuring what the others cost, and for their tests.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Awaitable, Callable
from typing import Any, get_args
from urllib.parse import urlsplit

import gymnasium as gym

from gspo_rllib.agents.agent_session import AgentSession
from gspo_rllib.agents.messages import RequestRefused
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.types import ChatSpec, TruncatedBy

_CUT_SHORT: dict[str, TruncatedBy] = {"context_length_exceeded": "context", "max_turns_exceeded": "turns"}


Ask = Callable[[list[dict[str, Any]]], Awaitable[dict[str, Any]]]
"""Messages -> the assistant message that answers them."""


async def play(task: dict[str, Any], session: AgentSession) -> AgentResult:
    """Plays one episode, asking for each action in the conversation so far.

    Args:
        task: ``{"env": "module:id", "env_config": {…}}``; the session's seed picks the episode.
        session: The policy.
    """

    async def ask(messages: list[dict[str, Any]]) -> dict[str, Any]:
        return (await session.chat(messages)).message

    return await _episode(task, session.seed, ask)


async def play_over_http(task: dict[str, Any], session: AgentSession) -> AgentResult:
    """The same, with nothing but the address and the key of the session.

    Args:
        task: ``{"env": "module:id", "env_config": {…}}``; the session's seed picks the episode.
        session: The policy.
    """
    address = urlsplit(session.base_url)
    connection = http.client.HTTPConnection(address.netloc)
    headers = {"authorization": f"Bearer {session.api_key}", "content-type": "application/json"}

    async def ask(messages: list[dict[str, Any]]) -> dict[str, Any]:
        body = json.dumps({"model": "policy", "messages": messages})
        connection.request("POST", f"{address.path}/chat/completions", body, headers)
        answer = json.loads(connection.getresponse().read())
        if "error" in answer:
            raise RequestRefused(answer["error"]["message"], code=answer["error"]["code"])
        message: dict[str, Any] = answer["choices"][0]["message"]
        return message

    try:
        return await _episode(task, session.seed, ask)
    finally:
        connection.close()


async def _episode(task: dict[str, Any], seed: int, ask: Ask) -> AgentResult:
    env = gym.make(task["env"], disable_env_checker=True, **task.get("env_config", {}))
    try:
        chat = env.get_wrapper_attr("chat") if env.has_wrapper_attr("chat") else None
        prompt = (chat or ChatSpec()).system_prompt
        messages: list[dict[str, Any]] = [] if prompt is None else [{"role": "system", "content": prompt}]
        observation, _ = env.reset(seed=seed)
        messages.append({"role": "user", "content": observation})
        rewards: list[float] = []
        truncated_by: TruncatedBy | None = None
        ended = False
        info: dict[str, Any] = {}
        while not (ended or truncated_by):
            try:
                reply = await ask(messages)
            except RequestRefused as refused:
                truncated_by = _CUT_SHORT.get(refused.code or "")
                if truncated_by is None or not rewards:
                    raise
                break
            observation, reward, ended, cut, info = env.step(reply["content"])
            rewards.append(float(reward))
            messages += [reply, {"role": info.get("obs_role", "user"), "content": observation}]
            if cut and not ended:
                truncated_by = info["truncated_by"] if info.get("truncated_by") in get_args(TruncatedBy) else "env"
    finally:
        env.close()
    return AgentResult(0.0, rewards, info.get("success"), truncated_by=truncated_by)

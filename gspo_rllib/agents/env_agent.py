"""An environment played as an agent: what an agent looks like, and what to compare the two doors with.

An environment is the faster door; this is for measuring what the other one costs, and for its tests.
"""

from __future__ import annotations

from typing import Any, get_args

import gymnasium as gym

from gspo_rllib.agents.agent_session import AgentSession
from gspo_rllib.agents.messages import RequestRefused
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.types import ChatSpec, TruncatedBy

_CUT_SHORT: dict[str, TruncatedBy] = {"context_length_exceeded": "context", "max_turns_exceeded": "turns"}


async def play(task: dict[str, Any], session: AgentSession) -> AgentResult:
    """Plays one episode, asking for each action in the conversation so far.

    Args:
        task: ``{"env": "module:id", "env_config": {…}}``; the session's seed picks the episode.
        session: The policy.
    """
    env = gym.make(task["env"], disable_env_checker=True, **task.get("env_config", {}))
    try:
        chat = env.get_wrapper_attr("chat") if env.has_wrapper_attr("chat") else None
        prompt = (chat or ChatSpec()).system_prompt
        messages: list[dict[str, Any]] = [] if prompt is None else [{"role": "system", "content": prompt}]
        observation, _ = env.reset(seed=session.seed)
        messages.append({"role": "user", "content": observation})
        rewards: list[float] = []
        truncated_by: TruncatedBy | None = None
        ended = False
        info: dict[str, Any] = {}
        while not (ended or truncated_by):
            try:
                reply = await session.chat(messages)
            except RequestRefused as refused:
                truncated_by = _CUT_SHORT.get(refused.code or "")
                if truncated_by is None or not rewards:
                    raise
                break
            observation, reward, ended, cut, info = env.step(reply.content)
            rewards.append(float(reward))
            messages += [reply.message, {"role": info.get("obs_role", "user"), "content": observation}]
            if cut and not ended:
                truncated_by = info["truncated_by"] if info.get("truncated_by") in get_args(TruncatedBy) else "env"
    finally:
        env.close()
    return AgentResult(0.0, rewards, info.get("success"), truncated_by=truncated_by)

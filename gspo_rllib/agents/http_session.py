"""What an agent in a process of its own is given to talk to the policy: an ``AgentSession`` that calls over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from gspo_rllib.agents.agent_session import AgentSession
from gspo_rllib.agents.chat_completions import MALFORMED_CALL
from gspo_rllib.agents.messages import RequestRefused, SessionEnded, checked_max_tokens, checked_stop
from gspo_rllib.agents.replies import Reply
from gspo_rllib.errors import shown


class HttpSession(AgentSession):
    """The policy, for one trajectory, from another process; see ``AgentSession``.

    Args:
        base_url: Where the server is.
        key: What it knows the session by.
        seed: Seed of the task.
        name: Unique among all trajectories of a run.
    """

    def __init__(self, base_url: str, *, key: str, seed: int, name: str) -> None:
        self.api_key = key
        self.seed = seed
        self.name = name
        self._base_url = base_url

    @property
    def base_url(self) -> str:
        """Address of the OpenAI-compatible server."""
        return self._base_url

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        max_tokens: int | None = None,
        stop: str | Sequence[str] | None = None,
    ) -> Reply:
        """Asks the policy for a reply; see ``AgentSession.chat``.

        Raises:
            RequestRefused: The messages cannot be shown to the policy, leave no room for a reply, or this session has
                ended.
        """
        checked_max_tokens(max_tokens, "max_tokens")
        options = {"tools": tools, "max_tokens": max_tokens, "stop": checked_stop(stop, "stop")}
        body = {"messages": messages} | {name: value for name, value in options.items() if value}
        try:
            raw = json.dumps(body).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestRefused(f"the call cannot be written as JSON: {str(error)[:200]}.") from error
        answer = await self._post("chat/completions", raw)
        choice = answer["choices"][0]
        return Reply(choice["message"], choice["finish_reason"], malformed_call=choice.get(MALFORMED_CALL, False))

    async def _post(self, path: str, raw: bytes) -> Any:
        """The answer's JSON. Whoever is cancelled meanwhile closes the connection, so the reply is not trained."""
        address = urlsplit(self._base_url)
        head = (
            f"POST {address.path}/{path} HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {self.api_key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(raw)}\r\nconnection: close\r\n\r\n"
        )
        try:
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            try:
                writer.write(head.encode() + raw)
                answer = await reader.read()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        except OSError as error:
            raise SessionEnded(f"the env runner of this session is gone: {error}.") from error
        start, _, text = answer.partition(b"\r\n\r\n")
        status = start.split(b" ", 2)[1:2]
        if status != [b"200"]:
            raise _refusal(status, text)
        return json.loads(text)


def _refusal(status: list[bytes], text: bytes) -> RequestRefused:
    try:
        error, number = json.loads(text)["error"], int(status[0])
        message, param, code = error["message"], error["param"], error["code"]
    except (ValueError, KeyError, TypeError, IndexError):
        return RequestRefused(f"the server answered {shown((status, text))}.", status=502)
    if number == 410:
        return SessionEnded(message)
    return RequestRefused(message, param, code, number)

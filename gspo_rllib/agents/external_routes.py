"""What a harness outside asks of the server: a trajectory to play, and to settle it.

``POST /v1/sessions`` waits for a trajectory; ``POST /v1/sessions/{id}/finish`` and ``…/fail`` settle it, once. The
admin token alone opens them.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gspo_rllib.agents.dialect import parsed_object
from gspo_rllib.agents.lobby import Outside, Ticket
from gspo_rllib.agents.messages import RequestRefused, SessionEnded, sound_text
from gspo_rllib.agents.result import AgentResult
from gspo_rllib.errors import did_you_mean, shown

WAIT_S = 30.0
"""How long a harness waits for a trajectory, unless it says otherwise; less than most proxies' patience."""
MOST_WAIT_S = 300.0
MOST_REASON = 500
"""Characters of a reason that are kept."""

_RESULT_FIELDS = ("reward", "call_rewards", "success", "reward_parts", "truncated_by")


def external_routes(
    outside: Outside,
    read_body: Callable[[Request], Awaitable[bytes]],
    key_of: Callable[[Request], str],
) -> list[Route]:
    """The routes of a harness outside.

    Args:
        outside: The trajectories, and who may take them.
        read_body: Reads a body within its limits.
        key_of: The key that a request was sent with.
    """
    handlers = _Handlers(outside, read_body, key_of)
    return [
        Route("/v1/sessions", handlers.take, methods=["POST"]),
        Route("/v1/sessions/{ticket}/finish", handlers.finish, methods=["POST"]),
        Route("/v1/sessions/{ticket}/fail", handlers.fail, methods=["POST"]),
    ]


class _Handlers:
    """Answers requests; all in the server's event loop."""

    def __init__(
        self, outside: Outside, read_body: Callable[[Request], Awaitable[bytes]], key_of: Callable[[Request], str]
    ) -> None:
        self._outside = outside
        self._lobby = outside.lobby
        self._read_body = read_body
        self._key_of = key_of

    async def take(self, request: Request) -> Response:
        """A trajectory to play, or 204 where none came in time."""
        body = await self._admitted(request, may_be_empty=True)
        seconds = _wait_s(body)
        until = asyncio.get_running_loop().time() + seconds
        while True:
            asker = self._lobby.ask()
            ticket = await self._given(asker, max(0.0, until - asyncio.get_running_loop().time()))
            if ticket is None:
                return Response(status_code=204)
            if await request.is_disconnected():
                self._lobby.put_back(ticket)
                return Response(status_code=204)
            try:
                self._lobby.take(ticket)
            except SessionEnded:
                continue  # it was called back on its way here
            return _json(self._described(ticket))

    async def finish(self, request: Request) -> Response:
        body = await self._admitted(request)
        _check_names(body, _RESULT_FIELDS)
        if "reward" not in body:
            raise RequestRefused("reward is missing; it must be a finite number.", "reward")
        parts = body.get("reward_parts")
        if isinstance(parts, dict):
            parts = {sound_text(name): value for name, value in parts.items()}
        rewards = body.get("call_rewards")
        result = AgentResult(
            body["reward"], () if rewards is None else rewards, body.get("success"), parts, body.get("truncated_by")
        )
        self._lobby.finish(request.path_params["ticket"], result)
        return _json({"settled": True})

    async def fail(self, request: Request) -> Response:
        body = await self._admitted(request)
        _check_names(body, ("reason",))
        reason = body.get("reason")
        if not isinstance(reason, str) or not reason.strip():
            raise RequestRefused(f"reason is {shown(reason)}; it must be a text that says what went wrong.", "reason")
        self._lobby.fail(request.path_params["ticket"], sound_text(reason[:MOST_REASON]))
        return _json({"settled": True})

    async def _admitted(self, request: Request, *, may_be_empty: bool = False) -> dict[str, Any]:
        """The body of a request that came with the admin token."""
        if not hmac.compare_digest(self._key_of(request).encode(), self._outside.token.encode()):
            raise RequestRefused(
                "this takes the admin token of the run as the API key (Authorization: Bearer …).",
                code="invalid_api_key",
                status=401,
            )
        raw = await self._read_body(request)
        return {} if may_be_empty and not raw.strip() else parsed_object(raw)

    async def _given(self, asker: Future[Ticket], seconds: float) -> Ticket | None:
        """What came within this time; whoever ends the wait, nothing that came is lost."""
        try:
            await asyncio.wait({asyncio.wrap_future(asker)}, timeout=seconds)
        except asyncio.CancelledError:
            if not asker.cancel():
                self._lobby.put_back(asker.result())
            raise
        return None if asker.cancel() else asker.result()

    def _described(self, ticket: Ticket) -> dict[str, Any]:
        job, outside = ticket.job, self._outside
        return {
            "id": ticket.id,
            "name": job.agent.name,
            "base_url": job.agent.base_url,
            "api_key": job.agent.api_key,
            "task": job.task,
            "seed": job.agent.seed,
            "attempt": job.attempt,
            "deadline": time.time() + outside.trajectory_timeout_s,
            "trajectory_timeout_s": outside.trajectory_timeout_s,
            "idle_timeout_s": outside.idle_timeout_s,
        }


def _wait_s(body: dict[str, Any]) -> float:
    _check_names(body, ("wait_s",))
    seconds = body.get("wait_s", WAIT_S)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= MOST_WAIT_S:
        raise RequestRefused(
            f"wait_s is {shown(seconds)}; it must be a number of seconds from 0 to {MOST_WAIT_S:g}.", "wait_s"
        )
    return float(seconds)


def _check_names(body: dict[str, Any], known: tuple[str, ...]) -> None:
    for name in body:
        if name not in known:
            raise RequestRefused(f"{shown(name)} is unknown. {did_you_mean(name, known)}", sound_text(name[:100]))


def _json(content: dict[str, Any]) -> Response:
    # In ASCII: a task may hold what UTF-8 cannot write.
    return Response(json.dumps(content), media_type="application/json")

"""How the calls of one session reach the engine, whoever makes them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from gspo_rllib.agents.session import Call, ChatRequest, Prepared, Sampled, Session
from gspo_rllib.engines.protocol import GenerationRequest

Submit = Callable[[GenerationRequest], "Future[Sampled]"]
"""Queues a request for the engine, from any thread; to cancel the future is to abort the request."""


@dataclass(frozen=True, slots=True)
class Door:
    """Has the calls of a session sampled.

    Attributes:
        session: The calls so far.
        name: Unique among all trajectories that are being played; leads the ids of requests.
        temperature: What is sampled at, whatever a client asks for.
        sampling_seed: Number of a reply -> seed of its tokens.
        submit: Queues a request.
    """

    session: Session
    name: str
    temperature: float
    sampling_seed: Callable[[int], int]
    submit: Submit

    async def answer(self, request: ChatRequest) -> list[Call]:
        """The replies to a call, recorded; not yet marked as delivered.

        Raises:
            RequestRefused: The call cannot be answered, or the session has ended.
        """
        return await self.sample(self.session.prepare(request))

    async def sample(self, prepared: Prepared) -> list[Call]:
        """Like ``answer``, for a call whose prompt is written already."""
        futures = [self.submit(self._request(prepared, number)) for number in prepared.numbers]
        try:
            sampled = await asyncio.gather(*map(asyncio.wrap_future, futures))
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return [
            self.session.record(prepared, number, one) for number, one in zip(prepared.numbers, sampled, strict=True)
        ]

    def _request(self, prepared: Prepared, number: int) -> GenerationRequest:
        # The chat template's end is no end of a prompt that the agent wrote itself.
        ends = self.session.renderer.stop if prepared.request.raw is None else ()
        return GenerationRequest(
            request_id=f"{self.name}/{number}",
            prompt_token_ids=prepared.prompt,
            max_tokens=prepared.max_tokens,
            temperature=self.temperature,
            seed=self.sampling_seed(number),
            stop=(*prepared.request.stop, *ends),
        )


class OpenSession:
    """A session as the server has it.

    Args:
        door: How its calls reach the engine.

    Attributes:
        door: How its calls reach the engine.
        answers: The latest calls, by the digest of their bodies; the server's own.
        num_open: Calls under way; the server's own.
    """

    def __init__(self, door: Door) -> None:
        self.door = door
        self.answers: OrderedDict[bytes, Any] = OrderedDict()
        self.num_open = 0

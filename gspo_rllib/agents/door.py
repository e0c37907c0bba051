"""How the calls of one session reach the engine, whoever makes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from gspo_rllib.agents.session import Call, ChatRequest, Prepared, Sampled, Session
from gspo_rllib.engines.protocol import GenerationRequest

Submit = Callable[[GenerationRequest], "Future[Sampled]"]
"""Queues a request for the engine, from any thread; to cancel the future is to abort the request."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A call that is being sampled.

    Attributes:
        prepared: The call.
        futures: The replies to be, in the order of their numbers.
    """

    prepared: Prepared
    futures: list[Future[Sampled]]


def _count_nothing(names: Sequence[str]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Door:
    """Has the calls of a session sampled.

    Attributes:
        session: The calls so far.
        name: Unique among all trajectories that are being played; leads the ids of requests.
        temperature: What is sampled at, whatever a client asks for.
        sampling_seed: Number of a reply -> seed of its tokens.
        submit: Queues a request.
        on_passed_over: Called with the fields of a call that have no effect, as they are counted.
    """

    session: Session
    name: str
    temperature: float
    sampling_seed: Callable[[int], int]
    submit: Submit
    on_passed_over: Callable[[Sequence[str]], object] = _count_nothing

    async def answer(self, request: ChatRequest) -> list[Call]:
        """The replies to a call, recorded; not yet marked as delivered.

        Raises:
            RequestRefused: The call cannot be answered, or the session has ended.
        """
        return await self.collect(self.begin(request))

    def begin(self, request: ChatRequest) -> Begun:
        """Has the replies to a call sampled; from any thread, which it takes for as long as the prompt is written.

        Raises:
            RequestRefused: The call cannot be answered, or the session has ended.
        """
        prepared = self.session.prepare(request)
        return Begun(prepared, [self.submit(self._request(prepared, number)) for number in prepared.numbers])

    async def collect(self, begun: Begun) -> list[Call]:
        """The replies, recorded; whoever is cancelled meanwhile takes the call back.

        Raises:
            RequestRefused: The session has ended, or the call waited too long.
        """
        prepared, futures = begun.prepared, begun.futures
        try:
            sampled = [await _result(future) for future in futures]
        except BaseException:
            self.session.withdraw(prepared)
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


async def _result(future: Future[Sampled]) -> Sampled:
    """The result of a future of another thread.

    As ``asyncio.wrap_future``, but the other thread, which is the engine's, does no more than wake up the event loop.
    """
    if not future.done():
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def wake() -> None:
            if not done.done():
                done.set_result(None)

        def tell(settled: Future[Sampled]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits
                loop.call_soon_threadsafe(wake)

        future.add_done_callback(tell)
        await done
    return future.result()


class OpenSession:
    """A session as the server has it.

    Args:
        door: How its calls reach the engine.

    Attributes:
        door: How its calls reach the engine.
        answers: The latest calls, by the digest of their bodies; the server's own.
        num_open: Calls under way; the server's own.
        models: What calls named as the model, two names at most; the server's own.
    """

    def __init__(self, door: Door) -> None:
        self.door = door
        self.answers: OrderedDict[bytes, Any] = OrderedDict()
        self.num_open = 0
        self.models: set[str] = set()

"""A server with a made-up policy behind it, for tests that need no engine."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from gspo_rllib.agents.door import Door
from gspo_rllib.agents.endpoint import Endpoint
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.session import Sampled, Session
from gspo_rllib.engines.protocol import Generation, GenerationRequest


@dataclass
class Served:
    """One session behind a server.

    Attributes:
        endpoint: The endpoint.
        session: The session.
        door: How its calls reach the made-up policy.
        key: Its key.
        requests: What reached the engine.
        text: What the policy says, the same to everything.
        script: What it says first, in this order.
        hold: Unless set, requests wait.
        futures: The answers, by request id.
        passed_over: Fields without an effect that clients sent.
    """

    endpoint: Endpoint
    session: Session
    door: Door = field(init=False)
    key: str = ""
    requests: list[GenerationRequest] = field(default_factory=list)
    text: str = "2"
    script: list[str] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    futures: dict[str, Future[Sampled]] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)

    def submit(self, request: GenerationRequest) -> Future[Sampled]:
        future: Future[Sampled] = Future()
        self.requests.append(request)
        self.futures[request.request_id] = future
        text = self.script.pop(0) if self.script else self.text
        threading.Thread(target=self._sample, args=(request, future, text), daemon=True).start()
        return future

    def _sample(self, request: GenerationRequest, future: Future[Sampled], text: str) -> None:
        self.hold.wait(30)
        renderer = self.session.renderer
        ids = [*renderer._tokenizer.encode(text, add_special_tokens=False), renderer.stop_token_ids[0]]
        ids = ids[: request.max_tokens]
        logp = np.full(len(ids), -0.5, np.float32)
        reason = "stop" if ids[-1] in renderer.stop_token_ids else "length"
        with contextlib.suppress(Exception):
            future.set_result(Sampled(Generation(request.request_id, ids, logp, reason), version=3))

    def context(self, number: int) -> list[int]:
        """What the engine saw and sampled in one call."""
        call = self.session.calls[number]
        return [*self.requests[number].prompt_token_ids, *call.token_ids.tolist()]

    def is_one_context(self) -> bool:
        """Whether every call but the first went on from the one before, its ids included."""
        calls = self.session.calls
        return all(
            call.parent is before and self.requests[n + 1].prompt_token_ids[: len(self.context(n))] == self.context(n)
            for n, (before, call) in enumerate(itertools.pairwise(calls))
        )

    def post(self, body: Any, path: str = "/v1/chat/completions", **headers: str) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON of one POST."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(urlsplit(self.endpoint.url()).netloc, timeout=30)
        try:
            sent = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
            connection.request("POST", path, raw, sent | {n.replace("_", "-"): v for n, v in headers.items()})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, dict(answer.getheaders()), json.loads(text) if text else None
        finally:
            connection.close()


@contextlib.contextmanager
def served(renderer: MessageRenderer, **limits: Any) -> Iterator[Served]:
    endpoint = Endpoint()
    session = Session(renderer, **({"max_model_len": 4000, "max_tokens": 256} | limits))
    one = Served(endpoint, session)
    one.hold.set()
    one.door = Door(
        session,
        name="g/0/0/0",
        temperature=0.7,
        sampling_seed=lambda n: 100 + n,
        submit=one.submit,
        on_passed_over=one.passed_over.update,
    )
    one.key = endpoint.open(one.door)
    try:
        yield one
    finally:
        one.hold.set()
        endpoint.stop()

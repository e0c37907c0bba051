"""What the agents' server withstands: large bodies, bodies that never come, broken calls.

Behind the server is a policy that says one word at once, so that only the server is measured.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from urllib.parse import urlsplit

import numpy as np
from agent_fuzz import DIALECTS, fuzzed

from gspo_rllib.agents.door import Door
from gspo_rllib.agents.endpoint import Endpoint
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.server import BODY_TIMEOUT_S
from gspo_rllib.agents.session import Sampled, Session
from gspo_rllib.engines.protocol import Generation, GenerationRequest
from gspo_rllib.model_folder import load_tokenizer

LARGE = 10_000_000
"""Bytes of a body that is refused."""
SENDS_LARGE = """
import socket, sys, threading, time

address, head, body = (sys.argv[1], int(sys.argv[2])), sys.stdin.buffer.readline(), b"x" * int(sys.argv[3])
head = head.replace(b"|", b"\\r\\n")

def send(raw):
    try:
        raw.sendall(head + body)
    except OSError:  # the connection was closed while it was sending, as it should be
        pass

while True:
    with socket.create_connection(address) as raw:
        started = time.perf_counter()
        sending = threading.Thread(target=send, args=(raw,))
        sending.start()
        assert raw.recv(100).startswith(b"HTTP/1.1 413")
        print(time.perf_counter() - started, flush=True)
        sending.join()
    time.sleep(0.1)
"""
"""A program of its own that goes on sending 10 MB to the last byte, ten times a second; prints when it is refused."""
NEIGHBOUR_CALLS = 100
"""Calls of the neighbour in each phase."""


class QuickPolicy:
    """A server whose policy says one word at once.

    Args:
        model: Whose tokenizer and chat template it has.
    """

    def __init__(self, model: str) -> None:
        self._renderer = MessageRenderer(load_tokenizer(model))
        self._endpoint = Endpoint()
        address = urlsplit(self._endpoint.url())
        assert address.hostname is not None and address.port is not None
        self.address = (address.hostname, address.port)

    def new_key(self) -> str:
        """Opens a session."""
        session = Session(self._renderer, max_model_len=4000, max_tokens=16)
        door = Door(session, name="load", temperature=1.0, sampling_seed=lambda number: number, submit=self._submit)
        return self._endpoint.open(door)

    def post(self, connection: http.client.HTTPConnection, key: str, body: bytes, path: str) -> tuple[int, bytes]:
        """Status and text of an answer."""
        connection.request("POST", path, body, {"authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def stop(self) -> None:
        """Ends the server."""
        self._endpoint.stop()

    def _submit(self, request: GenerationRequest) -> Future[Sampled]:
        ids = [*self._renderer.raw("2")[-1:], self._renderer.stop_token_ids[0]][: request.max_tokens]
        future: Future[Sampled] = Future()
        generation = Generation(request.request_id, ids, np.full(len(ids), -0.5, np.float32), "stop")
        future.set_result(Sampled(generation, version=0))
        return future


def withstands(model: str, requests: int) -> dict[str, float]:
    """What becomes of bodies that are too large, that never come, and that are broken.

    Args:
        model: Whose tokenizer and chat template are used.
        requests: Broken calls.
    """
    served = QuickPolicy(model)
    stalled: list[float] = []
    stalling = threading.Thread(target=lambda: stalled.append(_stalled_s(served)))
    try:
        measured = _large_bodies(served)
        stalling.start()
        measured |= _broken_calls(served, requests)
        stalling.join()
    finally:
        served.stop()
    return measured | {"a body that never comes is cut off beyond its limit after, s": stalled[0] - BODY_TIMEOUT_S}


def _head(served: QuickPolicy, length: int) -> bytes:
    lines = ["POST /v1/chat/completions HTTP/1.1", "host: here", f"authorization: Bearer {served.new_key()}"]
    return "\r\n".join([*lines, f"content-length: {length}", "", ""]).encode()


def _large_bodies(served: QuickPolicy) -> dict[str, float]:
    """How fast 10 MB are refused, and what a neighbour has of it; the phases alternate."""
    refusals: list[float] = []
    taken: dict[str, list[float]] = {"alone": [], "beside": []}
    neighbour = _Neighbour(served)
    neighbour.calls()
    for _ in range(4):
        taken["alone"] += neighbour.calls()
        arguments = [sys.executable, "-c", SENDS_LARGE, *map(str, served.address), str(LARGE)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as sending:
            assert sending.stdin is not None and sending.stdout is not None
            sending.stdin.write(_head(served, LARGE).decode().replace("\r\n", "|") + "\n")
            sending.stdin.flush()
            refusals.append(float(sending.stdout.readline()))
            taken["beside"] += neighbour.calls()
            sending.kill()
            refusals += [float(line) for line in sending.stdout.read().splitlines()]
    p95 = {name: float(np.percentile(times, 95)) for name, times in taken.items()}
    return {
        "10 MB are refused with 413 after, ms": statistics.median(refusals) * 1e3,
        "p95 of a neighbour's calls alone, ms": p95["alone"] * 1e3,
        "p95 of a neighbour's calls beside 10 MB ÷ alone": p95["beside"] / p95["alone"],
    }


class _Neighbour:
    """A session that goes on calling."""

    def __init__(self, served: QuickPolicy) -> None:
        self._served = served
        self._key = served.new_key()
        self._connection = http.client.HTTPConnection(*served.address)
        talk = [{"role": role, "content": "7*2-5+1+6*1"} for role in ("user", "assistant") * 5] + [
            {"role": "user", "content": "3+4"}
        ]
        self._body = json.dumps({"messages": talk}).encode()

    def calls(self) -> list[float]:
        """Seconds that each of some calls took."""
        taken = []
        for _ in range(NEIGHBOUR_CALLS):
            started = time.perf_counter()
            status, text = self._served.post(self._connection, self._key, self._body, "/v1/chat/completions")
            assert status == 200, text
            taken.append(time.perf_counter() - started)
        return taken


def _stalled_s(served: QuickPolicy) -> float:
    """Seconds until the connection of a body that never comes is closed."""
    started = time.perf_counter()
    with socket.create_connection(served.address) as raw:
        raw.sendall(_head(served, 100) + b"{")
        while raw.recv(4096):
            pass
    return time.perf_counter() - started


def _broken_calls(served: QuickPolicy, requests: int) -> dict[str, float]:
    """How many broken calls are answered with 5xx, or not at all; after them the server still serves."""
    draw, paths = random.Random(2), list(DIALECTS)
    connection = http.client.HTTPConnection(*served.address, timeout=60)
    statuses: list[int] = []
    key = ""
    for number in range(requests):
        if number % 500 == 0:
            key = served.new_key()
        path = paths[number % len(paths)]
        statuses.append(served.post(connection, key, fuzzed(draw, path), path)[0])
    for path in paths:
        status, text = served.post(connection, served.new_key(), json.dumps(DIALECTS[path][0]).encode(), path)
        assert status == 200, text
    return {
        "broken calls sent": requests,
        "of them answered with 200, share": statuses.count(200) / requests,
        "of them answered with other than 200 or 400": sum(status not in (200, 400) for status in statuses),
    }

"""A small OpenEnv server for tests: guess a number that the seed of the reset fixes."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def answer(message: dict[str, Any], state: dict[str, int]) -> dict[str, Any]:
    """What the server says to one message."""
    kind, data = message["type"], message.get("data", {})
    if kind == "reset":
        state["number"] = random.Random(data["seed"]).randrange(100)
        return {"type": "observation", "data": _seen("guess 0 to 99")}
    if kind == "state":
        return {"type": "state", "data": dict(state)}
    if kind != "step" or set(data) != {"message"}:
        return {"type": "error", "data": {"message": "Invalid message", "code": "VALIDATION_ERROR"}}
    if not (data["message"].isascii() and data["message"].isdigit() and len(data["message"]) < 5):
        return {"type": "observation", "data": _seen("not a number")}
    difference = int(data["message"]) - state["number"]
    text = "right" if difference == 0 else "too high" if difference > 0 else "too low"
    return {"type": "observation", "data": _seen(text, float(difference == 0), difference == 0)}


def _seen(text: str, reward: float | None = None, done: bool = False) -> dict[str, Any]:
    return {"observation": {"text": text, "metadata": {}}, "reward": reward, "done": done}


@contextmanager
def running() -> Iterator[str]:
    """The address of a server that runs in a thread."""
    from websockets.sync.server import serve

    def handle(connection: Any) -> None:
        state: dict[str, int] = {}
        for text in connection:
            connection.send(json.dumps(answer(json.loads(text), state)))

    with serve(handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws"
        server.shutdown()
        thread.join(5)

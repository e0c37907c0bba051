"""Agents that bring their env runner down in the middle of a session, so often and no oftener."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from gspo_rllib.agents.agent_session import AgentSession
from tests.agents.harness import Harness, post

KILLS = 20
"""Runners that are killed in all."""
QUESTION = {"role": "user", "content": "What is 1 + 1?"}


def _note(folder: str, name: str, seed: int) -> None:
    with open(Path(folder) / "played", "a") as file:
        file.write(f"{name} {seed}\n")


def played(folder: Path) -> list[tuple[str, int]]:
    """Name and seed of every session that was begun."""
    return [(line.split()[0], int(line.split()[1])) for line in (folder / "played").read_text().splitlines()]


def _kills(folder: str, name: str, runner: int) -> bool:
    """Kills the runner of a third of the trajectories, once for each and each process once, until all kills are done.

    Args:
        folder: Where it is noted.
        name: Of the trajectory.
        runner: Process that plays it.
    """
    if zlib.crc32(name.encode()) % 3 or num_killed(Path(folder)) >= KILLS:
        return False
    for once in (f"brought down by {name.replace('/', '-')}", f"killed {runner}"):
        try:
            (Path(folder) / once).touch(exist_ok=False)
        except FileExistsError:
            return False
    os.kill(runner, signal.SIGKILL)
    return True


def num_killed(folder: Path) -> int:
    """Runners killed so far."""
    return len(list(folder.glob("killed *")))


async def play(task: dict[str, Any], session: AgentSession) -> float:
    """In a thread of the runner, or in a process that it started."""
    _note(task["folder"], session.name, session.seed)
    reply = await session.chat([QUESTION])
    this = psutil.Process()
    (runner,) = (one.pid for one in (this, *this.parents()) if one.name().startswith("ray::"))
    _kills(task["folder"], session.name, runner)
    await session.chat([QUESTION, reply.message, QUESTION])
    return float(session.name.split("/")[-2])


@contextlib.contextmanager
def harness(folder: Path) -> Iterator[list[str]]:
    """Plays outside, four trajectories of each runner at a time; yields what became of sessions of dead runners."""
    fates: list[str] = []
    serving: dict[Path, list[threading.Thread]] = {}
    is_over = threading.Event()

    def serve(file: Path) -> None:
        while file.exists() and not is_over.is_set():
            # OSError: its runner died meanwhile; what was under way is forgotten, and the lobby asked again.
            with contextlib.suppress(OSError, ValueError):
                _play_one(Harness(file), str(folder), fates)
                continue
            time.sleep(0.2)

    def watch() -> None:
        while not is_over.wait(0.2):
            for file in (folder / "agents").glob("*runner-*.json"):
                if file not in serving:
                    serving[file] = [threading.Thread(target=serve, args=(file,), daemon=True) for _ in range(4)]
                    for thread in serving[file]:
                        thread.start()

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    yield fates
    is_over.set()
    watching.join()
    for thread in [thread for threads in serving.values() for thread in threads]:
        thread.join(30)


def _play_one(one: Harness, folder: str, fates: list[str]) -> None:
    status, session = post(f"{one.url}/sessions", one.token, {"wait_s": 1})
    if status != 200:
        return
    _note(folder, session["name"], session["seed"])
    if one.chat(session)[0] != 200:
        return
    runner = _listening_on(one.url)
    if runner is not None and _kills(folder, session["name"], runner):
        fates += [_fate(one.chat, session), _fate(one.settle, session, reward=1.0)]
        return
    if one.chat(session, "again")[0] == 200:
        one.settle(session, reward=float(session["name"].split("/")[-2]))


def _fate(ask: Any, session: dict[str, Any], **body: Any) -> str:
    """What a session's runner says once it is dead."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            answer = ask(session, **body)
        except (OSError, json.JSONDecodeError):
            return "no connection"
        except Exception as error:  # noqa: BLE001, http.client's own, where the answer was cut off
            return "no connection" if type(error).__name__ == "RemoteDisconnected" else repr(error)
        if answer[0] != 200:
            return str(answer[0])
    return "served"


def _listening_on(url: str) -> int | None:
    """The process of a server; None where it is gone."""
    port = urlsplit(url).port
    sockets = psutil.net_connections("tcp")
    return next((one.pid for one in sockets if one.status == "LISTEN" and one.laddr.port == port), None)

"""The processes of actors, looked at from outside: one that was stopped neither answers nor ends.

Ray tells whoever waits for an answer that a process has ended. Of a process that stands still it knows nothing.
"""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import psutil
import ray
from ray._private.state import actors as actor_table
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOOK_S = 1.0
"""Seconds between two looks at the processes of this machine."""

LOOK_ELSEWHERE_S = 5.0
"""Seconds between two looks at the processes of another machine, each of which is a task of Ray."""

_ENGINE = "EngineCor"  # as much of vLLM's process title as Linux keeps; a runner waits for that process for ever


class Standstill:
    """Finds the actors among many whose process has stood still for too long."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._looked: dict[int, float] = {}
        self._told: dict[int, int] = {}

    def find(self, actors: Mapping[int, Any], patience_s: float) -> dict[int, str]:
        """Looks at each of the processes, but not more often than ``LOOK_S``.

        Args:
            actors: Handles by number; a number keeps its meaning from call to call.
            patience_s: How long a process may stand still.

        Returns:
            Those that have stood still for as long, in words, by number; a process is told once, since it may take a
            while to end, and what is ended again then is the one in its place.
        """
        now, found = time.monotonic(), {}
        for number in [number for number in actors if now >= self._looked.get(number, 0.0)]:
            entry = actor_entry(actors[number])
            node, pid = entry.get("Address", {}).get("NodeID"), int(entry.get("Pid") or 0)
            is_here = node == ray.get_runtime_context().get_node_id()
            self._looked[number] = now + (LOOK_S if is_here else LOOK_ELSEWHERE_S)
            if pid == self._told.get(number):
                continue
            if not pid or not (stands_still(pid) if is_here else stands_still_at(node, pid)):
                self._since.pop(number, None)
                continue
            stopped = now - self._since.setdefault(number, now)
            if stopped >= patience_s:
                del self._since[number]
                self._told[number] = pid
                found[number] = f"(process {pid}) stood still for {stopped:.0f} s"
        return found


def actor_entry(actor: Any) -> dict[str, Any]:
    """What Ray's own table says of an actor's process.

    Args:
        actor: The actor's handle.
    """
    entry: dict[str, Any] = actor_table(actor._actor_id.hex()) or {}
    return entry


def is_here(actor: Any) -> bool:
    """Whether an actor's process is on this machine.

    Args:
        actor: The actor's handle.
    """
    return bool(actor_entry(actor).get("Address", {}).get("NodeID") == ray.get_runtime_context().get_node_id())


def stands_still(pid: int) -> bool:
    """Whether a process of this machine, or the vLLM engine it waits for, is stopped, as by SIGSTOP."""
    try:
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            return True
        children = map(psutil.Process, _children(pid))
        return any(_ENGINE in child.name() and child.status() == psutil.STATUS_STOPPED for child in children)
    except psutil.Error:
        return False


_LOOK = ray.remote(num_cpus=0, max_retries=0)(stands_still)  # once: Ray keeps what it is given


def _children(pid: int) -> list[int]:
    """Processes that a process started; psutil would look at every process of the machine for them."""
    found: list[int] = []
    for listed in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += map(int, listed.read_text().split())
    return found


def stands_still_at(node: str | None, pid: int) -> bool:
    """The same of a process of another machine; False where that cannot be reached.

    Args:
        node: Ray's name of the machine; None for none.
        pid: The process.
    """
    if node is None:
        return False
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    look = _LOOK.options(scheduling_strategy=there)
    try:
        return bool(ray.get(look.remote(pid), timeout=LOOK_ELSEWHERE_S))
    except RayError:
        return False  # the machine is gone, which Ray tells whoever waits


def stands_still_anywhere(actor: Any) -> bool:
    """Whether an actor's process, on whatever machine, is stopped.

    Args:
        actor: The actor's handle.
    """
    entry = actor_entry(actor)
    node, pid = entry.get("Address", {}).get("NodeID"), int(entry.get("Pid") or 0)
    if not pid or entry.get("State") != "ALIVE":
        return False
    return stands_still(pid) if node == ray.get_runtime_context().get_node_id() else stands_still_at(node, pid)


def end_process(actor: Any, *, patience_s: float = 30.0) -> None:
    """Ends an actor for good, also one whose process is stopped, and waits until its process is gone.

    Args:
        actor: The actor's handle.
        patience_s: Longest to wait.
    """
    entry = actor_entry(actor)
    node, pid = entry.get("Address", {}).get("NodeID"), int(entry.get("Pid") or 0)
    process = None
    if pid and node == ray.get_runtime_context().get_node_id() and entry.get("State") != "DEAD":
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
    ray.kill(actor, no_restart=True)
    with contextlib.suppress(psutil.Error):
        if process is not None:
            process.kill()
            process.wait(patience_s)
    waited = time.monotonic()
    while actor_entry(actor).get("State") not in (None, "DEAD") and time.monotonic() - waited < patience_s:
        time.sleep(0.05)

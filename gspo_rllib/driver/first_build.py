"""Env runners that are built for the first time: RLlib waits for each of them, whatever becomes of its process.

Ray starts a process again that ended in a runner's constructor, as often as ``max_num_env_runner_restarts`` says, and
who waits for the runner sees none of that; one that stands still is waited for as well. Later, ``fleet`` looks after
them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import ray
from ray._private.state import state
from ray._private.worker import global_worker
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from gspo_rllib.driver.processes import LOOK_S, stands_still
from gspo_rllib.errors import RunnersLostError, own_error
from gspo_rllib.secret_texts import masked

_RLLIB = logging.getLogger("ray.rllib")

MOST_TEXT = 300
"""Characters of what a constructor raised that are told."""

MOST_ENDS = 3
"""Processes of one runner that may end before it is there; more than once may be bad luck."""


def first_build_of(config: AlgorithmConfig) -> AbstractContextManager[None]:
    """``first_build`` of the env runners that an algorithm starts in processes of their own, if there are any.

    Args:
        config: The algorithm's.
    """
    if not (config.num_env_runners or config.evaluation_num_env_runners):
        return contextlib.nullcontext()  # and Ray may not even have been started
    return first_build(config.env_runner_cls.__qualname__, patience_s=config.env_runner_health_probe_timeout_s)


@contextlib.contextmanager
def first_build(class_name: str, *, patience_s: float) -> Iterator[None]:
    """Inside the block, actors of a class are built; one that never is ends the block.

    Args:
        class_name: Qualified name of the actors' class.
        patience_s: Seconds that a process may stand still before another takes its place.

    Raises:
        RunnersLostError: The processes of one of them ended, ``MOST_ENDS`` times, or it raised.
    """
    watch, level = _Watch(class_name, patience_s), _RLLIB.level
    watch.start()
    try:
        yield
    except Exception as error:
        # Without the runner RLlib may stumble over anything.
        watch.look()
        if watch.verdict is None or own_error(error) is not None:
            raise
        raise RunnersLostError(watch.verdict) from error
    finally:
        watch.done.set()
        watch.join()
        _RLLIB.setLevel(level)
    if watch.verdict is not None:
        raise RunnersLostError(watch.verdict)


class _Watch(threading.Thread):
    def __init__(self, class_name: str, patience_s: float) -> None:
        super().__init__(name="gspo-first-build", daemon=True)
        self._class_name = class_name
        self._patience_s = patience_s
        self._since: dict[int, float] = {}
        self._ended: set[int] = set()
        self._earlier: frozenset[str] = frozenset()
        with contextlib.suppress(Exception):  # see ``look``
            self._earlier = frozenset(state.actor_table(None))  # which keeps those that died
        self.done = threading.Event()
        self.verdict: str | None = None

    def run(self) -> None:
        while not self.done.wait(LOOK_S):
            self.look()

    def look(self) -> None:
        # A cluster that does not answer is another's to report.
        with contextlib.suppress(Exception):
            job, node = ray.get_runtime_context().get_job_id(), ray.get_runtime_context().get_node_id()
            for actor, entry in state.actor_table(None).items():
                ours = entry["JobID"] == job and entry["ActorClassName"] == self._class_name
                if ours and actor not in self._earlier:
                    self._look(actor, entry, here=entry["Address"]["NodeID"] == node)

    def _look(self, actor: str, entry: dict[str, Any], *, here: bool) -> None:
        if entry["State"] == "DEAD":
            if raised := entry["DeathCause"].creation_task_failure_context.formatted_exception_string:
                self.verdict = _raised_verdict(raised, entry["Address"]["IPAddress"] or "this machine")
            return
        if entry["State"] not in ("PENDING_CREATION", "RESTARTING"):
            return
        if entry["NumRestarts"] >= MOST_ENDS:
            place = entry["Address"]["IPAddress"] or "this machine"
            self.verdict = (
                f"an env runner was not built: its process ended {MOST_ENDS} times on the way, the last time as "
                f"process {entry['Pid']} of {place}. An environment or a library that ends its process does that, and "
                "so does too little memory (`dmesg` then says so). With env_runners(num_env_runners=0) it happens in "
                "this process, where it is seen."
            )
            _RLLIB.setLevel(logging.CRITICAL)  # it says of every runner what Ray says of it
            self._end(actor, for_good=True)
            return
        pid, now = int(entry["Pid"] or 0), time.monotonic()
        if not (here and pid and stands_still(pid)):
            self._since.pop(pid, None)
        elif now - self._since.setdefault(pid, now) >= self._patience_s and pid not in self._ended:
            # Once: it may take a while to end, and who is ended again then is the one in its place.
            self._ended.add(pid)
            self._end(actor, for_good=False)

    @staticmethod
    def _end(actor: str, *, for_good: bool) -> None:
        # RLlib has the handle, which nobody else gets before it is done.
        global_worker.core_worker.kill_actor(ray.ActorID(bytes.fromhex(actor)), for_good)


def _raised_verdict(traceback: str, place: str) -> str:
    raised = masked(traceback).strip().splitlines()[-1][:MOST_TEXT]
    advice = "With env_runners(num_env_runners=0) it happens in this process, where it is seen."
    if raised.startswith(("ModuleNotFoundError", "ImportError")):
        advice = (
            "What environments and agents are made of must be importable in every process: install it on each node, "
            "put its folder on PYTHONPATH before Ray starts, or pass ray.init(runtime_env={'working_dir': ...})."
        )
    return f"an env runner was not built: its constructor raised, on {place}, {raised.rstrip('.')}. {advice}"

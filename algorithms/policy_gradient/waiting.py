"""Says what is waited for while actors have no room: a busy cluster otherwise looks like a run that hangs."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

import ray
from ray._private.state import state
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from gspo_rllib.algorithms.policy_gradient.resources import described_resources, requests

logger = logging.getLogger("gspo_rllib")

SAY_EVERY_S = 30.0
"""Seconds between two lines, and until the first: starting a process takes a few."""


@contextlib.contextmanager
def waiting_is_said(config: AlgorithmConfig) -> Iterator[None]:
    """Inside the block, a line every ``SAY_EVERY_S`` seconds while actors of this job wait for resources.

    Args:
        config: The algorithm's config, which says what they ask for.
    """
    asked = ", ".join(map(str, requests(config, main_process=False)))
    if not asked:
        yield
        return
    done, started = threading.Event(), time.monotonic()

    def watch() -> None:
        while not done.wait(SAY_EVERY_S):
            try:
                line = waiting_line(asked, seconds=time.monotonic() - started)
            except Exception:  # noqa: BLE001, a cluster that does not answer is another's to report
                continue
            if line is not None and not done.is_set():
                logger.warning(line)

    threading.Thread(target=watch, name="gspo-waiting", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def waiting_line(asked: str, *, seconds: float) -> str | None:
    """What there is to say at the moment; None where no actor of this job waits for room.

    Args:
        asked: What the job asks for, in words.
        seconds: How long it has been waited.
    """
    job = ray.get_runtime_context().get_job_id()
    actors = state.actor_table(None, None, "PENDING_CREATION").values()
    # Ray gives an actor the port of its process once it has room.
    number = sum(actor["JobID"] == job and not actor["Address"]["Port"] for actor in actors)
    if not number:
        return None
    free, total = described_resources(ray.available_resources()), described_resources(ray.cluster_resources())
    return (
        f"Waiting for {seconds:.0f} s: the Ray cluster has no room yet for {number} actor{'s' if number > 1 else ''}. "
        f"Asked for: {asked}. Free now: {free}, of {total}. It starts as soon as others make room; Ctrl-C gives up."
    )

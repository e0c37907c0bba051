"""Whether sampling while learning can win anything on this machine; said once where it cannot."""

from __future__ import annotations

import functools
import logging
import statistics
import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
import torch

logger = logging.getLogger("gspo_rllib")

LEAST_PARALLELISM = 1.2
"""Below it, what two processes gain by running at once is less than what old weights and a busier cache cost."""

_ROUNDS, _ROUND_S, _WIDTH = 3, 0.05, 192


def say_where_it_cannot_win(config: Any) -> None:
    """Warns, once per process, where sampling and learning share one machine's cores and those do little at once.

    Cores that are one core's two threads, or that other programs use, gain next to nothing by a second process, and no
    operating system in a virtual machine says so: it is measured, which takes half a second.

    Args:
        config: The algorithm's config, with ``max_staleness`` above 0.
    """
    if config.num_gpus_per_env_runner or config.num_gpus_per_learner or len(_nodes()) > 1:
        return
    gain = parallelism()
    if gain < LEAST_PARALLELISM and ray.util.log_once("gspo_rllib_overlap_cannot_win"):
        logger.warning(
            "training.max_staleness is %s, but as measured just now two processes at once do only %.2f times the work "
            "of one on this machine: sampling while learning can win no more than that, and trains on older samples "
            "for it. training.max_staleness=0 takes turns.",
            config.max_staleness,
            gain,
        )


@functools.cache
def parallelism() -> float:
    """How much two threads of this process multiply together, in units of what one does alone: 2 on two idle cores."""
    return statistics.median(_rate(2) / _rate(1) for _ in range(_ROUNDS))


def _rate(number: int) -> float:
    """Matrix products per second of so many threads together; each product is one thread's."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    counts = [0] * number
    try:
        threads = [threading.Thread(target=_multiply, args=(counts, index)) for index in range(number)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads_before)


def _multiply(counts: list[int], index: int) -> None:
    torch.set_num_threads(1)  # a new thread begins with the default
    matrix, product = torch.ones(_WIDTH, _WIDTH), torch.empty(_WIDTH, _WIDTH)
    end = time.perf_counter() + _ROUND_S
    with torch.inference_mode():
        while time.perf_counter() < end:
            torch.mm(matrix, matrix, out=product)
            counts[index] += 1


def _nodes() -> Sequence[Any]:
    return [node for node in ray.nodes() if node["Alive"]]

"""Starts the Ray that a command runs on, or connects to the one it is told of."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli.interrupts import handler_kept
from gspo_rllib.leftovers import Watch

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


def required_cpus(config: AlgorithmConfig) -> float:
    """CPUs that one algorithm of this config reserves: driver, env runners, evaluation runners, learners."""
    request = config.algo_class.default_resource_request(config)
    return float(request.required_resources.get("CPU", 1))


@contextlib.contextmanager
def ray_session(num_cpus: float, *, verbose: bool = False) -> Iterator[None]:
    """Ray for the time of a command.

    Args:
        num_cpus: CPUs the command's actors reserve. A Ray started here always offers as many: on a small machine the
            actors then share cores instead of waiting for ever for one that does not exist.
        verbose: Whether the actors' output is shown.
    """
    import ray

    started = not ray.is_initialized()
    options: dict[str, Any] = {"logging_level": logging.WARNING if verbose else logging.ERROR}
    is_ours = started and not os.environ.get("RAY_ADDRESS")
    if is_ours:
        num_cpus = max(os.cpu_count() or 1, int(num_cpus + 0.999))
        options |= {"address": "local", "num_cpus": num_cpus, "include_dashboard": False}
    with Watch() if is_ours else contextlib.nullcontext() as watch:
        try:
            if started:
                with handler_kept():
                    ray.init(log_to_driver=verbose, **options)
            if watch is not None:
                watch.note_folder()
            yield
        finally:
            if started:
                ray.shutdown()

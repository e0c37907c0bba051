"""Starts the Ray that a command runs on, or connects to the one it is told of."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gspo_rllib.cli.interrupts import handler_kept
from gspo_rllib.errors import SettingError
from gspo_rllib.leftovers import Watch

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig


def required_cpus(config: AlgorithmConfig) -> float:
    """CPUs that one algorithm of this config reserves: driver, env runners, evaluation runners, learners."""
    request = config.algo_class.default_resource_request(config)
    return float(request.required_resources.get("CPU", 1))


@contextlib.contextmanager
def ray_session(num_cpus: float, *, address: str | None = None, verbose: bool = False) -> Iterator[None]:
    """Ray for the time of a command.

    Args:
        num_cpus: CPUs the command's actors reserve. A Ray started here always offers as many: on a small machine the
            actors then share cores instead of waiting for ever for one that does not exist.
        address: The cluster to connect to, which answers (``address_of``); None starts a Ray here, unless one runs in
            this process already.
        verbose: Whether the actors' output is shown.

    Raises:
        SettingError: Ray cannot connect to the cluster, or cannot be started.
    """
    import ray

    started = not ray.is_initialized()
    is_ours = started and address is None
    level = logging.WARNING if verbose else logging.ERROR
    with Watch() if is_ours else contextlib.nullcontext() as watch:
        try:
            if started:
                with handler_kept():
                    if address is not None:
                        _connect(address, log_to_driver=verbose, logging_level=level)
                    else:
                        _start(num_cpus, log_to_driver=verbose, logging_level=level)
            if watch is not None:
                watch.note_folder()
            yield
        finally:
            if started:
                ray.shutdown()


def _start(num_cpus: float, *, log_to_driver: bool, logging_level: int) -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, int(num_cpus + 0.999)),
            include_dashboard=False,
            log_to_driver=log_to_driver,
            logging_level=logging_level,
        )
    # Ray raises what its parts raise: OSError, RuntimeError, TimeoutError, and Exception itself.
    except Exception as error:
        first = " ".join(str(error).split())[:400]
        raise SettingError(
            f"Ray cannot be started on this machine: {first.rstrip('.')}. It needs a folder to write into (RAY_TMPDIR, "
            "or /tmp) and some seconds of the processor: make room or try again, or start it yourself with `ray start "
            "--head` and give its address as --address."
        ) from error


def _connect(address: str, *, log_to_driver: bool, logging_level: int) -> None:
    import ray
    from ray.exceptions import RayError

    try:
        ray.init(address=address, log_to_driver=log_to_driver, logging_level=logging_level)
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
        first = " ".join(str(error).split())[:400]
        raise SettingError(
            f"Ray cluster {address!r}: this process cannot join it: {first.rstrip('.')}. Run the command on a node of "
            "that cluster, with the same versions of Python and Ray."
        ) from error

"""Starts the Ray that a command runs on, or connects to the one it is told of."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gspo_rllib.cli.interrupts import handler_kept
from gspo_rllib.errors import SettingError
from gspo_rllib.leftovers import Watch

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

_COUNTS = {"env_runners": "num_env_runners", "evaluation": "evaluation_num_env_runners", "learners": "num_learners"}
"""Section of a config to the setting in it that says how many actors there are, each on one CPU by default."""


def required_cpus(config: AlgorithmConfig) -> float:
    """CPUs that one algorithm of this config reserves: driver, env runners, evaluation runners, learners."""
    request = config.algo_class.default_resource_request(config)
    return float(request.required_resources.get("CPU", 1))


def expected_cpus(sections: Mapping[str, Mapping[str, Any]]) -> float:
    """What ``required_cpus`` will probably be, read off a config's sections before anything is imported.

    Args:
        sections: Section name to settings, unchecked.

    Example:
        >>> expected_cpus({"env_runners": {"num_env_runners": 3}, "learners": {"num_learners": 1}, "training": {}})
        5.0
    """
    counts = [sections.get(section, {}).get(key, 0) for section, key in _COUNTS.items()]
    return 1.0 + sum(count for count in counts if isinstance(count, int) and count > 0)


class RaySession:
    """Ray for the time of a command. One of the command's own starts in a thread, beside what the command imports.

    ``ray_session`` makes and ends it. Nothing may use Ray before ``wait`` has returned.

    Args:
        num_cpus: CPUs that the command's actors will probably reserve.
        address: The cluster to connect to; None for a Ray of its own, or the one that runs in this process already.
        verbose: Whether the actors' output is shown.
    """

    def __init__(self, num_cpus: float, *, address: str | None, verbose: bool) -> None:
        self._num_cpus, self._address, self._verbose = _offered(num_cpus), address, verbose
        self._start: _Start | None = None
        self._watch: Watch | None = None
        self._is_ours = False

    def begin(self) -> None:
        """Starts a Ray of the command's own, without waiting for it; a cluster is connected to later, by ``wait``."""
        import ray

        self._is_ours = not ray.is_initialized()
        if self._is_ours and self._address is None:
            self._watch = Watch()
            self._start = _Start(self._num_cpus, self._verbose)
            self._start.start()

    def wait(self, num_cpus: float) -> None:
        """Returns when Ray is there, with CPUs for everything.

        Args:
            num_cpus: CPUs the command's actors reserve. A Ray of the command's own always offers as many: on a small
                machine the actors then share cores instead of waiting for ever for one that does not exist.

        Raises:
            SettingError: Ray cannot connect to the cluster.
        """
        if self._start is not None:
            self._start.wait()
            if _offered(num_cpus) > self._num_cpus:
                self._start.end()
                self._num_cpus = _offered(num_cpus)
                self._start = _Start(self._num_cpus, self._verbose)
                self._start.start()
                self._start.wait()
        elif self._is_ours and self._address is not None:
            with handler_kept():
                _connect(self._address, log_to_driver=self._verbose, logging_level=_level(self._verbose))
        if self._watch is not None:
            self._watch.note_folder()

    def leave(self) -> None:
        """Has a Ray of the command's own shut down, without waiting for it; nothing may use Ray any more."""
        if self._start is not None:
            self._start.leave()

    def end(self) -> None:
        """Ends what ``begin`` has started, also while it is starting; returns when it has ended."""
        import ray

        try:
            if self._start is not None:
                self._start.end()
            elif self._is_ours:
                ray.shutdown()
        finally:
            if self._watch is not None:
                self._watch.close()


class _Start(threading.Thread):
    """Starts Ray, and lives as long as it: Linux ends Ray's processes with the thread that has started them."""

    def __init__(self, num_cpus: int, verbose: bool) -> None:
        super().__init__(name="ray", daemon=True)
        self._options = {
            "num_cpus": num_cpus,
            "include_dashboard": False,
            "log_to_driver": verbose,
            "logging_level": _level(verbose),
        }
        self._ready, self._over = threading.Event(), threading.Event()
        self._error: BaseException | None = None

    def run(self) -> None:
        """The thread."""
        import ray

        told = logging.getLogger("ray._private.worker")
        told.addFilter(_is_news)
        try:
            ray.init(address="local", **self._options)
        except BaseException as error:  # noqa: BLE001, whatever it is, `wait` raises it
            self._error = error
        finally:
            told.removeFilter(_is_news)
            self._ready.set()
        self._over.wait()
        ray.shutdown()

    def wait(self) -> None:
        """Returns when Ray has started; raises what it failed with."""
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        """Shuts Ray down as soon as it has started, and ends the thread."""
        self._over.set()

    def end(self) -> None:
        """The same; returns when that is done."""
        self.leave()
        self.join()


def _is_news(record: logging.LogRecord) -> bool:
    # It leaves SIGTERM alone in a thread, which is what is wanted: our own handler ends a run in order.
    return "SIGTERM handler is not set" not in record.getMessage()


def _offered(num_cpus: float) -> int:
    return max(os.cpu_count() or 1, int(num_cpus + 0.999))


def _level(verbose: bool) -> int:
    return logging.WARNING if verbose else logging.ERROR


@contextlib.contextmanager
def ray_starting(num_cpus: float, *, address: str | None = None, verbose: bool = False) -> Iterator[RaySession]:
    """A ``RaySession`` that has begun; it is ended with the block."""
    session = RaySession(num_cpus, address=address, verbose=verbose)
    try:
        session.begin()
        yield session
    finally:
        session.end()


@contextlib.contextmanager
def ray_session(num_cpus: float, *, address: str | None = None, verbose: bool = False) -> Iterator[None]:
    """Ray for the time of a command that has imported everything; see ``RaySession``.

    Raises:
        SettingError: Ray cannot connect to the cluster.
    """
    with ray_starting(num_cpus, address=address, verbose=verbose) as session:
        session.wait(num_cpus)
        yield


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

"""An environment in a process of its own: a Ray actor that serves the calls of one slot.

For environments that hold the GIL, keep a processor busy, or rely on state that belongs to a whole process. The actor
asks for no CPU, so it needs no room in any resource bundle; it lives on the node of its env runner and ends with it.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import ray
from ray import cloudpickle
from ray.exceptions import RayError
from ray.util import log_once
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gspo_rllib.env_pool.calls import EnvAnswer, EnvCall
from gspo_rllib.env_pool.session import EnvSession
from gspo_rllib.errors import EnvError, described

logger = logging.getLogger(__name__)

PROCESS_START_S = 60.0
"""Seconds a new process gets on top of the first call's deadline: many of them starting at once on few cores are no
fault of the environment. An idle core starts one in about a second."""

_CLOSE_S = 5.0
_RAY_ERRORS = (RayError, SystemExit)  # a call that waits while Ray shuts down in this process raises SystemExit


class EnvProcessError(Exception):
    """The process of an environment ended, or could not send an answer, while a call was waiting for it."""


def can_start_processes() -> bool:
    """Whether Ray is running in this process; a line of the log says so when it is not."""
    if ray.is_initialized():
        return True
    if log_once("gspo_rllib_process_without_ray"):
        logger.warning(
            "The environment asks for a process of its own (metadata['process']), but Ray is not running: it gets a "
            "thread. Steps that hold the GIL then stop the engine, and all slots share the state of this process."
        )
    return False


def sendable(make: Callable[[], gym.Env]) -> Callable[[], gym.Env]:
    """A function that makes the same environment, and that any process can be sent.

    What goes wrong on arrival, a module that is missing there say, then goes wrong in the call that makes the
    environment, and is reported as its failure.

    Raises:
        EnvError: ``make`` cannot be pickled.

    Example:
        >>> sendable(lambda: "an environment")()
        'an environment'
    """
    try:
        return functools.partial(_make, cloudpickle.dumps(make))
    except KeyboardInterrupt:
        raise
    # Pickling runs foreign code: whatever it raises is reported as one clear error.
    except BaseException as error:
        raise EnvError(
            f"the environment asks for a process of its own (metadata['process']), but what makes it cannot be "
            f"pickled: {described(error)} Keep locks, sockets and open files out of env_config "
            "and of what the environment's class refers to, or remove metadata['process']."
        ) from error


class RemoteSession:
    """Stands in for an ``EnvSession`` whose environment lives elsewhere; the process starts at the first call.

    ``kill`` may be called by any thread, everything else by the slot's thread only.

    Args:
        make_session: Makes the session; called in the actor's process.
    """

    env = None  # the environment is in another process

    def __init__(self, make_session: Callable[[], EnvSession]) -> None:
        self._make_session = make_session
        self._lock = threading.Lock()
        self._actor: Any = None
        self._killed = False

    @property
    def start_s(self) -> float:
        """Seconds to add to the next call's deadline."""
        return 0.0 if self._actor is not None else PROCESS_START_S

    def answer(self, call: EnvCall) -> EnvAnswer:
        """The answer of the environment.

        Raises:
            EnvProcessError: There will be none. The next call starts a fresh process.
        """
        try:
            answer: EnvAnswer = ray.get(self._started().answer.remote(call))
        except _RAY_ERRORS as error:
            self._end()
            # Not the error's message: it names ids of this one process, so equal failures would be counted apart.
            raise EnvProcessError(
                f"the process of the environment ended or could not answer ({type(error).__name__}): it crashed, left "
                "with os._exit, or was killed, for want of memory perhaps. Ray's log of its workers says more."
            ) from error
        return answer

    def close(self) -> None:
        """Closes the environment, unless that takes long, and ends the process."""
        if self._actor is not None:
            with contextlib.suppress(*_RAY_ERRORS):
                ray.get(self._actor.close.remote(), timeout=_CLOSE_S)
        self.kill()

    def kill(self) -> None:
        """Ends the process, whatever it is doing, and for good: no call starts another one."""
        with self._lock:
            self._killed = True
            self._end()

    def _started(self) -> Any:
        with self._lock:
            if self._killed:
                raise EnvProcessError("the process of the environment was ended before the call reached it.")
            if self._actor is None:
                here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
                self._actor = _ACTOR.options(scheduling_strategy=here).remote(self._make_session)
            return self._actor

    def _end(self) -> None:
        actor, self._actor = self._actor, None
        if actor is not None and ray.is_initialized():
            with contextlib.suppress(*_RAY_ERRORS):
                ray.kill(actor)


class _EnvProcess:
    """What the actor runs."""

    def __init__(self, make_session: Callable[[], EnvSession]) -> None:
        self._session = make_session()

    def answer(self, call: EnvCall) -> EnvAnswer:
        return self._session.answer(call)

    def close(self) -> None:
        self._session.close()


_ACTOR: Any = ray.remote(num_cpus=0, max_restarts=0)(_EnvProcess)  # once: Ray keeps every class that it is given


def _make(pickled: bytes) -> gym.Env:
    env: gym.Env = cloudpickle.loads(pickled)()
    return env

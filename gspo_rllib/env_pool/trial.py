"""One environment, made and looked at before a run begins, in a thread that may be given up.

Constructors and ``close`` are foreign code: they may hang, call ``sys.exit`` or raise ``KeyboardInterrupt``. In a
thread of its own none of that is the run's: people interrupt the main thread, and a thread that hangs is left behind.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

import gymnasium as gym

from gspo_rllib.env_pool.calls import EnvCall
from gspo_rllib.env_pool.session import EnvSession
from gspo_rllib.errors import EnvError, described, shown

logger = logging.getLogger(__name__)

MAKE_S = 300.0
"""Longest that making an environment and looking at it may take; some start a virtual machine."""
CLOSE_S = 2.0
"""Longest that closing it may take."""

_UNPACKED = "values to unpack (expected 5"
_REMEDY = (
    "reset must return (observation str, info dict), and step (observation str, reward float, terminated bool, "
    "truncated bool, info dict); `gspo-rllib check-env` checks the whole contract."
)

_Result = TypeVar("_Result")


def in_own_thread(function: Callable[[], _Result], *, name: str, seconds: float) -> _Result:
    """What a function returns or raises, or an error where it does neither in time.

    Args:
        function: Called once; twice where it says that it must run in the main thread.
        name: What messages call the environment.
        seconds: How long it may take.

    Raises:
        EnvError: It did not return.
    """
    answers: queue.SimpleQueue[tuple[_Result | None, BaseException | None]] = queue.SimpleQueue()

    def call() -> None:
        try:
            answers.put((function(), None))
        except BaseException as error:  # noqa: BLE001, raised again where it is waited for
            answers.put((None, error))

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(call,), name="gspo-env-trial", daemon=True).start()
    try:
        result, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise EnvError(
            f"environment {name!r} was not made within {seconds:g} seconds. Find out what its constructor waits for."
        ) from None
    if error is None:
        return result  # type: ignore[return-value]  # what the function returned, of whatever type
    if _wants_main_thread(error):
        return function()
    raise error


def in_main_thread_only(error: BaseException) -> bool:
    """Whether what raised an error here, such as setting a signal's handler, might not in the main thread."""
    return _wants_main_thread(error) and threading.current_thread() is not threading.main_thread()


def _wants_main_thread(error: BaseException) -> bool:
    return isinstance(error, ValueError | RuntimeError) and "main thread" in str(error)


def close_in_time(instance: gym.Env, *, name: str) -> None:
    """Closes an environment that was made to be looked at; what goes wrong is a line of the log.

    Args:
        instance: The environment.
        name: What messages call it.
    """
    done = threading.Event()

    def close() -> None:
        try:
            instance.close()
        except BaseException as error:  # noqa: BLE001, it was made to be looked at, and that is done
            logger.warning(
                "environment %r: close() raises %s. Environments that were played are left unclosed.",
                name,
                described(error),
            )
        done.set()

    threading.Thread(target=close, name="gspo-env-close", daemon=True).start()
    if not done.wait(CLOSE_S):
        logger.warning(
            "environment %r: close() has not returned within %g seconds; environments that were played are left "
            "behind in their threads.",
            name,
            CLOSE_S,
        )


class _Kept(EnvSession):
    """A session that leaves closing its environment to others, whatever the environment does."""

    def close(self) -> None:
        """Does nothing."""


def check_reset(name: str, instance: gym.Env) -> None:
    """Refuses an environment whose ``reset`` takes no seed: the trajectories of a group must meet one task.

    Args:
        name: What messages call it.
        instance: The environment.

    Raises:
        EnvError: It takes none.
    """
    try:
        parameters = inspect.signature(instance.unwrapped.reset).parameters
    except (TypeError, ValueError):  # not written in Python
        return
    if "seed" not in parameters and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        raise EnvError(
            f"environment {name!r}: its reset takes no seed, so the trajectories of a group could not meet the same "
            "task. Write reset(self, *, seed=None, options=None), and draw the task from self.np_random after "
            "super().reset(seed=seed)."
        )


def first_observations(name: str, instance: gym.Env, *, seeds: int = 3, counts: bool = False) -> list[str]:
    """What an environment says first, after a turn was tried that nobody expects.

    What it raises is left to the run, which tries again: it may be a matter of luck. What it returns is not.

    Args:
        name: What messages call it.
        instance: The environment, which is in use afterwards.
        seeds: How many tasks are begun.
        counts: Whether it counts its tasks, so that the first is begun with two seeds.

    Raises:
        EnvError: ``reset`` or ``step`` returns what no environment may return, or a task is not fixed by its number.
    """
    session, said = _Kept(0, lambda: instance), []
    session.env = instance
    for seed in range(seeds):
        answer = session.answer(EnvCall(ticket=1, seed=seed))
        if answer.failure is None:
            said.append(answer.observation)
            answer = session.answer(EnvCall(ticket=2, action="")) if seed == 0 else answer
        # A wrapper of Gymnasium's raises where it takes apart a step of four.
        if (failure := answer.failure) is not None and (failure.kind == "invalid" or _UNPACKED in failure.message):
            raise EnvError(f"environment {name!r}: {failure.message} {_REMEDY}")
    if counts:
        one, other = (session.answer(EnvCall(ticket=1, seed=seed, task_id="0")) for seed in (0, 1))
        if one.failure is None and other.failure is None and one.observation != other.observation:
            raise EnvError(
                f"environment {name!r} has num_tasks(), but reset(options={{'task_id': '0'}}) says "
                f"{shown(one.observation)} with one seed and {shown(other.observation)} with another. Let "
                "options['task_id'] decide the task, whatever the seed; or leave num_tasks out."
            )
    return said

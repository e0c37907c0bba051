"""Environments that advance at their own pace, and cannot take the rollout down with them.

Each slot holds one environment. Unless its ``metadata["blocking"]`` is False, it lives in a daemon thread of its own:
it is made, reset, stepped and closed there, so one slow answer delays nobody. A call that misses its deadline is
abandoned: the thread is never joined, the slot gets a fresh environment, and what the old one answers later is
ignored. Whatever goes wrong becomes data (an ``EnvFailure``); nothing an environment does raises here.

With ``metadata["process"]`` the thread only waits, and the environment lives in a process of its own, a Ray actor. What
is abandoned there is killed, so a hung call ends for good, and a crash is one more ``EnvFailure``.
"""

from __future__ import annotations

import contextlib
import functools
import math
import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from gspo_rllib.env_runners.remote_env import EnvProcessError, RemoteSession, can_start_processes, sendable
from gspo_rllib.types import ChatSpec

FailureKind = Literal["raised", "timeout", "invalid", "context", "engine"]
"""Why a trajectory failed. The environment ``raised``, missed its deadline (``timeout``) or broke the contract
(``invalid``); the first prompt fills the whole ``context``; the ``engine`` refused or returned no usable sample."""

OBSERVATION_ROLES = ("user", "tool")

_MAX_MESSAGE = 500
_WAKE = 0  # the ticket of no call: they are numbered from 1


@dataclass(frozen=True, slots=True)
class EnvFailure:
    """What went wrong, for counting and for people."""

    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class EnvAnswer:
    """What one call of ``reset`` or ``step`` came to.

    Attributes:
        ticket: The call it answers.
        slot: Where the environment lives.
        is_reset: Whether it answers a ``reset``.
        observation: What is new since the last action.
        reward: Of this step, finite; 0 after a reset.
        terminated: As the environment said.
        truncated: As the environment said.
        info: The part of it that is plain data, so that it survives pickling.
        chat: The environment's framing, read at each reset; None when it has none.
        seconds: How long the call took.
        failure: Set when the call failed; nothing else but ``ticket``, ``slot`` and ``seconds`` counts then.
    """

    ticket: int
    slot: int
    is_reset: bool = False
    observation: str = ""
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: dict[str, Any] = field(default_factory=dict)
    chat: ChatSpec | None = None
    seconds: float = 0.0
    failure: EnvFailure | None = None


@dataclass(frozen=True, slots=True)
class EnvCall:
    """A ``reset`` when it has no action, else a ``step``."""

    ticket: int
    seed: int | None = None
    action: str | None = None


class _ContractError(Exception):
    """An environment returned something the language-env contract does not allow."""


class EnvSession:
    """One environment and the calls on it; touched by one thread only.

    Args:
        slot: Named in every answer.
        make: Makes the environment at the first ``reset``, and again after a failure.

    Attributes:
        env: The environment; None before it is made and after a failure.
    """

    start_s = 0.0

    def __init__(self, slot: int, make: Callable[[], gym.Env]) -> None:
        self._slot = slot
        self._make = make
        self.env: gym.Env | None = None

    def answer(self, call: EnvCall) -> EnvAnswer:
        """Makes the call; whatever goes wrong is in the answer."""
        started = time.perf_counter()
        try:
            fields = self._reset(call.seed) if call.action is None else self._step(call.action)
        except _ContractError as error:
            fields = {"failure": EnvFailure("invalid", str(error))}
        # The one wide except: whatever an environment raises is the status of this trajectory, never a crash.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            fields = {"failure": EnvFailure("raised", _describe(error))}
        if "failure" in fields:
            self.close()
        return EnvAnswer(call.ticket, self._slot, seconds=time.perf_counter() - started, **fields)

    def close(self) -> None:
        """Closes the environment, if there is one."""
        env, self.env = self.env, None
        if env is not None:
            # A broken environment may well fail to close; it is out of use either way.
            with contextlib.suppress(Exception, SystemExit):
                env.close()

    def _reset(self, seed: int | None) -> dict[str, Any]:
        if self.env is None:
            self.env = self._make()
        returned = self.env.reset(seed=seed)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise _ContractError(f"reset() returned {_short(returned)}; it must return (observation str, info dict).")
        observation, info = returned
        chat = self.env.get_wrapper_attr("chat") if self.env.has_wrapper_attr("chat") else None
        if not isinstance(chat, ChatSpec | None):
            raise _ContractError(f"the attribute `chat` is {_short(chat)}; it must be a ChatSpec or None.")
        return {
            "is_reset": True,
            "observation": _text(observation, "reset"),
            "info": _checked_info(info, "reset"),
            "chat": chat,
        }

    def _step(self, action: str) -> dict[str, Any]:
        assert self.env is not None, "step before reset"
        returned = self.env.step(action)
        if not (isinstance(returned, tuple) and len(returned) == 5):
            raise _ContractError(
                f"step() returned {_short(returned)}; it must return (observation str, reward float, terminated bool, "
                "truncated bool, info dict)."
            )
        observation, reward, terminated, truncated, info = returned
        return {
            "observation": _text(observation, "step"),
            "reward": _finite(reward),
            "terminated": _flag(terminated, "terminated"),
            "truncated": _flag(truncated, "truncated"),
            "info": _checked_info(info, "step"),
        }


class _Slot:
    """Runs a session's calls: at once, or in a daemon thread that may be abandoned at any time."""

    def __init__(
        self, slot: int, session: EnvSession | RemoteSession, answers: queue.SimpleQueue, *, blocking: bool
    ) -> None:
        self.session = session
        self._slot = slot
        self._answers = answers
        self._calls: queue.SimpleQueue[EnvCall | None] | None = None
        if blocking:
            self._calls = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(self._calls,), name=f"gspo-env-{slot}", daemon=True).start()

    def ask(self, call: EnvCall) -> None:
        if self._calls is None:
            self._answers.put(self.session.answer(call))
        else:
            self._calls.put(call)

    def abandon(self, *, owes_answer: bool) -> None:
        """Closes the environment once its current call returns, if it ever does; returns at once."""
        if isinstance(self.session, RemoteSession) and owes_answer:
            self.session.kill()
        if self._calls is None:
            self.session.close()
        else:
            self._calls.put(None)

    def _serve(self, calls: queue.SimpleQueue[EnvCall | None]) -> None:
        while (call := calls.get()) is not None:
            try:
                answer = self.session.answer(call)
            except EnvProcessError as error:
                answer = EnvAnswer(call.ticket, self._slot, failure=EnvFailure("raised", str(error)))
            self._answers.put(answer)
        self.session.close()


class EnvPool:
    """A fixed number of environment slots, each answering one call at a time.

    Args:
        make: Makes one environment; called in the slot's own thread or process.
        size: Number of slots.
        blocking: Whether calls may take long, and so get a thread per slot; otherwise they run inside ``reset`` and
            ``step`` below, and no deadline can be kept.
        process: Whether every environment gets a process of its own, blocking or not. Without a running Ray it gets
            a thread instead, and a line of the log says so.
        step_timeout_s: Seconds of wall time a call may take, the making of the environment included, the start of its
            process not.

    Raises:
        EnvError: ``make`` cannot be sent to another process.
    """

    def __init__(
        self,
        make: Callable[[], gym.Env],
        size: int,
        *,
        blocking: bool,
        process: bool = False,
        step_timeout_s: float,
    ) -> None:
        self._process = process and can_start_processes()
        self._make = sendable(make) if self._process else make
        self._blocking = blocking or process
        self._timeout = step_timeout_s
        self._answers: queue.SimpleQueue[EnvAnswer] = queue.SimpleQueue()
        self._free = list(range(size - 1, -1, -1))
        self._slots: dict[int, _Slot] = {}
        self._outstanding: dict[int, tuple[int, float]] = {}
        self._tickets = 0

    @property
    def is_waiting(self) -> bool:
        """Whether any call is unanswered."""
        return bool(self._outstanding)

    def acquire(self) -> int | None:
        """Takes a free slot; None when all are in use."""
        return self._free.pop() if self._free else None

    def release(self, slot: int) -> None:
        """Gives a slot back. Its environment is kept for the next trajectory, unless it still owes an answer."""
        owed = [ticket for ticket, (owner, _) in self._outstanding.items() if owner == slot]
        if owed:
            self._abandon(slot)
            del self._outstanding[owed[0]]
        self._free.append(slot)

    def reset(self, slot: int, seed: int) -> int:
        """Asks a slot for a new episode of the task ``seed``; returns the ticket of the answer."""
        return self._ask(slot, seed=seed)

    def step(self, slot: int, action: str) -> int:
        """Sends an action to a slot; returns the ticket of the answer."""
        return self._ask(slot, action=action)

    def poll(self, *, wait: bool) -> list[EnvAnswer]:
        """The answers that have come in, and a failure for every call that missed its deadline.

        Args:
            wait: Sleep until there is an answer or a deadline passes, if any call is outstanding.
        """
        answers: list[EnvAnswer] = []
        woken = self._drain(answers)
        if wait and not (answers or woken) and self._outstanding:
            _, deadline = self._outstanding[self._next_to_expire()]
            try:
                self._accept(self._answers.get(timeout=max(0.0, deadline - time.monotonic())), answers)
                self._drain(answers)
            except queue.Empty:
                pass
        self._expire(answers)
        return answers

    def wake(self) -> None:
        """Ends a ``poll`` that waits, or the next one; may be called from any thread."""
        self._answers.put(EnvAnswer(_WAKE, slot=-1))

    def env(self, slot: int) -> gym.Env | None:
        """The environment of a slot, for callbacks; None before it was made, and when it is in another process."""
        owner = self._slots.get(slot)
        return owner.session.env if owner is not None else None

    def close(self) -> None:
        """Abandons every slot; returns at once."""
        for slot in list(self._slots):
            self._abandon(slot)
        self._outstanding.clear()

    def _ask(self, slot: int, *, seed: int | None = None, action: str | None = None) -> int:
        if slot not in self._slots:
            make_session = functools.partial(EnvSession, slot, self._make)
            session: EnvSession | RemoteSession = RemoteSession(make_session) if self._process else make_session()
            self._slots[slot] = _Slot(slot, session, self._answers, blocking=self._blocking)
        self._tickets += 1
        allowed = self._timeout + self._slots[slot].session.start_s
        self._outstanding[self._tickets] = (slot, time.monotonic() + allowed)
        self._slots[slot].ask(EnvCall(self._tickets, seed=seed, action=action))
        return self._tickets

    def _abandon(self, slot: int) -> None:
        owner = self._slots.pop(slot, None)
        if owner is not None:
            owner.abandon(owes_answer=any(slot == asked for asked, _ in self._outstanding.values()))

    def _next_to_expire(self) -> int:
        if self._process:
            return min(self._outstanding, key=lambda ticket: self._outstanding[ticket][1])
        return next(iter(self._outstanding))  # equal time-outs make insertion order the order of deadlines

    def _accept(self, answer: EnvAnswer, answers: list[EnvAnswer]) -> None:
        if self._outstanding.pop(answer.ticket, None) is not None:
            answers.append(answer)

    def _drain(self, answers: list[EnvAnswer]) -> bool:
        """Takes what has come in; returns whether a ``wake`` was among it."""
        woken = False
        while True:
            try:
                answer = self._answers.get_nowait()
            except queue.Empty:
                return woken
            woken |= answer.ticket == _WAKE
            self._accept(answer, answers)

    def _expire(self, answers: list[EnvAnswer]) -> None:
        if not self._blocking:
            return
        now = time.monotonic()
        while self._outstanding:
            ticket = self._next_to_expire()
            slot, deadline = self._outstanding[ticket]
            if deadline > now:
                return
            self._abandon(slot)
            del self._outstanding[ticket]
            message = f"no answer within step_timeout_s={self._timeout:g} seconds."
            answers.append(EnvAnswer(ticket, slot, seconds=self._timeout, failure=EnvFailure("timeout", message)))


def _text(value: object, call: str) -> str:
    if not isinstance(value, str):
        raise _ContractError(f"{call}() returned the observation {_short(value)}; it must be a str.")
    return value


def _finite(value: Any) -> float:
    # Asking the abstract Real takes longer than all other checks together, so the usual types come first.
    if isinstance(value, (float, int, np.bool_, Real)) and math.isfinite(value):
        return float(value)
    raise _ContractError(f"step() returned the reward {_short(value)}; it must be a finite number.")


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise _ContractError(f"step() returned {name}={_short(value)}; it must be True or False.")
    return bool(value)


def _checked_info(info: object, call: str) -> dict[str, Any]:
    if not isinstance(info, dict):
        raise _ContractError(f"{call}() returned the info {_short(info)}; it must be a dict.")
    if (role := info.get("obs_role", "user")) not in OBSERVATION_ROLES:
        raise _ContractError(f"info['obs_role'] is {_short(role)}; allowed: {', '.join(OBSERVATION_ROLES)}.")
    return {key: value for key, value in info.items() if isinstance(key, str) and _is_plain(value)}


def _is_plain(value: object) -> bool:
    if value is None or isinstance(value, (str, int, float, np.generic)):
        return True
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return isinstance(value, (list, tuple)) and all(map(_is_plain, value))


def _short(value: object) -> str:
    text = repr(value)
    return f"{text[:100]}… ({type(value).__name__})" if len(text) > 100 else f"{text} ({type(value).__name__})"


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" [{frames[-1].name}, {frames[-1].filename}:{frames[-1].lineno}]" if frames else ""
    # Not str(error): an exception's own __str__ may raise.
    return "".join(traceback.format_exception_only(error)).strip()[:_MAX_MESSAGE] + where

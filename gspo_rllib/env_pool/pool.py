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
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym

from gspo_rllib.env_pool.calls import EnvAnswer, EnvCall, EnvFailure
from gspo_rllib.env_pool.process import EnvProcessError, RemoteSession, can_start_processes, sendable
from gspo_rllib.env_pool.session import EnvSession, describe_raised

_WAKE = 0  # the ticket of no call: they are numbered from 1


class _Slot:
    """Runs a session's calls: at once, or in a daemon thread that may be abandoned at any time."""

    def __init__(
        self, slot: int, session: EnvSession | RemoteSession, answers: queue.SimpleQueue[EnvAnswer], *, blocking: bool
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
                answer = EnvAnswer(call.ticket, self._slot, failure=EnvFailure("raised", str(error), True))
            # In a thread of its own even a KeyboardInterrupt is the environment's: people interrupt the main thread.
            except BaseException as error:  # noqa: BLE001, a thread that dies would owe its answer until the deadline
                answer = EnvAnswer(call.ticket, self._slot, failure=EnvFailure("raised", describe_raised(error)))
            self._answers.put(answer)
        with contextlib.suppress(KeyboardInterrupt):  # likewise
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
        step_timeout_s: Seconds of wall time a call may take; the making of the environment is included, the start of
            its process is not.
        stages: Make what is played instead where ``reset`` names a stage: one for each.

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
        stages: Sequence[Callable[[], gym.Env]] = (),
    ) -> None:
        self._process = process and can_start_processes()
        self._makes = [sendable(each) if self._process else each for each in (make, *stages)]
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
        """Gives a slot back. Its environment is kept for the next trajectory, unless a call of it is unanswered."""
        owed = [ticket for ticket, (owner, _) in self._outstanding.items() if owner == slot]
        if owed:
            self._abandon(slot)
            del self._outstanding[owed[0]]
        self._free.append(slot)

    def reset(self, slot: int, seed: int, task_id: str | None = None, stage: int | None = None) -> int:
        """Asks a slot for a new episode; returns the ticket of the answer.

        Args:
            slot: The environment's slot.
            seed: Fixes the task, and what is random in it.
            task_id: Fixes the task whatever the seed; None where the environment does not count its tasks.
            stage: Which of ``stages`` is played; None for none.
        """
        return self._ask(slot, seed=seed, task_id=task_id, stage=stage)

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

    def _ask(self, slot: int, **what: Any) -> int:
        if slot not in self._slots:
            make_session = functools.partial(EnvSession, slot, self._makes[0], self._makes[1:])
            session: EnvSession | RemoteSession = RemoteSession(make_session) if self._process else make_session()
            self._slots[slot] = _Slot(slot, session, self._answers, blocking=self._blocking)
        self._tickets += 1
        allowed = self._timeout + self._slots[slot].session.start_s
        self._outstanding[self._tickets] = (slot, time.monotonic() + allowed)
        self._slots[slot].ask(EnvCall(self._tickets, **what))
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

"""Where trajectories wait for a harness outside, which takes them one by one and says how they ended.

The thread that drives the engine brings them and calls them back; the server's threads hand them out and settle them.
Whatever happens to a trajectory happens under one lock, so it is taken once, and settled once or called back.
"""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

from gspo_rllib.agents.agent_thread import Outcome
from gspo_rllib.agents.messages import RequestRefused, SessionEnded
from gspo_rllib.agents.result import AgentResult, checked_fields
from gspo_rllib.agents.workers import Job
from gspo_rllib.env_pool.calls import EnvFailure
from gspo_rllib.errors import EnvError

MOST_REMEMBERED = 100_000
"""Trajectories that are over, and told from those that never were."""


class Ticket:
    """A trajectory in the lobby.

    Args:
        job: What is to be played.
        lobby: Where it waits.

    Attributes:
        id: Names it in the paths of the server; new for every attempt.
        job: What is to be played.
    """

    def __init__(self, job: Job, lobby: Lobby) -> None:
        self.id = secrets.token_hex(8)
        self.job = job
        self._lobby = lobby

    def cancel(self) -> bool:
        """Calls it back; False where it was settled before."""
        return self._lobby.call_back(self)


class Lobby:
    """Trajectories of one env runner for whoever comes; see ``workers.Workers``.

    Args:
        patience_s: Longest that nobody may come while one waits.
    """

    def __init__(self, patience_s: float) -> None:
        self.patience_s = patience_s
        self.impatience = f"nobody took the session within trajectory_timeout_s={patience_s:g} seconds."
        self._lock = threading.Lock()
        self._waiting: deque[Ticket] = deque()
        self._askers: deque[Future[Ticket]] = deque()
        self._taken: dict[str, Ticket] = {}
        self._is_shut = False
        self._over: OrderedDict[str, Literal["settled", "called back"]] = OrderedDict()

    def start(self, job: Job) -> Ticket:
        """Lets a trajectory wait, or gives it to who has waited for one the longest."""
        ticket = Ticket(job, self)
        with self._lock:
            self._give(ticket, first=False)
        return ticket

    def ask(self) -> Future[Ticket]:
        """The next trajectory for somebody who can play it, at once or later; cancel the future to go away.

        A future that is cancelled here says that none will come.
        """
        asker: Future[Ticket] = Future()
        with self._lock:
            if self._is_shut:
                asker.cancel()
                return asker
            self._askers = deque(one for one in self._askers if not one.cancelled())
            self._askers.append(asker)
            if self._waiting:
                self._give(self._waiting.popleft(), first=True)
        return asker

    def take(self, ticket: Ticket) -> None:
        """Notes that who asked for it has it; its clock starts.

        Raises:
            SessionEnded: It was called back meanwhile.
        """
        with self._lock:
            if ticket.id in self._over:
                raise SessionEnded
            self._taken[ticket.id] = ticket
        ticket.job.on_begin()

    def put_back(self, ticket: Ticket) -> None:
        """Lets one that was asked for wait again, before all others: who asked is gone."""
        with self._lock:
            if ticket.id not in self._over:
                self._give(ticket, first=True)

    def finish(self, ticket_id: str, result: AgentResult) -> None:
        """Settles a trajectory.

        Args:
            ticket_id: Name of the trajectory in the paths of the server.
            result: What it was worth, its fields untrusted.

        Raises:
            SessionEnded: It is over.
            RequestRefused: There is no such trajectory, it has no reply, or the result is not what it must be; it can
                still be settled then.
        """
        with self._lock:
            job = self._find(ticket_id).job
            num_calls = len(job.session.trained_calls())
            if num_calls == 0:
                raise RequestRefused("this session has not received a single reply of the policy: nothing to train on.")
            try:
                result = checked_fields(result, num_calls=num_calls, owner="")
            except EnvError as error:
                raise RequestRefused(str(error), param=str(error).split(" ", 1)[0]) from error
            job.session.seal()
            self._close(ticket_id, "settled")
        job.on_end(Outcome(result))

    def fail(self, ticket_id: str, reason: str) -> None:
        """Settles a trajectory that could not be played; the task is played again.

        Raises:
            SessionEnded: It is over.
            RequestRefused: There is no such trajectory.
        """
        with self._lock:
            job = self._find(ticket_id).job
            job.session.seal()
            self._close(ticket_id, "settled")
        job.on_end(Outcome(failure=EnvFailure("raised", f"the harness gave up: {reason}")))

    def call_back(self, ticket: Ticket) -> bool:
        """Ends a trajectory, whoever has it; False where it was settled before."""
        with self._lock:
            if self._over.get(ticket.id) == "settled":
                return False
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._close(ticket.id, "called back")
            return True

    def close(self) -> None:
        """Nothing to end: trajectories are called back one by one, and others may still come."""

    def shut(self) -> None:
        """Sends away whoever waits for a trajectory, and whoever comes."""
        with self._lock:
            self._is_shut = True
            for asker in self._askers:
                asker.cancel()

    def _give(self, ticket: Ticket, *, first: bool) -> None:
        while self._askers:
            asker = self._askers.popleft()
            if asker.set_running_or_notify_cancel():
                asker.set_result(ticket)
                return
        self._waiting.appendleft(ticket) if first else self._waiting.append(ticket)

    def _find(self, ticket_id: str) -> Ticket:
        if ticket_id in self._taken:
            return self._taken[ticket_id]
        if self._over.get(ticket_id) == "settled":
            raise SessionEnded(
                "this session was settled before; nothing was changed.", code="session_settled", status=409
            )
        if ticket_id in self._over:
            raise SessionEnded
        raise RequestRefused("there is no session of this id.", code="unknown_session", status=404)

    def _close(self, ticket_id: str, how: Literal["settled", "called back"]) -> None:
        self._taken.pop(ticket_id, None)
        self._over[ticket_id] = how
        while len(self._over) > MOST_REMEMBERED:
            self._over.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Outside:
    """What a server offers to a harness outside.

    Attributes:
        lobby: The trajectories that wait to be taken.
        token: Opens the lobby; no key of a session does, since what an agent runs must not reward itself.
        trajectory_timeout_s: Longest a trajectory may take.
        idle_timeout_s: Longest between two calls.
    """

    lobby: Lobby
    token: str = field(repr=False)
    trajectory_timeout_s: float
    idle_timeout_s: float

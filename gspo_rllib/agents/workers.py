"""Who plays an agent's trajectories: a thread each, a process each, or somebody outside who comes and takes them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from gspo_rllib.agents.agent_session import AgentSession
from gspo_rllib.agents.agent_thread import AgentThread, Outcome
from gspo_rllib.agents.function import Play
from gspo_rllib.agents.session import Session


@dataclass(frozen=True, eq=False, slots=True)
class Job:
    """One trajectory to play.

    Attributes:
        slot: Number of its place; one trajectory at a time has it.
        attempt: 0 for the first try, 1 for the first retry, …
        task: What is to be done; plain data.
        agent: What the agent is given to talk to the policy.
        session: What the policy has said so far.
        on_begin: To be called, from any thread, when the agent begins: its clock starts then.
        on_end: To be called once, from any thread, with what became of it.
    """

    slot: int
    attempt: int
    task: dict[str, Any]
    agent: AgentSession
    session: Session
    on_begin: Callable[[], object]
    on_end: Callable[[Outcome], object]


class Running(Protocol):
    """A trajectory that is waiting to be played, or being played."""

    def cancel(self) -> bool:
        """Has it stop; returns at once. False where it had ended before, and ``on_end`` was called."""


class Workers(Protocol):
    """Those who play.

    Attributes:
        patience_s: Longest that a trajectory waits to be begun, counted from when one was last begun, seconds.
        impatience: What is said then.
    """

    patience_s: float
    impatience: str

    def start(self, job: Job) -> Running:
        """Has a trajectory played; returns at once."""

    def close(self) -> None:
        """Ends whatever is still running; returns at once."""


class ThreadWorkers:
    """The user's function in a thread of this process for each trajectory; see ``Workers``.

    Args:
        play: The function.
    """

    patience_s = math.inf
    impatience = ""

    def __init__(self, play: Play) -> None:
        self._play = play

    def start(self, job: Job) -> AgentThread:
        """Starts a thread."""
        job.on_begin()
        play = functools.partial(self._play, job.task, job.agent)
        return AgentThread(play, job.on_end, name=f"gspo-agent-{job.slot}")

    def close(self) -> None:
        """Nothing to end: threads are abandoned one by one."""

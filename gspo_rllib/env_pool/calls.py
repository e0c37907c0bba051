"""What is asked of an environment in its slot, and what it answers: plain data that any process can be sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from gspo_rllib.types import ChatSpec

FailureKind = Literal["raised", "timeout", "invalid", "context", "engine"]
"""Why a trajectory failed. The environment ``raised``, missed its deadline (``timeout``) or broke the contract
(``invalid``); the first prompt fills the whole ``context``; the ``engine`` refused or returned no usable sample."""


@dataclass(frozen=True, slots=True)
class EnvFailure:
    """What went wrong, for counting and for people.

    Attributes:
        kind: What it counts as.
        message: For people.
        lost_process: Whether the environment's process ended, which need not be the environment's doing: machines run
            out of memory, and people kill processes.
    """

    kind: FailureKind
    message: str
    lost_process: bool = False


@dataclass(frozen=True, slots=True)
class EnvAnswer:
    """The result of one call of ``reset`` or ``step``.

    Attributes:
        ticket: Number of the call that is answered.
        slot: The environment's slot.
        is_reset: Whether the call was a ``reset``.
        observation: The text that is new since the last action.
        reward: Reward of this step, finite; 0 after a reset.
        terminated: Whether the environment said that the task has ended.
        truncated: Whether the environment said that it cut the episode short.
        info: The part of the environment's ``info`` that is plain data, so that it survives pickling.
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

    @property
    def role(self) -> str:
        """The role the observation is shown in."""
        role: str = self.info.get("obs_role", "user")
        return role


@dataclass(frozen=True, slots=True)
class EnvCall:
    """A ``reset`` when it has no action, else a ``step``."""

    ticket: int
    seed: int | None = None
    task_id: str | None = None
    stage: int | None = None
    action: str | None = None

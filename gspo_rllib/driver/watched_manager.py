"""RLlib's view of remote learners: all of its own calls go through whoever watches them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ray.rllib.utils.actor_manager import FaultTolerantActorManager, RemoteCallResults


class Watcher(Protocol):
    """Calls learners, and answers for those that are lost: a ``LearnerTeam``."""

    def ask(
        self, function: Any, kwargs: Mapping[str, Any] | list[dict[str, Any]] | None, numbers: list[int]
    ) -> RemoteCallResults:
        """The answers of these learners."""


class WatchedManager(FaultTolerantActorManager):
    """RLlib's view of the learners; all of its own code asks through here.

    Args:
        team: Whose learners they are.
    """

    def __init__(self, team: Watcher) -> None:
        super().__init__()
        self._team = team

    def adopt(self, actors: list[Any]) -> None:
        """Manages these learners, numbered from 0, in place of those before."""
        super().__init__(actors)

    def foreach_actor(
        self,
        func: Any,
        *,
        kwargs: Any = None,
        healthy_only: bool = True,
        remote_actor_ids: list[int] | None = None,
        timeout_seconds: float | None = None,
        return_obj_refs: bool = False,
        mark_healthy: bool = False,
    ) -> RemoteCallResults:
        """RLlib's; see ``LearnerTeam.ask``."""
        if timeout_seconds is not None or return_obj_refs or isinstance(func, list):
            return super().foreach_actor(
                func,
                kwargs=kwargs,
                healthy_only=healthy_only,
                remote_actor_ids=remote_actor_ids,
                timeout_seconds=timeout_seconds,
                return_obj_refs=return_obj_refs,
                mark_healthy=mark_healthy,
            )
        return self._team.ask(func, kwargs, remote_actor_ids or self.actor_ids())

"""Which tasks there are, as far as that can be told: so that a run which is continued notices that they are others.

A file of questions may be corrected or grow between a run and its continuation. Where a group's task is found by its
number, another count means other tasks, other epochs and another order, and nothing else would say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

from gspo_rllib.env_maker import env_maker
from gspo_rllib.env_pool.factory import counted_tasks
from gspo_rllib.env_pool.trial import MAKE_S, close_in_time, in_own_thread
from gspo_rllib.errors import EnvError, described, shown


@dataclass(frozen=True, slots=True)
class TaskSet:
    """The tasks of a run.

    Attributes:
        count: How many there are.
        digest: Changes where a task does; None where nobody says.
        what: What they are called.
    """

    count: int
    digest: str | None = None
    what: str = "tasks"

    def change(self, before: TaskSet) -> str | None:
        """What differs from what there was, in words; None where nothing is known to.

        Args:
            before: The tasks there were.

        Example:
            >>> TaskSet(8, "a").change(TaskSet(6, "b")), TaskSet(8, "a").change(TaskSet(8, "b"))
            ('6 tasks then, 8 now', '8 tasks then and now, but not the same ones')
        """
        if self.count != before.count:
            return f"{before.count} {self.what} then, {self.count} now"
        if self.digest is None or before.digest is None or self.digest == before.digest:
            return None
        return f"{self.count} {self.what} then and now, but not the same ones"


def task_set(env: str | type | None, env_config: Mapping[str, Any] | None) -> TaskSet | None:
    """The tasks of an environment; None where it does not count them.

    Args:
        env: As for ``env_maker``.
        env_config: As for ``env_maker``.

    Raises:
        EnvError: The environment cannot be used, or its ``tasks_digest()`` returns no text.
    """
    name = str(env)

    def look() -> TaskSet | None:
        instance = env_maker(env, env_config)()
        try:
            count = counted_tasks(name, instance)
            return None if count is None else TaskSet(count, _digest(name, instance))
        finally:
            close_in_time(instance, name=name)

    return in_own_thread(look, name=name, seconds=MAKE_S)


def _digest(name: str, instance: gym.Env[Any, Any]) -> str | None:
    if not instance.has_wrapper_attr("tasks_digest"):
        return None
    try:
        digest = instance.get_wrapper_attr("tasks_digest")()
    except Exception as error:  # of the user's own code, anything
        raise EnvError(f"environment {name!r}: its tasks_digest() raised {described(error)}.") from error
    if not isinstance(digest, str):
        raise EnvError(
            f"environment {name!r}: tasks_digest() returned {shown(digest)}; it must return a str that changes where "
            "the tasks do. Leave it out where there is none."
        )
    return digest

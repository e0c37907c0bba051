"""RLlib's group of env runners, which starts a process with the config itself instead of a reference to it.

A process that Ray restarts gets what it was first started with. RLlib puts the config into Ray's object store, where a
copy can be lost together with a node, and Ray says so on the terminal for every runner that it may restart. A config
is some ten kilobytes; what travels with the request to start a runner is kept with it, and cannot be lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import ray
from ray.rllib.algorithms import algorithm
from ray.rllib.env.env_runner_group import EnvRunnerGroup


class RunnerGroup(EnvRunnerGroup):
    """RLlib's group, with remote env runners that can be restarted whatever became of the object store.

    A config above ``max_direct_call_object_size`` of Ray (100 kB; one with all its tasks in ``env_config``, say) goes
    through the store in any case, and Ray then says that it does.
    """

    def _make_worker(self, *, config: Any, **arguments: Any) -> Any:
        given = self._remote_config if isinstance(config, ray.ObjectRef) else config
        return super()._make_worker(config=given, **arguments)


@contextlib.contextmanager
def groups_by_value() -> Iterator[None]:
    """Has RLlib's algorithm make its groups of env runners of the class above; it asks nobody which class to use."""
    rllibs = algorithm.EnvRunnerGroup
    algorithm.EnvRunnerGroup = RunnerGroup
    try:
        yield
    finally:
        algorithm.EnvRunnerGroup = rllibs

"""Errors of env runners in calls that RLlib makes: it logs them, takes the runner out of service and goes on."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayError
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from gspo_rllib.runner_calls import RunnerCall, returned

_WAIT_S = 10.0  # a runner whose process died has nothing to say


def raise_engine_failures(runners: EnvRunnerGroup) -> None:
    """Raises what the engine of a runner failed with, if RLlib took the runner out of service for it.

    Args:
        runners: Remote env runners; those of this process raise by themselves.

    Raises:
        EngineError: An engine failed, or refused.
        WeightSyncError: An engine does not hold the weights it was sent.
    """
    manager = runners._worker_manager
    lost = set(manager.actors()).difference(manager.healthy_actor_ids())
    asked = [manager.actors()[worker].apply.remote(RunnerCall(_raise_failure)) for worker in lost]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=_WAIT_S) if asked else ([], [])
    for ref in ready:
        try:
            answer = ray.get(ref)
        except RayError:
            continue
        returned([answer])


def _raise_failure(runner: Any) -> None:
    runner.raise_engine_failure()

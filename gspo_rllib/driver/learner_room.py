"""Learners that are built again: room in the cluster, waited for where a node is lost, and their processes."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from gspo_rllib.driver.processes import LOOK_S

logger = logging.getLogger(__name__)

_SAY_S = 10.0  # between two lines that say what is waited for


def learner_cpus(config: Any) -> float:
    """CPUs of one learner, as RLlib reads ``num_cpus_per_learner``."""
    if config.num_cpus_per_learner != "auto":
        return float(config.num_cpus_per_learner)
    return 0 if config.num_gpus_per_learner else 1


def await_room(config: Any, placed: Any = None) -> bool:
    """Waits until the cluster has room for all learners at once, ``env_runner_restore_timeout_s`` at most.

    Ray itself would wait for it without an end, and without a word.

    Args:
        config: The algorithm's config.
        placed: Ray Tune's placement group, whose room is the learners' already.

    Returns:
        Whether there is room.
    """
    asked = {"CPU": learner_cpus(config), "GPU": config.num_gpus_per_learner}
    asked |= config.custom_resources_per_learner or {}
    each = {name: float(amount) for name, amount in asked.items() if amount}
    if placed is not None or not each:
        return True
    limit, started, said = config.env_runner_restore_timeout_s, time.monotonic(), _SAY_S
    group = placement_group([each] * config.num_learners)
    try:
        while not group.wait(LOOK_S):
            waited = time.monotonic() - started
            if waited > limit:
                return False
            if waited >= said:
                said += _SAY_S
                logger.warning(
                    "waiting for room for %d learners, %s each, %.0f s of %.0f s",
                    config.num_learners,
                    " and ".join(f"{amount:g} {name}" for name, amount in each.items()),
                    waited,
                    limit,
                )
    finally:
        remove_placement_group(group)
    return True


def start_again(executor: Any, placed: Any = None) -> list[Any]:
    """Starts the processes of learners that were ended, and builds the learners in them.

    RLlib's constructor would do it with classes of their own, and Ray keeps every class that an actor was ever made of:
    80 kB each time.

    Args:
        executor: RLlib's, which started those before.
        placed: Ray Tune's placement group.

    Returns:
        Their actors, the first one first.
    """
    group = executor.worker_group
    group.start()
    group.sort_workers_by_node_id_and_gpu_id()
    executor._backend.on_start(group, executor._backend_config)
    actors = [worker.actor for worker in group.workers]
    named = [actor._set_learner_index_and_placement_group.remote for actor in actors]
    ray.get([name(learner_index=index, placement_group=placed) for index, name in enumerate(named)])
    ray.get([actor.build.remote() for actor in actors])
    return actors

"""Whether what an algorithm asks Ray for can ever be had; said before the first actor, which would wait for ever."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import state
from ray.experimental.internal_kv import _internal_kv_get
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from gspo_rllib.driver.learner_room import learner_cpus
from gspo_rllib.errors import SettingError
from gspo_rllib.leftovers import watched_while_it_lives

logger = logging.getLogger("gspo_rllib")

Resources = Mapping[str, float]

_NODE_GROUP = "ray.io/node-group"
"""Label of a node that an autoscaler started."""

_STATUS = "__autoscaling_status"
"""Where Ray's monitor says which nodes there are; those that it only watches are called ``node_`` and their id."""

_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Request:
    """Actors of one kind.

    Attributes:
        what: What messages call them.
        settings: The settings that say how many, and how large.
        count: How many.
        each: Resources of one; without those of which it needs none.
    """

    what: str
    settings: str
    count: int
    each: Resources

    def __str__(self) -> str:
        return f"{self.count} x {self.what} ({described_resources(self.each)})"


def requests(config: AlgorithmConfig, *, main_process: bool) -> list[Request]:
    """What an algorithm asks Ray for.

    Args:
        config: The algorithm's config.
        main_process: Whether its own process is a request too, as under Ray Tune.
    """
    learner = _needed(learner_cpus(config), config.num_gpus_per_learner, config.custom_resources_per_learner)
    found = [_env_runners(config, config.num_env_runners, "num_env_runners", "env runner")]
    evaluation = config.get_evaluation_config_object()
    if evaluation is not None:
        number = config.evaluation_num_env_runners
        found.append(_env_runners(evaluation, number, "evaluation_num_env_runners", "evaluation runner"))
    found.append(Request("learner", "learners(num_learners, num_cpus_per_learner, …)", config.num_learners, learner))
    if main_process:
        gpus = 0 if config.num_learners else config.num_gpus_per_learner
        each = _needed(main_process_cpus(config), gpus, config.custom_resources_for_main_process)
        found.append(Request("main process", "resources(num_cpus_for_main_process, …)", 1, each))
    return [request for request in found if request.count]


def main_process_cpus(config: AlgorithmConfig) -> float:
    """CPUs of an algorithm's own process; those of the learner where that is in it."""
    cpus: float = config.num_cpus_for_main_process
    return cpus if config.num_learners else max(cpus, learner_cpus(config))


def shortage(asked: Sequence[Request], nodes: Sequence[Resources], *, strategy: str = "PACK") -> str | None:
    """Why the requests can never be met together; None where nothing speaks against it.

    Args:
        asked: The requests.
        nodes: All that each node has, free or not.
        strategy: Ray's placement strategy.
    """
    for request in asked:
        room = sum(_times(request.each, node) for node in nodes)
        for name, amount in request.each.items():
            largest = max((node.get(name, 0.0) for node in nodes), default=0.0)
            if amount > largest + _ROUNDING:
                return f"one {request.what} needs {amount:g} {name}, and no node has more than {largest:g}"
        if room < request.count:
            return f"there is room for {room:.0f} of {request.count} {request.what}s"
    total = _sum([request.each for request in asked for _ in range(request.count)])
    there = _sum(nodes)
    for name, amount in total.items():
        if amount > there.get(name, 0.0) + _ROUNDING:
            return f"all together need {amount:g} {name}, and there are {there.get(name, 0.0):g}"
    number = sum(request.count for request in asked)
    if strategy == "STRICT_SPREAD" and number > len(nodes):
        return f"placement_strategy is 'STRICT_SPREAD', and {number} actors need as many nodes, not {len(nodes)}"
    if strategy == "STRICT_PACK" and not any(_times(total, node) for node in nodes):
        return f"placement_strategy is 'STRICT_PACK', and no node has all of {described_resources(total)}"
    return None


def check_schedulable(config: AlgorithmConfig, *, main_process: bool) -> None:
    """Refuses what the cluster can never give; only warns where an autoscaler may still bring it.

    Args:
        config: The algorithm's config.
        main_process: See ``requests``.

    Raises:
        SettingError: Says what is asked for, what the cluster has, and what to change.
    """
    asked = requests(config, main_process=main_process)
    if not asked:
        return
    if not ray.is_initialized():
        with watched_while_it_lives():
            ray.init()  # as Ray itself would, a moment later, for the first actor
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    where = "the Ray cluster"
    group = None if main_process else ray.util.get_current_placement_group()
    if group is not None:
        if not ray.get_runtime_context().should_capture_child_tasks_in_placement_group:
            return
        nodes, where = list(group.bundle_specs), "the placement group that this algorithm runs in"
    problem = shortage(asked, nodes, strategy=config.placement_strategy if main_process else "PACK")
    if problem is None:
        return
    settings = " or ".join(request.settings for request in asked)
    message = (
        f"resources: {', '.join(map(str, asked))} cannot be had: {problem}. In all, {where} has "
        f"{described_resources(_sum(nodes))} (nodes: {len(nodes)}). Lower {settings}, or give Ray more."
    )
    if group is None and is_autoscaling():
        logger.warning("%s Waiting for the cluster's autoscaler to bring them.", message)
        return
    raise SettingError(message)


def check_own_gpu(config: AlgorithmConfig) -> None:
    """Refuses a GPU for a learner in this process where it has none.

    Args:
        config: The algorithm's config.

    Raises:
        SettingError: There is no such GPU.
    """
    import torch

    number = torch.cuda.device_count()
    if config.num_learners or not config.num_gpus_per_learner or config.local_gpu_idx < number:
        return
    raise SettingError(
        f"learners.num_gpus_per_learner is {config.num_gpus_per_learner}, local_gpu_idx is {config.local_gpu_idx} and "
        f"num_learners is 0, so the learner runs in this process, which sees {number} GPUs. Set "
        "num_gpus_per_learner=0, or num_learners=1 for a learner on a node that has one."
    )


def is_autoscaling() -> bool:
    """Whether something may bring nodes that are not there yet; True where Ray does not tell."""
    try:
        if any(node["Labels"].get(_NODE_GROUP) for node in ray.nodes()):
            return True
        if state.get_max_resources_from_cluster_config() is not None:
            return True
        status = json.loads(_internal_kv_get(_STATUS) or "{}").get("autoscaler_report") or {}
    except Exception:  # noqa: BLE001, a cluster that does not answer as expected is not judged
        return True
    kinds = {*(status.get("active_nodes") or {}), *(status.get("idle_nodes") or {})}
    return bool(status.get("pending_launches")) or any(not kind.startswith("node_") for kind in kinds)


def _env_runners(config: AlgorithmConfig, number: int, setting: str, what: str) -> Request:
    each = _needed(
        config.num_cpus_per_env_runner, config.num_gpus_per_env_runner, config.custom_resources_per_env_runner
    )
    builder = "evaluation" if setting.startswith("evaluation") else "env_runners"
    return Request(what, f"{builder}({setting}, num_cpus_per_env_runner, …)", number, each)


def _needed(cpus: float, gpus: float, custom: Mapping[str, Any] | None) -> dict[str, float]:
    asked = {"CPU": cpus, "GPU": gpus, **(custom or {})}
    return {name: float(amount) for name, amount in asked.items() if amount}


def _times(each: Resources, node: Resources) -> float:
    """How many of a request one node could hold."""
    return min(((node.get(name, 0.0) + _ROUNDING) // amount for name, amount in each.items()), default=float("inf"))


def _sum(parts: Iterable[Resources]) -> Resources:
    total: Counter[str] = Counter()
    for part in parts:
        for name, amount in part.items():
            total[name] += amount  # type: ignore[assignment]
    return total


def described_resources(resources: Resources) -> str:
    """Resources as people read them.

    Example:
        >>> described_resources({"GPU": 1.0, "CPU": 0.5, "node:10.0.0.1": 1.0}), described_resources({})
        ('0.5 CPU, 1 GPU', 'nothing')
    """
    # Ray counts memory and each node's address as resources, too.
    named = {
        name: amount for name, amount in resources.items() if not name.startswith(("node:", "object_store_memory"))
    }
    named = {name: amount for name, amount in named.items() if name != "memory" or amount < 2**20}
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(named.items())) or "nothing"

"""Which nodes and env runners a run has, iteration by iteration; one line when that changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from gspo_rllib.metrics import NUM_HEALTHY_ENV_RUNNERS, NUM_NODES


class ClusterMonitor:
    """Compares the nodes of the Ray cluster with those of the iteration before.

    Args:
        nodes: The nodes there are at the start, by their ids, as ``alive_nodes`` returns them.
    """

    def __init__(self, nodes: Mapping[str, str]) -> None:
        self._nodes = dict(nodes)

    def check(self, nodes: Mapping[str, str], runners: EnvRunnerGroup | None) -> tuple[list[str], dict[str, int]]:
        """What there is to say about an iteration.

        Args:
            nodes: The nodes there are now.
            runners: The env runners; None where there are none.

        Returns:
            A line for each node that was lost or has joined, and the metrics.
        """
        healthy = runners.num_healthy_remote_workers() if runners is not None else 0
        wanted = runners.num_remote_env_runners() if runners is not None else 0
        state = f"{healthy} of {wanted} env runners are at work" if wanted else "there are no remote env runners"
        said = [
            f"Node {name} is lost: {len(nodes)} of {len(self._nodes)} nodes are left, and {state}. Its trajectories "
            "are played by the others; its env runners come back where there is room for them."
            for node, name in self._nodes.items()
            if node not in nodes
        ]
        said += [
            f"Node {name} has joined: there are {len(nodes)} nodes, and {state}. It is given what waits for room."
            for node, name in nodes.items()
            if node not in self._nodes
        ]
        self._nodes = dict(nodes)
        return said, {NUM_NODES: len(nodes), NUM_HEALTHY_ENV_RUNNERS: healthy}


def alive_nodes(nodes: Sequence[Mapping[str, Any]] | None = None) -> dict[str, str]:
    """The nodes of the cluster that are alive: id to how a message calls it.

    Args:
        nodes: What ``ray.nodes()`` returned; None asks it.

    Example:
        >>> alive_nodes([{"NodeID": "0123456789", "Alive": True, "NodeManagerAddress": "10.0.0.2"},
        ...              {"NodeID": "ffff", "Alive": False, "NodeManagerAddress": "10.0.0.3"}])
        {'0123456789': '10.0.0.2 (01234567)'}
    """
    return {
        node["NodeID"]: f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"
        for node in (ray.nodes() if nodes is None else nodes)
        if node["Alive"]
    }

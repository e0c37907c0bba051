"""A Ray cluster whose nodes are raylets on this machine, each as ``ray start`` starts it."""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

RAY = (sys.executable, "-m", "ray.scripts.scripts")


class Cluster:
    """Nodes of one cluster on this machine.

    Args:
        head_cpus: CPUs of its first node.

    Attributes:
        address: Where its head listens.
        nodes: The process of each, the head's first.
    """

    def __init__(self, head_cpus: int = 2) -> None:
        with socket.socket() as once:
            once.bind(("127.0.0.1", 0))
            port = once.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.add("--head", "--port", str(port), "--include-dashboard", "false", cpus=head_cpus)

    @property
    def _here(self) -> tuple[str, str]:
        return "--address", self.address

    def add(self, *options: str, cpus: int = 2, before: str = "") -> subprocess.Popen[bytes]:
        """Starts a node; a shell command may come before, in a file system of its own."""
        command = [*RAY, "start", "--num-cpus", str(cpus), "--block", *(options or self._here)]
        if before:
            command = ["unshare", "--mount", "--map-root-user", "bash", "-c", f"{before} && exec {shlex.join(command)}"]
        # A machine that is busy may take longer than Ray gives a node to start; it ends then, and is started again.
        for _ in range(3):
            node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert node.stdout is not None
            if any(b"Ray runtime started" in line for line in node.stdout):
                self.nodes.append(node)
                return node
            node.wait()
        raise AssertionError("Ray did not start")

    def stop(self, node: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Stops every process of a node, as when its machine stands still; whoever does it lets them go on."""
        processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in processes:
            process.suspend()
        return processes

    def lose(self, node: subprocess.Popen[bytes]) -> None:
        """Kills every process of a node, as when its power fails."""
        processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        self.nodes.remove(node)

    def close(self) -> None:
        for node in reversed(list(self.nodes)):
            self.lose(node)
        # As `ray stop` does: as long as it names a cluster, every `ray.init()` on this machine waits for that one.
        noted = Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster"
        with contextlib.suppress(OSError):
            if noted.read_text().rpartition(":")[2] == self.address.rpartition(":")[2]:
                noted.unlink()

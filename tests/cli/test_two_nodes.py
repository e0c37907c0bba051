"""Commands on a cluster of two nodes, which are two raylets on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from safetensors.numpy import load_file

from gspo_rllib import checkpoints

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RAY = (sys.executable, "-m", "ray.scripts.scripts")
TOKEN = "a-token-of-the-two-node-tests-0123456789"


class Cluster:
    """Nodes of one cluster on this machine, each as ``ray start`` starts it.

    Attributes:
        address: Where its head listens.
    """

    def __init__(self) -> None:
        with socket.socket() as once:
            once.bind(("127.0.0.1", 0))
            port = once.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self._nodes: list[subprocess.Popen[bytes]] = []
        self.add("--head", "--port", str(port), "--include-dashboard", "false")

    @property
    def _here(self) -> tuple[str, str]:
        return "--address", self.address

    def add(self, *options: str, before: str = "") -> subprocess.Popen[bytes]:
        """Starts a node with two CPUs; a shell command may come before, in a file system of its own."""
        command = [*RAY, "start", "--num-cpus", "2", "--block", *(options or self._here)]
        if before:
            command = ["unshare", "--mount", "--map-root-user", "bash", "-c", f"{before} && exec {shlex.join(command)}"]
        # A machine that is busy may take longer than Ray gives a node to start; it ends then, and is started again.
        for _ in range(3):
            node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert node.stdout is not None
            if any(b"Ray runtime started" in line for line in node.stdout):
                self._nodes.append(node)
                return node
            node.wait()
        raise AssertionError("Ray did not start")

    def lose(self, node: subprocess.Popen[bytes]) -> None:
        """Kills every process of a node, as when its power fails."""
        processes = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        self._nodes.remove(node)

    def close(self) -> None:
        for node in reversed(list(self._nodes)):
            self.lose(node)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes with two CPUs each."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    # A worker finds this checkout as a command that was started in it does.
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started = Cluster()
    try:
        started.add()
        yield started
    finally:
        started.close()


@pytest.fixture
def config(config_file: str, tmp_path: Path) -> Path:
    """Four runners, so that both nodes have two."""
    sections = yaml.safe_load(Path(config_file).read_text())
    sections["env_runners"] = {"num_env_runners": 4, "num_envs_per_env_runner": 4}
    sections["training"]["groups_per_iteration"] = 8
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def _command(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gspo_rllib", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )


def _done(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output


def _results(storage: Path) -> list[dict[str, Any]]:
    (file,) = storage.glob("*/result.json")
    return [json.loads(line) for line in file.read_text().splitlines()]


def _weights(storage: Path) -> dict[str, np.ndarray]:
    (checkpoint,) = storage.glob("*/checkpoints/*")
    loaded: dict[str, np.ndarray] = load_file(checkpoints.policy_folder(checkpoint) / "model.safetensors")
    return loaded


def test_two_nodes_train_and_evaluate_what_one_does(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """The same tasks, the same samples: returns are equal, and weights to what sharing out a batch rounds."""
    train = ("train", str(config), "--iterations", "3", "--storage")
    _done(_command(*train, str(tmp_path / "two"), "--address", cluster.address, "--min-nodes", "2"))
    _done(_command(*train, str(tmp_path / "one"), "env_runners.num_env_runners=1"))
    one, two = _results(tmp_path / "one"), _results(tmp_path / "two")
    returns = [[r["env_runners"]["episode_return_mean"] for r in run] for run in (one, two)]
    assert returns[0] == pytest.approx(returns[1], abs=1e-6)
    assert [r["cluster"]["num_nodes"] for r in two] == [2, 2, 2]
    assert [r["cluster"]["num_healthy_env_runners"] for r in two] == [4, 4, 4]
    before, after = _weights(tmp_path / "one"), _weights(tmp_path / "two")
    assert max(np.abs(before[name] - after[name]).max() for name in before) < 1e-6

    (checkpoint,) = (tmp_path / "one").glob("*/checkpoints/*")
    played = [
        _done(_command("evaluate", str(checkpoint), "--episodes", "16", "--json", *address))
        for address in ((), ("--address", cluster.address))
    ]
    rows = [[line for line in text.splitlines() if line.startswith("{")] for text in played]
    assert len(rows[0]) == 16 and rows[0] == rows[1]


def test_a_node_that_lacks_the_model_ends_the_command(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """The third node has another file system at the model's path, and at the results'."""
    storage = tmp_path / "results"
    storage.mkdir()
    model = yaml.safe_load(config.read_text())["rl_module"]["model_config"]["path"]
    hide = f"mount -t tmpfs none {model} && mount -t tmpfs none {storage}"
    cluster.add(before=hide)
    run = ("train", str(config), "--iterations", "1", "--storage", str(storage), "--min-nodes", "3")
    said = _done(_command(*run, "--address", cluster.address), 2)
    assert f"model {model} cannot be read there (the folder is empty)" in said
    assert f"storage {storage} is another folder there" in said
    assert not [*storage.iterdir()]

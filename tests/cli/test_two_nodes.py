"""Commands on a cluster of two nodes, which are two raylets on this machine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from gspo_rllib import checkpoints
from tests.raylets import Cluster

pytestmark = pytest.mark.slow

START_S = 60
"""What a busy machine takes to start a command and connect it; a quiet one takes ten seconds."""


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """Two nodes with two CPUs each."""
    started = make_cluster(2)
    started.add()
    return started


@pytest.fixture
def config(config_file: str, tmp_path: Path) -> Path:
    """Four runners, so that both nodes have two, and a task that any policy learns from."""
    sections = yaml.safe_load(Path(config_file).read_text())
    sections["environment"] = {"env": "tests.toy_envs.coin_env:toy/Coin-v0"}
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


def _wait(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 400
    while not condition():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def _results(storage: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in storage.glob("*/result.json") for line in file.read_text().splitlines()]


def _weights(storage: Path) -> dict[str, np.ndarray]:
    (checkpoint,) = storage.glob("*/checkpoints/*")
    loaded: dict[str, np.ndarray] = load_file(checkpoints.policy_folder(checkpoint) / "model.safetensors")
    return loaded


def test_two_nodes_train_and_evaluate_what_one_does(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """The same tasks, the same samples: returns are equal, and weights to the bit."""
    train = ("train", str(config), "--iterations", "3", "--storage")
    _done(_command(*train, str(tmp_path / "two"), "--address", cluster.address, "--min-nodes", "2"))
    _done(_command(*train, str(tmp_path / "one"), "env_runners.num_env_runners=1"))
    one, two = _results(tmp_path / "one"), _results(tmp_path / "two")
    returns = [[r["env_runners"]["episode_return_mean"] for r in run] for run in (one, two)]
    assert returns[0] == pytest.approx(returns[1], abs=1e-6)
    assert [r["cluster"]["num_nodes"] for r in two] == [2, 2, 2]
    assert [r["cluster"]["num_healthy_env_runners"] for r in two] == [4, 4, 4]
    before, after = _weights(tmp_path / "one"), _weights(tmp_path / "two")
    assert [name for name in before if not np.array_equal(before[name], after[name])] == []

    (checkpoint,) = (tmp_path / "one").glob("*/checkpoints/*")
    played = [
        _done(
            _command("evaluate", str(checkpoint), "--episodes", "16", "--json", "--trust", "tests.toy_envs", *address)
        )
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


def test_a_node_that_stands_still_ends_the_command_within_a_minute(
    make_cluster: Callable[..., Cluster], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes are stopped. Ray, which gives such a node up after half a minute, is kept from that here."""
    monkeypatch.setenv("RAY_health_check_failure_threshold", "1000")
    cluster = make_cluster(4)
    stopped = cluster.stop(cluster.add())
    started = time.monotonic()
    run = ("train", str(config), "--iterations", "1", "--storage", str(tmp_path / "none"))
    said = _done(_command(*run, "--address", cluster.address), 2)
    took = time.monotonic() - started
    for process in stopped:
        process.resume()
    print(f"ended after {took:.0f} s")
    (sentence,) = [line for line in said.splitlines() if line.startswith("gspo-rllib: ")]
    assert re.search(r"node [\d.]+, id \w{8}: it did not answer within", sentence), sentence
    assert not (tmp_path / "none").exists()
    assert took < 60 + START_S


def test_a_node_of_env_runners_that_is_lost_changes_nothing(cluster: Cluster, config: Path, tmp_path: Path) -> None:
    """Two of four are lost with it, in the middle of the run; the others play what those were to play."""
    train = ("train", str(config), "--iterations", "8", "generation.max_tokens_per_turn=32", "--storage")
    lost = cluster.nodes[-1]
    disturbed = _command(*train, str(tmp_path / "lost"), "--address", cluster.address, "--min-nodes", "2")
    _wait(lambda: len(_results(tmp_path / "lost")) >= 3, disturbed)
    cluster.lose(lost)
    said = _done(disturbed)
    assert "Traceback" not in said and "(raylet)" not in said
    healthy = [result["cluster"]["num_healthy_env_runners"] for result in _results(tmp_path / "lost")]
    assert healthy[:3] == [4, 4, 4] and healthy[-1] == 2
    cluster.close()
    _done(_command(*train, str(tmp_path / "whole"), "env_runners.num_env_runners=1"))
    whole, found = _weights(tmp_path / "whole"), _weights(tmp_path / "lost")
    assert [name for name in whole if not np.array_equal(whole[name], found[name])] == []


@pytest.mark.parametrize(
    ("num_learners", "num_env_runners"), [(1, 0), (2, 0), (1, 2)], ids=["alone", "sharded", "with all env runners"]
)
def test_learners_of_a_lost_node_are_rebuilt_on_another_and_nothing_differs(
    num_learners: int, num_env_runners: int, make_cluster: Callable[..., Cluster], config: Path, tmp_path: Path
) -> None:
    """One that has its node for itself; two that share the model, each on a node of its own, one of which is lost.

    And one whose env runners are lost with it, while they sample: the weights they need lie on that node alone.
    """
    settings = {
        "training.learner_commit_every": 3,
        "learners.num_learners": num_learners,
        "learners.sharding": "fsdp2" if num_learners > 1 else "none",
        "env_runners.num_env_runners": num_env_runners,
        "generation.max_tokens_per_turn": 32 if num_env_runners else 4,
    }
    asked = [f"{name}={value}" for name, value in settings.items()]
    train = ("train", str(config), "--iterations", "8", *asked, "--storage")
    cluster = make_cluster(0)
    nodes = [cluster.add(cpus=1 + num_env_runners) for _ in range(num_learners)]
    disturbed = _command(*train, str(tmp_path / "lost"), "--address", cluster.address)
    _wait(lambda: len(_results(tmp_path / "lost")) >= 4, disturbed)
    cluster.lose(nodes[-1])
    cluster.add(cpus=1 + num_env_runners)
    said = _done(disturbed)
    assert "the learners were rebuilt in " in said and "(raylet)" not in said
    assert _results(tmp_path / "lost")[-1]["recovery"]["num_learner_rebuilds"] == 1
    cluster.close()
    _done(_command(*train, str(tmp_path / "whole")))
    whole, lost = _weights(tmp_path / "whole"), _weights(tmp_path / "lost")
    assert whole.keys() == lost.keys()
    assert [name for name in whole if not np.array_equal(whole[name], lost[name])] == []


def test_learners_that_find_no_room_end_the_run_in_a_sentence_and_it_goes_on_from_its_checkpoint(
    make_cluster: Callable[..., Cluster], config: Path, tmp_path: Path
) -> None:
    limits = ("--iterations", "30", "--checkpoint-every", "1", "fault_tolerance.env_runner_restore_timeout_s=3")
    here = ("env_runners.num_env_runners=0", "learners.num_learners=1", "--storage", str(tmp_path))
    cluster = make_cluster(0)
    node = cluster.add(cpus=1)
    run = _command("train", str(config), *limits, *here, "--address", cluster.address)
    _wait(lambda: len(_results(tmp_path)) >= 3, run)
    cluster.lose(node)
    said = _done(run, 2)
    (sentence,) = [line for line in said.splitlines() if line.startswith("gspo-rllib: ")]
    assert "no node has room for the learners. They could not be rebuilt after: learner 0 died" in sentence
    trained = len(_results(tmp_path))
    last = max(tmp_path.glob("*/checkpoints/iteration_*"))  # the one before, where the node was lost while it saved
    assert f"The last checkpoint is {last}" in sentence
    resumed = ("learners.num_learners=0", "--iterations", str(trained + 1))
    _done(_command("train", "--resume", str(last.parents[1]), *resumed))
    assert [result["training_iteration"] for result in _results(tmp_path)] == [*range(1, trained + 2)]


def test_a_command_with_another_jobs_token_does_not_get_in(
    make_cluster: Callable[..., Cluster], config: Path, tmp_path: Path
) -> None:
    address = make_cluster(1).address
    run = _command(
        "train", str(config), "--storage", str(tmp_path / "none"), "--address", address, RAY_AUTH_TOKEN="z" * 40
    )
    assert f"--address '{address}': the cluster asks for another token than this process has" in _done(run, 2)
    assert not (tmp_path / "none").exists()

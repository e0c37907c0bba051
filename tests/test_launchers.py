"""The launchers, as far as that goes without a cluster: names, versions, mounts, commands and resources fit."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from gspo_rllib.algorithms.policy_gradient.resources import requests, shortage
from gspo_rllib.cli.main import parse_arguments
from gspo_rllib.configs import load_run

ROOT = Path(__file__).resolve().parent.parent
LAUNCHERS = ROOT / "launchers"


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((LAUNCHERS / "kuberay_rayjob.yaml").read_text())
    return loaded


def _pods(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]


def _command(job: dict[str, Any], tmp_path: Path, *, runs: str) -> list[str]:
    """What the entry point's shell ends up running."""
    entry = job["spec"]["entrypoint"].replace("/data/results/kuberay", runs)
    show = tmp_path / "gspo-rllib"
    show.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    show.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(shlex.split(entry), capture_output=True, text=True, env=environment, check=True)
    return done.stdout.splitlines()


def test_the_manifest_is_a_rayjob_of_the_ray_that_is_installed(job: dict[str, Any]) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == ray.__version__
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", job["metadata"]["name"])


def test_every_pod_runs_the_same_image_and_mounts_the_same_data(job: dict[str, Any]) -> None:
    containers = [container for pod in _pods(job) for container in pod["containers"]]
    assert len({container["image"] for container in containers}) == 1
    for pod in _pods(job):
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/dev/shm"}
        assert container["resources"]["requests"] == container["resources"]["limits"]
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert worker["minReplicas"] <= worker["replicas"] <= worker["maxReplicas"]


def test_the_command_is_one_of_ours_and_fits_the_pods(job: dict[str, Any], tmp_path: Path) -> None:
    command = _command(job, tmp_path, runs=str(tmp_path / "none"))
    arguments = parse_arguments(command)
    pods = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] + 1
    assert arguments.min_nodes == pods
    config = load_run(arguments.config, [o for o in arguments.overrides if "model_config" not in o]).config
    nodes = []
    for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        nodes += [{"CPU": float(limits["cpu"]), "GPU": float(limits["nvidia.com/gpu"])}] * group["replicas"]
    asked = requests(config, main_process=False)
    assert shortage(asked, nodes) is None
    assert sum(r.count * r.each.get("GPU", 0) for r in asked) == sum(node["GPU"] for node in nodes), "none is idle"


def test_a_second_start_goes_on_with_the_first_ones_run(job: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "calculator-1"
    (run / "checkpoints" / "iteration_000003").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    command = _command(job, tmp_path, runs=str(tmp_path / "runs"))
    assert parse_arguments(command).resume == f"{run}/"
    assert not [word for word in command if word.startswith("--storage")]


def test_the_image_copies_what_is_there_and_installs_what_is_declared() -> None:
    lines = (LAUNCHERS / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert steps[0][0] == "FROM" and all(":" in rest and "latest" not in rest for word, rest in steps if word == "FROM")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    version = tuple(map(int, re.search(r"python:(\d+)\.(\d+)", steps[0][1]).groups()))
    assert version >= tuple(map(int, re.search(r">=(\d+)\.(\d+)", project["project"]["requires-python"]).groups()))
    copied = [name for word, rest in steps if word == "COPY" for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    built = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"], "gspo_rllib"}
    assert built | set(project["tool"]["setuptools"]["package-dir"].values()) == set(copied)
    extras = re.search(r'"\.\[(.*?)\]"', "\n".join(lines)).group(1).split(",")
    assert set(extras) <= set(project["project"]["optional-dependencies"])
    declared = next(line for line in project["project"]["dependencies"] if line.startswith("ray["))
    assert f'"ray[default]{declared.partition("]")[2]}"' in "\n".join(lines)
    assert [rest for word, rest in steps if word == "USER"] == ["ray"], "not as root"

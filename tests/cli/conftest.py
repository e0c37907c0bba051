"""Fixtures of the command line's tests: a small config, and a run of it that many tests look at."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from gspo_rllib.cli.main import main

ROOT = Path(__file__).parents[2]
CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"


@pytest.fixture(scope="session")
def config_file(tiny_dense: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    sections = {
        "environment": {"env": CALCULATOR, "env_config": {"operations": 1}},
        "rl_module": {"model_config": {"path": tiny_dense}},
        "generation": {"engine": "transformers", "max_tokens_per_turn": 4},
        "env_runners": {"num_env_runners": 0, "num_envs_per_env_runner": 8},
        "learners": {"num_learners": 0},
        "training": {"group_size": 2, "groups_per_iteration": 4, "lr": 1e-4},
        "debugging": {"seed": 0},
    }
    path.write_text(yaml.safe_dump(sections))
    return str(path)


@pytest.fixture(scope="session")
def trained(config_file: str, ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run of two iterations with a checkpoint after each: its folder and what it printed."""
    storage = tmp_path_factory.mktemp("results")
    lines: list[str] = []
    settings = ["run.checkpoint_every=1", "run.record_groups=true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *parts, **_: lines.append(" ".join(map(str, parts))))
        code = main(["train", config_file, "--iterations", "2", "--storage", str(storage), *settings])
    assert code == 0
    (folder,) = storage.iterdir()
    return SimpleNamespace(folder=folder, text="\n".join(lines), checkpoint=folder / "checkpoints" / "iteration_000002")


@pytest.fixture(scope="session")
def trackers_python() -> str:
    """A Python that has this environment's packages, and on top of them those of requirements/trackers.txt."""
    folder, listed = ROOT / ".venv-trackers", ROOT / "requirements" / "trackers.txt"
    python, done = folder / "bin" / "python", folder / ".installed"
    if not done.exists() or done.read_text() != listed.read_text():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        (own,) = folder.glob("lib/python*/site-packages")
        (own / "below.pth").write_text("\n".join(site.getsitepackages()))
        install = [str(python), "-m", "pip", "install", "-q", "--no-deps", "-r", str(listed)]
        subprocess.run(install, check=True, env={**os.environ, "PYTHONPATH": ""})
        done.write_text(listed.read_text())
    return str(python)

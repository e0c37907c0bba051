"""A model that is not made yet: the first line says which command makes it, and the hub is not asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gspo_rllib.cli.main import main, parse_arguments
from gspo_rllib.configs import shipped_configs
from gspo_rllib.model_folder import load_model_config

SEED = "gspo-rllib warmstart gspo_rllib.envs:gspo_rllib/Calculator-v0 models/seed --env-config operations=6 --careless"


@pytest.mark.parametrize("command", ["train", "validate", "sweep"])
def test_the_first_line_says_which_command_makes_the_model(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    values = ["training.lr=1e-5,1e-6"] if command == "sweep" else []
    assert main([command, "calculator", *values]) == (1 if command == "validate" else 2)
    out, err = capsys.readouterr()
    assert not out
    assert err == (
        f"gspo-rllib: model path 'models/seed' is not there yet; make it with `{SEED}`, then run this again.\n"
    )


@pytest.mark.slow
def test_a_fresh_user_is_told_at_once_and_the_network_is_not_tried(tmp_path):
    """As a command, with the network allowed: a name that can only be a folder is not looked for on the hub."""
    code = (
        "import os, socket, sys\n"
        "os.environ.pop('HF_HUB_OFFLINE', None)\n"
        "def refuse(*a, **k): raise AssertionError('asked the network')\n"
        "socket.getaddrinfo = refuse\n"
        "from gspo_rllib.cli.main import main\n"
        "sys.exit(main(['train', 'calculator']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and SEED in done.stderr and "asked the network" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_where_a_config_does_not_say_it_the_command_is_made_from_its_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["calculator", "rl_module.model_config.path=./own seed", "environment.env_config.operations=8"]
    assert main(["validate", *arguments]) == 1
    command = "gspo-rllib warmstart gspo_rllib.envs:gspo_rllib/Calculator-v0 './own seed' --env-config operations=8"
    assert f"make it with `{command}`" in capsys.readouterr().err


@pytest.mark.parametrize("path", shipped_configs().values(), ids=shipped_configs())
def test_the_command_in_a_shipped_config_is_one_that_the_command_line_takes(path: Path):
    commands = [line[2:].split() for line in path.read_text().splitlines() if line.startswith("# gspo-rllib ")]
    for command in commands:
        arguments = parse_arguments(command[1:])
        assert arguments.command == "warmstart" and arguments.out in path.read_text()


def test_a_missing_folder_is_told_in_python_too(tmp_path):
    for missing in (str(tmp_path / "none"), "./none", "models/none"):
        with pytest.raises(ValueError, match=r"there is no such folder.*gspo-rllib warmstart"):
            load_model_config(missing)

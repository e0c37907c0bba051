"""`gspo-rllib warmstart`: a model, and a word when it fell short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gspo_rllib.cli.main import main

CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"


def test_warmstart_writes_a_model_and_says_when_it_fell_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--sizes", "hidden_size=32", "num_layers=1", "--max-minutes", "0.001", "--env-config", "operations=1"]
    assert main(["warmstart", CALCULATOR, str(tmp_path / "model"), *small]) == 1
    assert "short of the target" in capsys.readouterr().out
    report = json.loads((tmp_path / "model" / "warmstart.json").read_text())
    assert report["env_config"] == {"operations": 1}
    assert (tmp_path / "model" / "model.safetensors").is_file()

"""`gspo-rllib evaluate`: checkpoints and plain models alike."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from gspo_rllib.cli.main import main

CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"


def test_evaluate_plays_a_checkpoint_and_a_plain_model_alike(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(trained.checkpoint), str(tmp_path / "model")]) == 0
    capsys.readouterr()
    options = ["--episodes", "8", "--max-tokens-per-turn", "4"]
    assert main(["evaluate", str(trained.checkpoint), *options]) == 0
    from_checkpoint = capsys.readouterr().out
    plain = ["--env", CALCULATOR, "--env-config", "operations=1", "--engine", "transformers"]
    assert main(["evaluate", str(tmp_path / "model"), *plain, *options]) == 0
    from_model = capsys.readouterr().out

    def without_speed(text: str) -> str:
        return text.partition(" sampled")[0]

    assert "episodes     8" in from_checkpoint
    assert without_speed(from_checkpoint) == without_speed(from_model)

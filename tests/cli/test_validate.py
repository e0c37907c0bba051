"""`gspo-rllib validate`: everything a run checks before its first actor, and nothing started."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gspo_rllib.cli.main import main


def test_a_config_that_could_be_trained_is_said_to_be(
    config_file: str, tiny_dense: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", config_file, "--iterations", "1", "--algorithm", "GRPO"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{config_file} is valid: GRPO with gspo_rllib.envs:gspo_rllib/Calculator-v0, ")
    assert said.endswith(f"model {tiny_dense}, engine transformers\n")
    free = ["generation.engine=null", "generation.engine_device=cpu"]
    assert main(["validate", config_file, "--iterations", "1", *free]) == 0
    assert f"model {tiny_dense}, engine transformers, because " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lrr=1", "Did you mean 'lr'?"),
        ("training.lr=-1", "training.lr is -1; allowed"),
        ("environment.env_config.operations=99", "1 to 30"),
        ("environment.env=NoSuch-v0", "'NoSuch-v0' is not registered"),
        ("rl_module.model_config.path=/nowhere", "model path '/nowhere'"),
        ("rl_module.model_config.packing=often", "['packing'] is 'often'; allowed: None, True, False"),
        ("run.iterations=null", "nothing would end this run"),
        ("generation.max_model_len=100000", "max_position_embeddings"),
    ],
)
def test_what_training_would_refuse_is_one_line_and_exit_code_1(
    override: str, message: str, config_file: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", config_file, "run.iterations=1", override]) == 1
    output = capfd.readouterr()
    assert message in output.err
    assert (output.err.count("\n"), output.out) == (1, "")


def test_a_model_folder_without_its_weights_is_found(
    config_file: str, tiny_dense: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_dense, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    arguments = ["validate", config_file, "--iterations", "1", f"rl_module.model_config.path={tmp_path / 'model'}"]
    assert main(arguments) == 1
    assert "the folder holds no weights (*.safetensors)" in capsys.readouterr().err
    index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
    (tmp_path / "model" / "model.safetensors.index.json").write_text(index)
    (tmp_path / "model" / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert main(arguments) == 1
    assert "2 files with weights, of which 1 are missing, 'model-00002-of-00002" in capsys.readouterr().err

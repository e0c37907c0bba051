"""`gspo-rllib export`: the trained weights, and no pickle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gspo_rllib import checkpoints
from gspo_rllib.cli.main import main


def test_an_exported_folder_holds_the_trained_weights_and_no_pickle(trained: SimpleNamespace, tmp_path: Path) -> None:
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert main(["export", str(trained.checkpoint), str(tmp_path / "model")]) == 0
    assert not list((tmp_path / "model").glob("*.pkl"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    saved = load_file(checkpoints.policy_folder(trained.checkpoint) / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if name in saved:
            assert (tensor.numpy() == saved[name]).all()
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template


def test_an_export_is_written_in_the_dtype_that_is_asked_for(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "model"
    assert main(["export", str(trained.checkpoint), str(folder), "--dtype", "bfloat16"]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: bfloat16; load it with transformers.AutoModelForCausalLM")
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    saved = load_file(checkpoints.policy_folder(trained.checkpoint) / "model.safetensors")
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, saved[name].bfloat16())


def test_a_weight_that_is_too_large_for_a_dtype_is_refused_and_no_part_of_a_model_is_left(
    trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(trained.checkpoint, checkpoint)
    file = checkpoint / checkpoints.POLICY / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][3] = -70_000.0
    save_file(weights, file, metadata={"format": "pt"})
    checkpoints.write_manifest(checkpoint)
    folder = tmp_path / "model"
    assert main(["export", str(checkpoint), str(folder), "--dtype", "float16"]) == 2
    assert capsys.readouterr().err == (
        "gspo-rllib: model.norm.weight holds a weight of 7e+04, more than float16 can. Export as bfloat16 or float32.\n"
    )
    assert not folder.exists()
    assert main(["export", str(checkpoint), str(folder)]) == 0

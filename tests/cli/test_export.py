"""`gspo-rllib export`: the trained weights, and no pickle."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

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

"""What is played by name: a model, an adapter or a checkpoint; and a run is no policy but has some."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from gspo_rllib.cli.main import main
from gspo_rllib.cli.named_policy import model_alone
from gspo_rllib.errors import ModelError

CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"


@pytest.fixture
def adapter(tiny_dense: str, tmp_path: Path) -> Path:
    """A LoRA that peft saved, far from zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_dense), LoraConfig(r=2, target_modules="all-linear")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    for file in Path(tiny_dense).iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            (tmp_path / "merged" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "adapter"


def test_an_adapter_on_its_own_plays_as_the_model_that_it_makes(
    adapter: Path, tiny_dense: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {}
    for policy in (adapter, adapter.parent / "merged", Path(tiny_dense)):
        options = ["--env", CALCULATOR, "--engine", "transformers", "--temperature", "0", "--max-tokens-per-turn", "8"]
        assert main(["rollout", str(policy), *options, "--episodes", "3", "--json"]) == 0
        rows[policy.name] = capsys.readouterr().out
    assert rows["adapter"] == rows["merged"] != rows[Path(tiny_dense).name]


def test_an_adapter_that_names_no_model_is_refused(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(ModelError, match=r"does not say on which model.*merge_and_unload"):
        model_alone(str(adapter), env=CALCULATOR)


def test_a_name_of_the_hub_is_played_with_an_environment(capsys: pytest.CaptureFixture[str]) -> None:
    assert model_alone("me/small", env=CALCULATOR) == {"path": "me/small"}
    assert main(["evaluate", "me/small"]) == 2
    assert "a model of the hub is played by its name, with --env ID" in capsys.readouterr().err
    assert model_alone("results/run/checkpoints/best", env=CALCULATOR) is None


@pytest.mark.parametrize("command", [["evaluate"], ["rollout"], ["export"]], ids=lambda words: words[0])
def test_of_a_run_its_checkpoints_are_named(
    command: list[str], trained: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = [str(tmp_path / "model")] if command == ["export"] else []
    assert main([*command, str(trained.folder), *folder]) == 2
    error = capsys.readouterr().err
    assert f"is a run, which has several policies. Name a checkpoint of it: {trained.checkpoint}.\n" in error
    assert not (tmp_path / "model").exists()

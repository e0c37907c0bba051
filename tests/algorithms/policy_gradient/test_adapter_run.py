"""A run that trains an adapter: from the environment to a checkpoint, and from there to whatever loads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner import COMPONENT_OPTIMIZER
from transformers import AutoModelForCausalLM

from gspo_rllib import checkpoints
from gspo_rllib.algorithms import GSPO, GSPOConfig
from gspo_rllib.cli.main import main
from gspo_rllib.cli.resume import Resume
from gspo_rllib.errors import CheckpointError, ModelError
from gspo_rllib.modules.own_attention import own_attention
from tests.modules.adapted_policies import IDS, LORA
from tests.toy_envs.coin_env import CoinEnv


def _config(path: str, lora: dict[str, Any] | None, **training: Any) -> GSPOConfig:
    return (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": path, "lora": lora})
        .generation(engine="transformers", max_tokens_per_turn=6)
        .training(group_size=4, groups_per_iteration=2, num_minibatches=2, lr=1e-2, **training)
        .debugging(seed=0)
    )


def _learner(algorithm: GSPO) -> Any:
    return algorithm.learner_group._learner


def _module(algorithm: GSPO) -> Any:
    return _learner(algorithm).module[DEFAULT_MODULE_ID].unwrapped()


def _arrays(state: Any) -> list[Any]:
    if isinstance(state, dict):
        return [array for value in state.values() for array in _arrays(value)]
    if isinstance(state, (list, tuple)):
        return [array for value in state for array in _arrays(value)]
    return [np.asarray(state)] if hasattr(state, "nbytes") else []


@pytest.mark.parametrize("kind", ["tiny_moe"])
def test_an_adapter_is_trained_saved_resumed_played_and_exported(
    kind: str, request: pytest.FixtureRequest, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "base")
    shutil.copytree(request.getfixturevalue(kind), path)
    algorithm = _config(path, LORA[kind], kl_coeff=0.05).build_algo()
    frozen = {name: p.clone() for name, p in _module(algorithm).named_parameters() if not p.requires_grad}
    measured = [algorithm.train()["learners"][DEFAULT_MODULE_ID] for _ in range(2)]
    # The first minibatch is scored before any step, when the policy still is its reference.
    assert measured[1]["kl_to_reference"] > 1e-5 and measured[1]["grad_norm"] > 0
    assert all(result["logp_gap_max"] < 1e-4 for result in measured)
    module = _module(algorithm)
    assert all(torch.equal(p, frozen[name]) for name, p in module.named_parameters() if not p.requires_grad)
    states = _arrays(_learner(algorithm).get_state()[COMPONENT_OPTIMIZER])
    trained = sum(p.numel() for p in module.policy_parameters())
    assert sum(array.nbytes for array in states) == pytest.approx(8 * trained, rel=0.01)

    checkpoint = Path(algorithm.save_to_path(tmp_path / "checkpoint"))
    assert not (checkpoint / checkpoints.REFERENCE).exists()
    resumed = GSPO.from_checkpoint(checkpoint)
    for again in (resumed, algorithm):
        assert _same(_module(again).state_dict(), module.state_dict())
        assert _same(
            _learner(again).get_state()[COMPONENT_OPTIMIZER], _learner(algorithm).get_state()[COMPONENT_OPTIMIZER]
        )
    saved = {name: tensor.clone() for name, tensor in module.adapter.merged_state().items()}
    algorithm.train()
    resumed.train()
    assert _same(_module(resumed).state_dict(), _module(algorithm).state_dict())
    for each in (algorithm, resumed):
        each.stop()

    assert main(["evaluate", str(checkpoint), "--episodes", "4"]) == 0
    assert "episodes     4" in capsys.readouterr().out
    _check_exports(checkpoint, path, saved, tmp_path, capsys)
    shutil.rmtree(path)
    assert main(["export", str(checkpoint), str(tmp_path / "gone"), "--merge"]) == 2
    assert f"model path '{path}'" in capsys.readouterr().err
    assert main(["evaluate", str(checkpoint), "--episodes", "4"]) == 2
    assert f"the model below it, '{path}', is not there. Put that model back" in capsys.readouterr().err


def _same(one: Any, other: Any) -> bool:
    pairs = list(zip(_arrays(one), _arrays(other), strict=True))
    return len(pairs) > 0 and all(np.array_equal(a, b) for a, b in pairs)


def _check_exports(
    checkpoint: Path, path: str, saved: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import AutoPeftModelForCausalLM

    assert main(["export", str(checkpoint), str(tmp_path / "adapter")]) == 0
    assert "load it with peft.AutoPeftModelForCausalLM" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "README.md", "adapter_base.json", "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert main(["export", str(checkpoint), str(tmp_path / "whole"), "--merge"]) == 0
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["dtype"] == "float32"
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in whole.state_dict().items())
    peft_model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    with own_attention(whole), torch.no_grad():
        difference = whole(IDS).logits.log_softmax(-1) - peft_model(IDS).logits.log_softmax(-1)
        base = AutoModelForCausalLM.from_pretrained(path)(IDS).logits.log_softmax(-1)
        assert float((whole(IDS).logits.log_softmax(-1) - base).abs().max()) > 1e-3
    assert float(difference.abs().max()) <= 1e-4


def test_a_checkpoint_that_could_not_be_loaded_is_not_acknowledged(tmp_path: Path) -> None:
    folder = tmp_path / checkpoints.POLICY
    folder.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json", "adapter_base.json"):
        with pytest.raises(CheckpointError, match="did not write the policy's weights"):
            checkpoints.write_manifest(tmp_path)
        (folder / name).touch()
    checkpoints.write_manifest(tmp_path)


@pytest.mark.slow
def test_weights_of_another_adapter_are_refused_when_they_are_restored(
    tiny_dense: str, ray_local: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    algorithm = _config(tiny_dense, {"rank": 4}).build_algo()
    other = _config(tiny_dense, {"rank": 8}).build_algo()
    whole = _config(tiny_dense, None).build_algo()
    try:
        checkpoint = algorithm.save_to_path(tmp_path / "rank_4")
        with pytest.raises(ModelError, match="an adapter of rank 4 and alpha 32, and this policy's has 8 and 32"):
            other.restore_from_path(checkpoint)
        # The command asks before anything is built.
        for built, message in ((other, "an adapter of rank 4 and alpha 32"), (whole, "and this policy has none")):
            with pytest.raises(ModelError, match=message):
                Resume(checkpoint=Path(checkpoint)).check_policy(built.config)
        Resume(checkpoint=Path(checkpoint)).check_policy(algorithm.config)
        with pytest.raises(ModelError, match="holds an adapter, and this policy has none"):
            whole.restore_from_path(checkpoint)
        with pytest.raises(ModelError, match="holds a whole model, and this policy has an adapter"):
            algorithm.restore_from_path(whole.save_to_path(tmp_path / "whole"))
        with pytest.raises(ModelError, match="the state lacks"):
            algorithm.set_state(whole.get_state())
    finally:
        for each in (algorithm, other, whole):
            each.stop()
    assert main(["export", str(tmp_path / "whole"), str(tmp_path / "x"), "--merge"]) == 2
    assert "holds a whole model and no adapter; leave --merge out" in capsys.readouterr().err

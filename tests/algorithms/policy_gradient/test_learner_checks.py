"""Sharded learners: what is refused before anything starts, and what a config, a file and a page say of the setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.cli.main import main
from gspo_rllib.errors import ModelError, SettingError
from gspo_rllib.learners.sharding_settings import LearnersSettings, shards


def _config(path: str, **learners: Any) -> GSPOConfig:
    return (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0")
        .rl_module(model_config={"path": path})
        .generation(engine="transformers")
        .learners(**{"num_learners": 2, "sharding": "fsdp2", **learners})
    )


def test_two_learners_may_share_a_model(tiny_dense: str) -> None:
    config = _config(tiny_dense)
    config.validate()
    assert shards(config) and not shards(GSPOConfig()) and not shards(object())
    # RLlib's own arguments go on, and the default costs nothing.
    assert config.num_learners == 2 and GSPOConfig().sharding == LearnersSettings().sharding == "none"


@pytest.mark.parametrize("number", [0, 1])
def test_one_learner_has_nobody_to_share_with(tiny_dense: str, number: int) -> None:
    with pytest.raises(SettingError, match=f"num_learners is {number}: there is nobody to share the model with"):
        _config(tiny_dense, num_learners=number).validate()


@pytest.mark.parametrize("value", ["fsdp", "FSDP2", "zero3", None, 2, True])
def test_another_value_is_refused_with_those_there_are(tiny_dense: str, value: Any) -> None:
    with pytest.raises(SettingError, match=r"learners\.sharding is .*; allowed: 'none', 'fsdp2'"):
        _config(tiny_dense, sharding=value).validate()


def test_a_misspelt_name_is_refused(tiny_dense: str) -> None:
    with pytest.raises(SettingError, match="sharding"):
        _config(tiny_dense).learners(shardin="fsdp2")


def test_what_goes_to_the_other_kind_of_learners_is_refused(tiny_dense: str) -> None:
    config = _config(tiny_dense).framework(torch_ddp_kwargs={"bucket_cap_mb": 1})
    with pytest.raises(SettingError, match="torch_ddp_kwargs"):
        config.validate()


def test_passes_that_one_learner_would_make_alone_are_refused(tiny_dense: str) -> None:
    config = _config(tiny_dense).rl_module(model_config={"path": tiny_dense, "max_activation_gb": 1})
    with pytest.raises(SettingError, match=r"max_activation_gb'\] is 1 with learners.sharding='fsdp2'"):
        config.validate()


def test_a_part_of_a_gpu_is_refused(tiny_dense: str) -> None:
    with pytest.raises(SettingError, match=r"num_gpus_per_learner is 0\.5"):
        _config(tiny_dense, num_gpus_per_learner=0.5).validate()


def test_a_model_that_does_not_say_which_its_layers_are_is_refused(
    tiny_dense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gspo_rllib.modules.sharding.decoder_layers", lambda model: iter(()))
    with pytest.raises(ModelError, match="Qwen3ForCausalLM cannot be sharded: it does not say which its layers are"):
        _config(tiny_dense).validate()
    _config(tiny_dense, sharding="none").validate()


def test_an_evaluation_has_no_say_in_it(tiny_dense: str) -> None:
    config = _config(tiny_dense, sharding="none").evaluation(
        evaluation_interval=1, evaluation_config={"sharding": "fsdp2"}
    )
    with pytest.raises(SettingError, match="has no effect on an evaluation"):
        config.validate()


def test_a_run_of_a_file_takes_it_and_plan_reckons_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8 B parameters x 4 bytes over 8 learners: 4 GB of weights each, 8 of moments; layers and head are gathered."""
    sizes = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 256, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "intermediate_size": 512,
        "vocab_size": 4096, "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    asked = [f"rl_module.model_config.path={tmp_path}", "--gpus", "8", "--memory", "80"]
    sharded = [*asked, "learners.num_learners=8", "learners.sharding=fsdp2"]
    assert main(["plan", "quickstart", *sharded, "--params", "8e9"]) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["weights", "4.000", "GB"] in said and ["optimiser", "8.000", "GB"] in said
    assert [line for line in said if line[:1] == ["gathered"]] and not [
        line for line in said if line[:1] == ["buckets"]
    ]
    assert main(["plan", "quickstart", *asked, "--params", "8e9"]) == 1
    assert "learners.sharding=fsdp2 over 6 learners or more (8 GPUs are given)" in capsys.readouterr().out


COMPILED: dict[str, Any] = {"torch_compile_learner": True, "torch_compile_learner_dynamo_backend": "eager"}


def test_one_learner_may_compile_its_layers(tiny_dense: str) -> None:
    config = _config(tiny_dense, num_learners=1, sharding="none").framework(**COMPILED)
    config.validate()
    assert config.model_config["compiled"] == ["eager", None]
    assert "compiled" not in _config(tiny_dense).model_config


@pytest.mark.parametrize(
    ("learners", "model", "framework", "message"),
    [
        ({"num_learners": 2}, {}, {}, "torch_compile_learner is True with 2 learners"),
        ({}, {"activation_checkpointing": True}, {}, r"True with rl_module.model_config\['activation_checkpointing'\]"),
        ({}, {"max_activation_gb": 1}, {}, r"True with rl_module.model_config\['max_activation_gb'\]"),
        (
            {},
            {},
            {"torch_compile_learner_dynamo_backend": "inducter"},
            "'inducter', which torch does not have. .*inductor",
        ),
        ({}, {}, {"torch_compile_learner_dynamo_mode": "max"}, "mode is 'max', which torch does not have"),
        ({}, {}, {"torch_compile_learner_what_to_compile": "complete_update"}, "each decoder layer"),
        ({}, {}, {"torch_compile_worker": True}, "no module to compile"),
        ({}, {}, {"torch_compile_learner": "yes"}, "torch_compile_learner is 'yes'"),
    ],
)
def test_what_cannot_be_compiled_is_refused(
    tiny_dense: str, learners: dict[str, Any], model: dict[str, Any], framework: dict[str, Any], message: str
) -> None:
    config = _config(tiny_dense, **{"num_learners": 0, "sharding": "none", **learners})
    config = config.rl_module(model_config={"path": tiny_dense, **model})
    with pytest.raises(SettingError, match=message):
        config.framework(**{**COMPILED, **framework}).validate()


def test_what_is_held_to_its_experts_is_neither_compiled_nor_computed_in_tiles(tiny_moe: str) -> None:
    def config(**model: Any) -> Any:
        held = _config(tiny_moe, num_learners=0, sharding="none").training(routing_replay=True, num_minibatches=2)
        return held.rl_module(model_config={"path": tiny_moe, **model})

    config(activation_checkpointing=True).validate()
    with pytest.raises(SettingError, match=r"routing_replay is True with framework.torch_compile_learner"):
        config().framework(**COMPILED).validate()
    with pytest.raises(SettingError, match=r"replay is True with .*'max_activation_gb'\] 1: .* to True instead"):
        config(max_activation_gb=1).validate()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"torch_compile_learner_dynamo_backend": "eager"}, "no effect without torch_compile_learner=True"),
        ({"torch_compile_learner_dynamo_mode": "max-autotune"}, "no effect without torch_compile_learner=True"),
        ({"torch_ddp_kwargs": {"bucket_cap_mb": 1}}, r"no effect without learners\(num_learners=2\) or more"),
    ],
)
def test_what_no_learner_would_read_is_refused(tiny_dense: str, setting: dict[str, Any], message: str) -> None:
    config = _config(tiny_dense, num_learners=1, sharding="none").framework(**setting)
    with pytest.raises(SettingError, match=message):
        config.validate()

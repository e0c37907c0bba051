"""What is said about settings is what is declared where they live, whole."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

from gspo_rllib import GRPOConfig, GSPOConfig
from gspo_rllib.configs import RunSettings, load_run
from gspo_rllib.configs.declared import Declared, declared_settings, given, matching, resolved, settings_within
from gspo_rllib.configs.runs import BUILDERS, accepted
from gspo_rllib.errors import SettingError

DECLARED = {setting.name: setting for setting in declared_settings(GSPOConfig())}


def test_every_setting_a_file_may_hold_is_there_once() -> None:
    names = [setting.name for setting in declared_settings(GSPOConfig())]
    assert len(names) == len(set(names))
    for section in BUILDERS:
        for key in accepted(inspect.signature(getattr(GSPOConfig(), section))):
            assert f"{section}.{key}" in DECLARED or f"{section}.{key}.path" in DECLARED, key
    assert {f"run.{field.name}" for field in dataclasses.fields(RunSettings)} <= DECLARED.keys()


def test_a_setting_of_ours_is_its_knob() -> None:
    assert DECLARED["training.clip_low"] == Declared(
        "training.clip_low",
        3e-4,
        "float, >= 0, <= 1",
        "How far below 1 the ratio may go before its gradient stops; used by clip, dual_clip and cispo. With log_clip: "
        "how far below 0 a token's log-ratio may go.",
        "",
        "arXiv:2507.18071v2 §5.1",
    )
    grpo = {setting.name: setting for setting in declared_settings(GRPOConfig())}
    assert grpo["training.clip_low"].default == GRPOConfig().clip_low != 3e-4
    assert all(setting.effect and setting.source for name, setting in DECLARED.items() if name.startswith("generation"))


def test_a_setting_of_rllib_is_what_rllib_says() -> None:
    runners = DECLARED["env_runners.num_env_runners"]
    assert (runners.default, runners.allowed, runners.source) == (0, "a whole number, >= 0, <= 100000", "RLlib")
    assert runners.effect == "Number of EnvRunner actors to create for parallel sampling."
    # What this project changes of RLlib's defaults is not passed off as RLlib's.
    assert DECLARED["env_runners.num_envs_per_env_runner"].source == "ours; RLlib has 1"
    assert DECLARED["framework.framework"].default == "torch"


def test_a_pattern_finds_names_then_effects() -> None:
    settings = list(DECLARED.values())
    assert {setting.name for setting in matching(settings, "clip_LOW")} == {"training.clip_low"}
    assert {setting.name for setting in matching(settings, "run.eval*s")} == {"run.evaluate_tasks"}
    found = [setting.name for setting in matching(settings, "cache")]
    assert found == ["generation.engine_dtype", "generation.colocate"]
    with pytest.raises(SettingError, match=r"'training.temprature'. Did you mean 'temperature'?"):
        matching(settings, "training.temprature")


def test_a_run_is_resolved_to_every_value_and_what_was_given(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("rl_module: {model_config: {path: models/mine}}\ntraining: {lr: 1e-5}\nrun: {iterations: 2}\n")
    run = load_run(file, ["training.group_size=4", "environment.env_config.operations=3"])
    values = resolved(run)
    assert values.keys() == DECLARED.keys()
    assert (values["training.lr"], values["training.group_size"], values["training.clip_low"]) == (1e-5, 4, 3e-4)
    assert (values["run.iterations"], values["run.checkpoint_every"]) == (2, 10)
    assert values["rl_module.model_config.path"] == "models/mine"
    assert values["rl_module.model_config.packing"] is None
    assert values["environment.env_config"] == {"operations": 3}
    assert sorted(given(run)) == [
        "environment.env_config",
        "rl_module.model_config.path",
        "run.iterations",
        "training.group_size",
        "training.lr",
    ]


def test_the_keys_of_lora_are_declared_beside_it() -> None:
    from gspo_rllib.modules.lora_settings import LoraSettings

    within = {setting.name: setting for setting in settings_within()}
    names = {f"rl_module.model_config.lora.{field.name}" for field in dataclasses.fields(LoraSettings)}
    assert within.keys() == names and DECLARED["rl_module.model_config.lora"].default is None
    assert within["rl_module.model_config.lora.rank"].allowed == "int, >= 1"


def test_a_run_with_an_adapter_records_what_was_given_of_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("rl_module: {model_config: {path: models/mine}}\nrun: {iterations: 2}\n")
    run = load_run(file, ["rl_module.model_config.lora.rank=8"])
    assert resolved(run)["rl_module.model_config.lora"] == {"rank": 8}
    assert "rl_module.model_config.lora" in given(run)

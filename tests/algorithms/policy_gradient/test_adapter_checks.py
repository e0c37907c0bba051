"""What a run with an adapter is refused for, and which reference it has."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.errors import SettingError
from tests.toy_envs.coin_env import CoinEnv


def config(path: str, lora: dict[str, Any] | None, *, engine: str = "transformers", **generation: Any) -> GSPOConfig:
    return (
        GSPOConfig()
        .environment(CoinEnv)
        .rl_module(model_config={"path": path, "lora": lora})
        .generation(engine=engine, max_tokens_per_turn=6, **generation)
    )


def test_a_sync_of_adapters_takes_an_adapter(tiny_dense: str) -> None:
    for way in ("merged", "swap"):
        with pytest.raises(SettingError, match=f"adapter_sync is '{way}', but the policy has no adapter"):
            config(tiny_dense, None, adapter_sync=way).validate()
    with pytest.raises(SettingError, match=r"adapter_sync is 'merge'; allowed: None, 'merged', 'swap'.*'merged'"):
        config(tiny_dense, {}, adapter_sync="merge").validate()
    config(tiny_dense, {}, adapter_sync="merged").validate()


def test_a_rank_that_vllm_has_no_room_for_is_refused(tiny_dense: str) -> None:
    with pytest.raises(SettingError, match=r"the adapter's rank is 513; vLLM serves 512 at most.*'merged'"):
        config(tiny_dense, {"rank": 513}, engine="vllm", adapter_sync="swap").validate()


def test_swapping_takes_vllm_and_on_a_cpu_no_mixture_of_experts(tiny_dense: str, tiny_moe: str) -> None:
    with pytest.raises(SettingError, match=r"takes engine='vllm'; it is 'transformers'\. Use adapter_sync='merged'"):
        config(tiny_dense, {}, adapter_sync="swap").validate()
    with pytest.raises(SettingError, match=r"on a CPU vLLM cannot serve a mixture of experts .*adapter_sync='merged'"):
        config(tiny_moe, {}, engine="vllm", adapter_sync="swap").validate()
    experts = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}
    on_gpus = config(tiny_moe, experts, engine="vllm", adapter_sync="swap", engine_dtype="bfloat16")
    on_gpus.env_runners(num_env_runners=1, num_gpus_per_env_runner=1)
    with pytest.raises(SettingError, match=r"the adapter updates fused experts .*adapter_sync='merged'"):
        on_gpus.validate()
    config(tiny_dense, {}, engine="vllm", adapter_sync="swap").validate()


def test_swapping_on_a_gpu_takes_bfloat16(tiny_dense: str) -> None:
    on_gpus = config(tiny_dense, {}, engine="vllm", adapter_sync="swap")
    on_gpus.env_runners(num_env_runners=1, num_gpus_per_env_runner=1)
    with pytest.raises(SettingError, match=r"serves adapters in bfloat16 only; .* float32\. .*'precision'.*'merged'"):
        on_gpus.validate()
    on_gpus.generation(engine_dtype="bfloat16").validate()


def test_the_base_is_a_free_reference(tiny_dense: str, tiny_tied: str, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tiny_dense)
    for path in (tiny_dense, str(link)):
        with pytest.raises(
            SettingError, match="That reference is free: with the adapter off, the policy is that model"
        ):
            config(tiny_dense, {}).training(kl_coeff=0.1, reference_path=path).validate()
    assert config(tiny_dense, {}).training(kl_coeff=0.1)._reference_config is None
    other = config(tiny_dense, {}).training(kl_coeff=0.1, reference_path=tiny_tied)
    other.validate()
    assert other._reference_config["path"] == tiny_tied and other._reference_config["lora"] is None


def test_an_adapter_to_start_from_leaves_no_doubt_about_the_reference(tiny_dense: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "bias": "none", "r": 8}')
    started = config(tiny_dense, {"adapter": str(tmp_path)})
    started.validate()
    with pytest.raises(SettingError, match=r"kl_coeff is 0\.1 and the policy starts from the adapter .*export --merge"):
        started.copy().training(kl_coeff=0.1).validate()
    started.training(kl_coeff=0.1, reference_path=tiny_dense).validate()
    assert started._reference_config is None


def test_experts_without_checkpointing_are_warned_about(tiny_moe: str, caplog: pytest.LogCaptureFixture) -> None:
    experts = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj"]}
    with caplog.at_level(logging.WARNING, "gspo_rllib"):
        config(tiny_moe, experts).validate()
        assert "Set activation_checkpointing to True" in caplog.text
        caplog.clear()
        model = {"path": tiny_moe, "lora": experts, "activation_checkpointing": True}
        config(tiny_moe, experts).rl_module(model_config=model).validate()
        assert "activation_checkpointing" not in caplog.text

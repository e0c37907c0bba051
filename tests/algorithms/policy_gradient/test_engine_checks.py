"""Engines over several processes: what is refused before any of them starts."""

from __future__ import annotations

from typing import Any

import pytest

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.engines import registry
from gspo_rllib.errors import EngineError, SettingError

needs_vllm = pytest.mark.skipif("vllm" not in registry.available_engines(), reason="vllm is not installed")


def _config(path: str, engine: str = "vllm", **options: Any) -> GSPOConfig:
    return (
        GSPOConfig()
        .environment("gspo_rllib.envs:gspo_rllib/Calculator-v0")
        .rl_module(model_config={"path": path})
        .generation(engine=engine, engine_options=options)
    )


@needs_vllm
@pytest.mark.parametrize("number", [1, 2, 4])
def test_as_many_as_share_the_heads_equally_are_taken(tiny_dense: str, number: int) -> None:
    _config(tiny_dense, tensor_parallel_size=number).validate()


@needs_vllm
def test_heads_that_cannot_be_shared_equally_are_refused_with_the_numbers_that_can(tiny_dense: str) -> None:
    with pytest.raises(SettingError, match=r"is 3, and the model has 4 attention heads, .*Allowed: 1, 2, 4\."):
        _config(tiny_dense, tensor_parallel_size=3).validate()


@needs_vllm
@pytest.mark.parametrize("number", [0, -1, 1.5, "two", True, None])
def test_what_is_no_number_of_processes_is_refused(tiny_dense: str, number: Any) -> None:
    with pytest.raises(SettingError, match="give the number of processes that share an engine's matrices, 1 or more"):
        _config(tiny_dense, tensor_parallel_size=number).validate()


@needs_vllm
@pytest.mark.parametrize("gpus", [0.5, 1])
def test_fewer_gpus_than_processes_are_refused(tiny_dense: str, gpus: float) -> None:
    config = _config(tiny_dense, tensor_parallel_size=2)
    with pytest.raises(SettingError, match=rf"num_gpus_per_env_runner is {gpus:g}: .*Set num_gpus_per_env_runner to 2"):
        config.env_runners(num_env_runners=1, num_gpus_per_env_runner=gpus).validate()


def test_an_engine_of_one_process_has_no_such_option(tiny_dense: str) -> None:
    with pytest.raises(SettingError, match=r"engine_options\['tensor_parallel_size'\]: the engine 'transformers' has"):
        _config(tiny_dense, "transformers", tensor_parallel_size=2).validate()
    with pytest.raises(EngineError, match="engine 'vlm' is unknown"):
        _config(tiny_dense, "vlm").validate()

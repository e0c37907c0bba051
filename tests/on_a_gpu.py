"""Tests that were written for a CPU, with engines and learners on the GPU: ``pytest -p tests.on_a_gpu tests/engines``.

The engines and RLlib's learner are told another device than they ask for; references stay where they are. vLLM runs
without CUDA graphs, which take longer to record than these tests to run, unless ``CUDA_GRAPHS=1``.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

# The tests' own setting is for CPUs, where nothing is worth compiling.
os.environ["TORCHDYNAMO_DISABLE"] = "0"

import ray.rllib.core.learner.torch.torch_learner as rllib_learner
import torch

from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.engines.registry import available_engines
from gspo_rllib.engines.transformers import TransformersEngine


def _start_on_the_gpu(engine: Any, **options: Any) -> None:
    start = engine.__init__

    def on_the_gpu(self: Any, spec: EngineSpec) -> None:
        if spec.device == "cpu":
            spec = dataclasses.replace(spec, device="cuda", options={**options, **spec.options})
        start(self, spec)

    engine.__init__ = on_the_gpu


def _gpu(*_: Any, **__: Any) -> torch.device:
    return torch.device("cuda:0")


_start_on_the_gpu(TransformersEngine)
if "vllm" in available_engines():
    from gspo_rllib.engines.vllm import VLLMEngine

    _start_on_the_gpu(VLLMEngine, **({} if os.environ.get("CUDA_GRAPHS") else {"enforce_eager": True}))
rllib_learner.get_device = _gpu

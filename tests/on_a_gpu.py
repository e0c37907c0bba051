"""Tests that were written for a CPU, with engines and learners on the GPU: ``pytest -p tests.on_a_gpu tests/engines``.

The transformers engine and RLlib's learner are told another device than they ask for; references stay where they are.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ray.rllib.core.learner.torch.torch_learner as rllib_learner
import torch

from gspo_rllib.engines.protocol import EngineSpec
from gspo_rllib.engines.transformers import TransformersEngine

_start = TransformersEngine.__init__


def _start_on_the_gpu(self: TransformersEngine, spec: EngineSpec) -> None:
    _start(self, dataclasses.replace(spec, device="cuda") if spec.device == "cpu" else spec)


def _gpu(*_: Any, **__: Any) -> torch.device:
    return torch.device("cuda:0")


TransformersEngine.__init__ = _start_on_the_gpu  # type: ignore[method-assign]
rllib_learner.get_device = _gpu

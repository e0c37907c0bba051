"""Engines that go wrong in one way each, registered under the names of their classes wherever this is imported.

Env runners in other processes import it for ``Coin``, the environment.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gspo_rllib.engines.protocol import EngineSpec, Generation, GenerationRequest
from gspo_rllib.engines.registry import register_engine
from gspo_rllib.engines.transformers import TransformersEngine
from gspo_rllib.errors import EngineLostError
from tests.toy_envs.coin_env import CoinEnv


class Coin(CoinEnv):
    """The environment for runs with these engines."""


class OneTensorStays(TransformersEngine):
    """Acknowledges weights, but keeps one tensor as its model folder has it, scaled."""

    unchanged_tensors = ("layers.0.self_attn.sinks", "layers.*.mlp.experts.w13_weight")

    def load_weights(self, named_weights: Mapping[str, np.ndarray], version: int, **kwargs: Any) -> None:
        """All but the first layer's values."""
        names = [name for name in named_weights if name.endswith("layers.0.self_attn.v_proj.weight")]
        super().load_weights({**named_weights, **{n: 0.5 * named_weights[n] for n in names}}, version, **kwargs)


class CannotBeBuilt(TransformersEngine):
    """Its constructor fails in a way of its own."""

    def __init__(self, spec: EngineSpec) -> None:
        raise LookupError("no kernel for this shape")


class FailsToStep(TransformersEngine):
    """Samples for a while, then fails."""

    left = 40

    def step(self) -> list[Generation]:
        """One step fewer is left."""
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("the kernel is gone")
        return super().step()


class RefusesRequests(TransformersEngine):
    """Refuses every request but those of the proof."""

    def submit(self, request: GenerationRequest) -> None:
        """Fails like a library that validates its arguments."""
        if not request.request_id.startswith("proof/"):
            raise ValueError("stop is not supported")
        super().submit(request)


class FailsToLoad(TransformersEngine):
    """Takes no weights at all."""

    def load_weights(self, named_weights: Mapping[str, np.ndarray], version: int, **kwargs: Any) -> None:
        """Fails like a loader that misses a name."""
        raise KeyError("model.layers.0.mlp.router.bias")


class KilledWhileBuilt(TransformersEngine):
    """The process that it would have beside its own was killed."""

    def __init__(self, spec: EngineSpec) -> None:
        raise EngineLostError("the engine's process was ended by SIGKILL")


class HangsOnce(TransformersEngine):
    """Does not answer the first request that is no proof's; the next engine with the same model folder does."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._marker = Path(spec.model) / "hung"

    def submit(self, request: GenerationRequest) -> None:
        """Hangs where none has hung yet."""
        super().submit(request)
        self._hangs = not request.request_id.startswith("proof/") and not self._marker.exists()

    def step(self) -> list[Generation]:
        """Sleeps for ever, or steps."""
        if self._hangs:
            self._marker.touch()
            threading.Event().wait()
        return super().step()


for _engine in (OneTensorStays, CannotBeBuilt, FailsToStep, RefusesRequests, FailsToLoad, HangsOnce, KilledWhileBuilt):
    register_engine(_engine.__name__, f"{__name__}:{_engine.__name__}")

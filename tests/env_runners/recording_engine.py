"""A real engine that notes what it was asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gspo_rllib.engines.protocol import Generation, GenerationRequest
from gspo_rllib.engines.transformers import TransformersEngine

MAX_MODEL_LEN = 256


class RecordingEngine:
    """A real engine that also notes what it was asked and how often it stepped."""

    def __init__(self, engine: TransformersEngine) -> None:
        self._engine = engine
        self.requests: dict[str, GenerationRequest] = {}
        self.steps = 0
        self.on_step: Callable[[int], None] = lambda step: None
        self.change: Callable[[Generation], Generation] = lambda generation: generation

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, request: GenerationRequest) -> None:
        assert request.request_id not in self.requests, "a request id was used twice"
        self.requests[request.request_id] = request
        self._engine.submit(request)

    def step(self) -> list[Generation]:
        self.steps += 1
        self.on_step(self.steps)
        return [self.change(generation) for generation in self._engine.step()]

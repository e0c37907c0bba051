"""A policy that samples any ids, and notes what it was asked and what it answered."""

from __future__ import annotations

from typing import Any

import numpy as np

from gspo_rllib.agents.messages import checked_messages
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.agents.session import Call, ChatRequest, Prepared, Sampled, Session
from gspo_rllib.engines.protocol import Generation


class MadeUpPolicy:
    """Answers calls of one session.

    Attributes:
        seen: Number of a call -> the prompt it was asked with, and the ids it answered.
    """

    def __init__(self, renderer: MessageRenderer, seed: int = 0, **limits: Any) -> None:
        self.session = Session(renderer, **({"max_model_len": 10_000, "max_tokens": 8} | limits))
        self.seen: dict[int, tuple[list[int], list[int]]] = {}
        self._random = np.random.default_rng(seed)
        self._renderer = renderer

    def ask(self, request: ChatRequest, *, delivered: bool = True, ids: list[int] | None = None) -> list[Call]:
        return self.answer(self.session.prepare(request), delivered=delivered, ids=ids)

    def answer(self, prepared: Prepared, *, delivered: bool = True, ids: list[int] | None = None) -> list[Call]:
        calls = []
        for number in prepared.numbers:
            sampled = self._random_ids(prepared.max_tokens) if ids is None else ids
            self.seen[number] = (list(prepared.prompt), list(sampled))
            logp = -self._random.random(len(sampled)).astype(np.float32)
            ended = sampled[-1] in self._renderer.stop_token_ids
            generation = Generation(f"{number}", sampled, logp, "stop" if ended else "length")
            call = self.session.record(prepared, number, Sampled(generation, version=number % 3))
            call.delivered = delivered
            calls.append(call)
        return calls

    def say(self, messages: list[Any], text: str, *, ends: bool = True, **request: Any) -> Call:
        """Answers with this text, tokenised as it is."""
        (call,) = self.ask(ChatRequest(checked_messages(messages), **request), ids=self.ids(text, ends=ends))
        return call

    def ids(self, text: str, *, ends: bool = True) -> list[int]:
        """A text tokenised as it is."""
        ids = self._renderer._tokenizer.encode(text, add_special_tokens=False)
        return [*ids, self._renderer.stop_token_ids[0]] if ends else ids

    def _random_ids(self, most: int) -> list[int]:
        count = int(self._random.integers(1, most + 1))
        ids = self._random.integers(3, 259, count).tolist()
        return [*ids[:-1], self._renderer.stop_token_ids[0]] if self._random.random() < 0.7 else ids


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}

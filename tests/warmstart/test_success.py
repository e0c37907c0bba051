"""Sampled play: what is counted, and that order does not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gspo_rllib.engines.protocol import Generation, GenerationRequest
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.warmstart.demonstrations import demonstrate, render
from gspo_rllib.warmstart.success import play_tasks
from tests.warmstart.small_policy import make_calculator


class ScriptedEngine:
    """Answers every context with the reply that a function chooses for its text."""

    max_model_len = 512
    weights_version = 0

    def __init__(self, renderer: ChatRenderer, reply: Any, max_model_len: int = 512) -> None:
        self.renderer = renderer
        self.reply = reply
        self.max_model_len = max_model_len
        self.contexts: list[list[int]] = []
        self.waiting: list[GenerationRequest] = []

    def submit(self, request: GenerationRequest) -> None:
        assert len(request.prompt_token_ids) + request.max_tokens <= self.max_model_len
        self.contexts.append(request.prompt_token_ids)
        self.waiting.append(request)

    def has_work(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Generation]:
        request = self.waiting.pop()  # the last first: games must not rely on order
        ids = self.renderer.reply(self.reply(self.renderer.decode(request.prompt_token_ids)))[: request.max_tokens]
        reason = "stop" if ids[-1] in self.renderer.stop_token_ids else "length"
        return [Generation(request.request_id, ids, np.zeros(len(ids), np.float32), reason)]


def test_play_reports_what_the_policy_did(tiny_dense) -> None:
    env = make_calculator()
    renderer = ChatRenderer(load_tokenizer(tiny_dense), env.unwrapped.chat)
    expert = env.unwrapped.expert()

    def reply(text: str) -> str:
        return expert(text.removesuffix("\nassistant\n").rpartition("\n")[2])

    engine = ScriptedEngine(renderer, reply)
    report = play_tasks(engine, renderer, make_calculator, range(20), temperature=1.0)
    assert (report.success, report.mean_return, report.mean_turns) == (1.0, 1.0, 3.0)
    lengths = [len(render(demonstrate(env, seed), renderer).token_ids) for seed in range(20)]
    assert report.mean_tokens == pytest.approx(np.mean(lengths))
    assert report.max_tokens == max(lengths)

    report = play_tasks(ScriptedEngine(renderer, lambda _: "?"), renderer, make_calculator, range(20), temperature=1.0)
    assert (report.success, report.mean_turns) == (0.0, 6.0)


def test_play_counts_a_context_that_is_full_as_it_stands(tiny_dense) -> None:
    env = make_calculator()
    renderer = ChatRenderer(load_tokenizer(tiny_dense), env.unwrapped.chat)
    length = len(renderer.first_prompt(env.reset(seed=0)[0]))
    engine = ScriptedEngine(renderer, lambda _: "a reply that never ends", max_model_len=length + 3)
    report = play_tasks(engine, renderer, make_calculator, [0], temperature=1.0)
    assert (report.success, report.mean_turns) == (0.0, 1.0)

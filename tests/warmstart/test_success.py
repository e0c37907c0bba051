"""Sampled play: what is counted, and that order does not matter."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from gspo_rllib.engines.protocol import Generation, GenerationRequest
from gspo_rllib.env_pool.factory import check_language_env_spec
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.envs.spaces import UnicodeText
from gspo_rllib.errors import EnvError
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.warmstart.demonstrations import demonstrate, render
from gspo_rllib.warmstart.success import Player, PlayReport, held_out_seeds
from tests.warmstart.small_policy import CALCULATOR, make_calculator


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

    def abort(self, request_ids: list[str]) -> None:
        self.waiting = [request for request in self.waiting if request.request_id not in request_ids]

    def step(self) -> list[Generation]:
        request = self.waiting.pop()  # the last first: games must not rely on order
        ids = self.renderer.reply(self.reply(self.renderer.decode(request.prompt_token_ids)))[: request.max_tokens]
        reason = "stop" if ids[-1] in self.renderer.stop_token_ids else "length"
        return [Generation(request.request_id, ids, np.zeros(len(ids), np.float32), reason)]


def player(engine: ScriptedEngine, env: Any = CALCULATOR, **env_config: Any) -> Player:
    spec = check_language_env_spec(env, env_config or ({"operations": 2} if env == CALCULATOR else {}))
    return Player(engine, spec, engine.renderer, num_slots=8, run_seed=0)


def played(player: Player, number: int, **changes: Any) -> PlayReport:
    report = player.play(range(number), 1.0, **{"at_a_time": number, **changes})
    player.close()
    assert report is not None
    return report


def test_play_reports_what_the_policy_did(tiny_dense) -> None:
    env = make_calculator()
    renderer = ChatRenderer(load_tokenizer(tiny_dense), env.unwrapped.chat)
    expert = env.unwrapped.expert()

    def reply(text: str) -> str:
        return expert(text.removesuffix("\nassistant\n").rpartition("\n")[2])

    report = played(player(ScriptedEngine(renderer, reply)), 20)
    assert (report.num_tasks, report.success, report.mean_return, report.mean_turns) == (20, 1.0, 1.0, 3.0)
    lengths = [len(render(demonstrate(env, seed), renderer).token_ids) for seed in held_out_seeds(range(20), 0)]
    assert report.mean_tokens == pytest.approx(np.mean(lengths))
    assert report.max_tokens == max(lengths)

    report = played(player(ScriptedEngine(renderer, lambda _: "?")), 20)
    assert (report.success, report.mean_turns) == (0.0, 6.0)


def test_play_counts_a_context_that_is_full_as_it_stands(tiny_dense) -> None:
    env = make_calculator()
    renderer = ChatRenderer(load_tokenizer(tiny_dense), env.unwrapped.chat)
    (seed,) = held_out_seeds(range(1), 0)
    length = len(renderer.first_prompt(env.reset(seed=seed)[0]))
    engine = ScriptedEngine(renderer, lambda _: "a reply that never ends", max_model_len=length + 3)
    report = played(player(engine), 1)
    assert (report.success, report.mean_turns) == (0.0, 1.0)


@pytest.mark.parametrize(("bound", "played_tasks"), [(None, 96), (0.3, 32), (0.05, 96)])
def test_play_ends_after_the_first_part_that_leaves_no_doubt(tiny_dense, bound, played_tasks) -> None:
    renderer = ChatRenderer(load_tokenizer(tiny_dense), make_calculator().unwrapped.chat)
    engine = ScriptedEngine(renderer, lambda _: "?")
    assert played(player(engine), 96, at_a_time=32, bound=bound).num_tasks == played_tasks


def test_play_that_is_stopped_counts_whole_parts_and_leaves_the_engine_idle(tiny_dense) -> None:
    renderer = ChatRenderer(load_tokenizer(tiny_dense), make_calculator().unwrapped.chat)
    engine = ScriptedEngine(renderer, lambda _: "?")
    # Six turns a task: the third part is under way at the 400th turn.
    report = played(player(engine), 96, at_a_time=32, stop=lambda: len(engine.contexts) >= 400)
    assert report.num_tasks == 64
    assert not engine.has_work()
    assert player(engine).play(range(8), 1.0, at_a_time=8, stop=lambda: True) is None


class AlwaysFails(gymnasium.Env[str, str]):
    """A text environment that cannot be reset."""

    observation_space = UnicodeText()
    action_space = UnicodeText()
    metadata = {"blocking": False}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        raise RuntimeError("no such world")


def test_an_environment_that_always_fails_is_said_not_counted(tiny_dense) -> None:
    renderer = ChatRenderer(load_tokenizer(tiny_dense))
    with pytest.raises(EnvError, match="no such world"):
        played(player(ScriptedEngine(renderer, lambda _: "?"), AlwaysFails), 4)

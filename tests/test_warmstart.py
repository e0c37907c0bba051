"""Warm start: models built from nothing, demonstrations, sampled play, and imitation up to a chosen success."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import EngineSpec, Generation, GenerationRequest
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.envs.spaces import UnicodeText
from gspo_rllib.errors import EnvError, SettingError
from gspo_rllib.model_folder import load_tokenizer
from gspo_rllib.warmstart import WarmstartResult, warmstart
from gspo_rllib.warmstart.demonstrations import demonstrate, render, tokenizer_texts
from gspo_rllib.warmstart.imitation import _Teacher
from gspo_rllib.warmstart.models import SPECIAL_TOKENS, build_model
from gspo_rllib.warmstart.success import PlayReport, play_tasks

CALCULATOR = "gspo_rllib.envs:gspo_rllib/Calculator-v0"
SMALL = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 32,
    "intermediate_size": 128,
}


def make_calculator() -> gymnasium.Env[str, str]:
    return gymnasium.make(CALCULATOR, operations=2)


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


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> tuple[WarmstartResult, list[str]]:
    """A policy for one operation, imitated to at least 40 % sampled success."""
    lines: list[str] = []
    out = tmp_path_factory.mktemp("warmstart") / "seed"
    result = warmstart(
        CALCULATOR, {"operations": 1}, out, target_success=0.4, sizes=SMALL, lr=4e-3, seed=1, progress=lines.append
    )
    return result, lines


def test_imitation_stops_at_the_chosen_success(learnt) -> None:
    result, lines = learnt
    assert result.reached
    assert 0.25 <= result.success <= 0.85
    assert "sampled success" in lines[-1]


def test_the_saved_folder_plays_as_reported(learnt) -> None:
    result, _ = learnt
    renderer = ChatRenderer(load_tokenizer(result.path), make_calculator().unwrapped.chat)
    model = AutoModelForCausalLM.from_pretrained(result.path)
    assert model.dtype == torch.float32
    spec = EngineSpec("transformers", result.path, "float32", 512, 64, renderer.stop_token_ids)
    engine = registry.acquire(spec)
    engine.load_weights({name: tensor.numpy() for name, tensor in model.state_dict().items()}, 1)
    report = play_tasks(
        engine, renderer, lambda: gymnasium.make(CALCULATOR, operations=1), range(5_000, 5_256), temperature=1.0
    )
    registry.release(engine)
    assert abs(report.success - result.success) < 0.15, "four standard errors of two samples of 256"


def test_the_report_is_written_beside_the_model(learnt) -> None:
    result, _ = learnt
    report = json.loads((Path(result.path) / "warmstart.json").read_text())
    assert report["env"] == CALCULATOR
    assert report["env_config"] == {"operations": 1}
    assert report["success"] == result.success
    assert (report["seed"], report["steps"]) == (1, result.steps)


def test_an_earlier_warm_start_is_replaced_but_nothing_else_ever(learnt, tmp_path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("precious")
    with pytest.raises(SettingError, match="not an earlier warm start"):
        warmstart(CALCULATOR, {"operations": 1}, mine, sizes=SMALL, max_minutes=0, progress=None)
    assert (mine / "notes.txt").read_text() == "precious"

    earlier = tmp_path / "earlier"
    earlier.mkdir()
    (earlier / "warmstart.json").write_text("{}")
    result = warmstart(CALCULATOR, {"operations": 1}, earlier, sizes=SMALL, max_minutes=0, progress=None)
    assert not result.reached
    assert result.steps == 1
    assert json.loads((earlier / "warmstart.json").read_text())["reached"] is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier", "mine"]


def test_an_interrupted_warm_start_never_looks_finished(tmp_path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warmstart(CALCULATOR, {"operations": 1}, tmp_path / "out", sizes=SMALL, progress=interrupt)
    assert not (tmp_path / "out").exists()


class NoExpertEnv(gymnasium.Env[str, str]):
    """A text environment that nobody can demonstrate."""

    observation_space = UnicodeText()
    action_space = UnicodeText()


@pytest.mark.parametrize(
    ("env", "changes", "error", "complaint"),
    [
        (NoExpertEnv, {}, EnvError, r"no expert\(\)"),
        (CALCULATOR, {"target_success": 0.0}, SettingError, "target_success=0.0: must be above 0"),
        (CALCULATOR, {"target_success": 35}, SettingError, "at most 1"),
        (CALCULATOR, {"architecture": "qwen3moe"}, SettingError, "Did you mean 'qwen3_moe'"),
        (CALCULATOR, {"sizes": {"hiden_size": 64}}, SettingError, "Did you mean 'hidden_size'"),
        ("gspo_rllib.envs:gspo_rllib/Calculator-v1", {}, EnvError, "Calculator-v1"),
    ],
)
def test_a_wrong_argument_is_refused_before_any_work(tmp_path, env, changes, error, complaint) -> None:
    with pytest.raises(error, match=complaint):
        warmstart(env, {}, tmp_path / "out", progress=None, **changes)
    assert not any(tmp_path.iterdir())


def test_a_demonstration_marks_exactly_the_replies(tiny_dense) -> None:
    env = make_calculator()
    renderer = ChatRenderer(load_tokenizer(tiny_dense), env.unwrapped.chat)
    transcript = demonstrate(env, seed=3)
    assert len(transcript.replies) == 3
    assert transcript.roles == ("user", "tool", "tool")
    shown = render(transcript, renderer)
    marked = shown.token_ids[shown.is_reply].tolist()
    assert marked == [i for reply in transcript.replies for i in renderer.reply(reply)]
    whole = [{"role": "system", "content": env.unwrapped.chat.system_prompt}]
    for observation, role, reply in zip(transcript.observations, transcript.roles, transcript.replies, strict=True):
        whole += [{"role": role, "content": observation}, {"role": "assistant", "content": reply}]
    rendered = load_tokenizer(tiny_dense).apply_chat_template(whole, tokenize=True, return_dict=False)
    assert shown.token_ids.tolist() == rendered[: len(shown.token_ids)]


def test_mistakes_are_replies_that_are_right_elsewhere_at_the_rate_asked_for() -> None:
    env = make_calculator()
    assert demonstrate(env, 3, mistake_rate=0.0, wrong_replies=["answer 1"]) == demonstrate(env, 3)
    always = demonstrate(env, 3, mistake_rate=1.0, wrong_replies=["1+1"])
    assert set(always.replies) == {"1+1"}
    assert always.mistakes == len(always.replies) == env.unwrapped.max_turns
    sometimes = [demonstrate(env, seed, mistake_rate=0.2, wrong_replies=["answer 100"]) for seed in range(400)]
    replies = [reply for transcript in sometimes for reply in transcript.replies]
    assert sum(transcript.mistakes for transcript in sometimes) == replies.count("answer 100")
    assert 0.16 < replies.count("answer 100") / len(replies) < 0.24
    solved = [transcript for transcript in sometimes if transcript.replies[-1] != "answer 100"]
    assert len(solved) > 350, "after a mistake that costs only a turn the expert still solves the task"


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


def test_the_tokenizer_knows_the_words_of_the_environment(tmp_path) -> None:
    texts = tokenizer_texts(make_calculator(), range(50))
    tokenizer = AutoTokenizer.from_pretrained(build_model(tmp_path, texts=texts, vocab_size=512, **SMALL))
    prompt = make_calculator().unwrapped.chat.system_prompt
    assert len(tokenizer.encode(prompt)) < 2 * len(prompt.split())
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("answer 42+137")) == [
        "answer", "\u0120", "4", "2", "+", "1", "3", "7"
    ]  # fmt: skip


def folder_state(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_a_seed_fixes_the_model_and_leaves_the_global_random_state_alone(tmp_path) -> None:
    before = torch.get_rng_state()
    first = folder_state(build_model(tmp_path / "a", seed=5, **SMALL))
    torch.rand(3)
    assert folder_state(build_model(tmp_path / "b", seed=5, **SMALL)) == first
    other = folder_state(build_model(tmp_path / "c", seed=6, **SMALL))
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}
    torch.set_rng_state(before)
    build_model(tmp_path / "d", seed=5, **SMALL)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("model", ["tiny_dense", "tiny_tied", "tiny_moe"])
def test_the_fixtures_load_and_prefer_some_tokens(model, request) -> None:
    path = request.getfixturevalue(model)
    policy, tokenizer = AutoModelForCausalLM.from_pretrained(path), load_tokenizer(path)
    assert policy.dtype == torch.float32
    assert policy.config.vocab_size == len(tokenizer) == 320
    assert policy.config.tie_word_embeddings == (model == "tiny_tied")
    assert policy.config.model_type == ("qwen3_moe" if model == "tiny_moe" else "qwen3")
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == list(SPECIAL_TOKENS)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2) == (policy.config.pad_token_id, 2)
    logits = policy(torch.tensor([tokenizer.encode("What is 3+4?")])).logits
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert entropy < 0.85 * np.log(320)


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ({"vocab_size": 100}, "at least 259"),
        ({"num_heads": 4, "num_kv_heads": 3}, "must divide num_heads=4"),
        ({"architecture": "qwen3_moe", "num_experts": 2, "num_experts_per_token": 3}, "1 to num_experts=2"),
        ({"architecture": "llama"}, "Allowed: qwen3, qwen3_moe"),
    ],
)
def test_an_illegal_size_is_refused(tmp_path, sizes, complaint) -> None:
    with pytest.raises(SettingError, match=complaint):
        build_model(tmp_path / "model", **sizes)
    assert not (tmp_path / "model").exists()


class ForgivenStudent:
    """Stands in for minutes of imitation: it succeeds unless four replies in five of its expert are mistakes."""

    turns_per_demonstration = 5.0
    mistake_rate = 0.0

    def next_batch(self) -> list[Any]:
        return []

    def learn(self, batch: list[Any], lr: float) -> tuple[float, float]:
        return 0.0, 0.0

    def play(self, tasks: range, temperature: float) -> PlayReport:
        return PlayReport(0.3 if self.mistake_rate > 0.8 else 0.9, 0.0, 5.0, 10.0, 10)


def test_where_mistakes_are_forgiven_the_expert_errs_until_success_falls() -> None:
    student, said = ForgivenStudent(), []
    teacher = _Teacher(student, 1.0, 1e-3, time.monotonic() + 30.0, said.append)
    assert teacher.lower_success(0.35)
    rates = [line for line in said if "are mistakes" in line]
    # One mistake in five turns would cost 0.8 * 0.35 of the episodes: 22 %; then half as many again, each time.
    assert [line.partition("now on ")[2].partition(" of")[0] for line in rates] == ["22%", "34%", "51%", "76%", "90%"]

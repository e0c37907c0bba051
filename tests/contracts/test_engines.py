"""What every engine keeps: exact log-probabilities, reproducible samples, honest refusals, and no stale cache.

Each engine runs every claim on a dense, a tied and a mixture-of-experts model. The reference is transformers' own full
forward pass in float32.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import Engine, EngineSpec, Generation, GenerationRequest
from gspo_rllib.errors import EngineError, WeightSyncError
from gspo_rllib.model_folder import load_tokenizer

MAX_MODEL_LEN = 256
STOP = tuple(range(6))
EXACT = 1e-4
MODELS = ("dense", "tied", "moe")
CASES = [
    *(f"transformers-{model}" for model in MODELS),
    pytest.param("vllm-dense", marks=pytest.mark.vllm),
    *(pytest.param(f"vllm-{model}", marks=[pytest.mark.vllm, pytest.mark.slow]) for model in ("tied", "moe")),
]

_names = (f"request {i}" for i in count())


@dataclass
class Case:
    """An engine and the model it must agree with."""

    engine: Engine
    reference: Any
    refused_before_weights: Exception | None = None
    version: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def weights(self) -> dict[str, np.ndarray]:
        arrays = {name: tensor.numpy().copy() for name, tensor in self.reference.state_dict().items()}
        for array in arrays.values():
            array.flags.writeable = False  # as they come out of Ray's object store
        return arrays

    def perturb(self) -> None:
        """Moves every parameter of the reference, by enough to change each log-probability visibly."""
        with torch.no_grad():
            for parameter in self.reference.parameters():
                noise = self.rng.normal(size=tuple(parameter.shape), scale=0.03)
                parameter.add_(torch.from_numpy(noise.astype(np.float32)))

    def sync(self) -> None:
        self.version += 1
        self.engine.load_weights(self.weights(), self.version)

    def prompt(self, length: int) -> list[int]:
        return self.rng.integers(0, 320, length).tolist()

    def error(self, request: GenerationRequest, generation: Generation) -> float:
        """Largest |Δ log-probability| between what the engine says and the reference model."""
        ids = request.prompt_token_ids + generation.token_ids
        with torch.no_grad():
            logits = self.reference(torch.tensor([ids])).logits[0, len(request.prompt_token_ids) - 1 : -1]
        logp = torch.log_softmax(logits / (request.temperature or 1.0), dim=-1)
        expected = logp.gather(1, torch.tensor(generation.token_ids).unsqueeze(1)).squeeze(1).numpy()
        return float(np.abs(expected - generation.logp).max())


def request(
    prompt: list[int], *, max_tokens: int = 12, temperature: float = 1.0, seed: int = 0, stop: tuple[str, ...] = ()
) -> GenerationRequest:
    return GenerationRequest(next(_names), prompt, max_tokens, temperature, seed, stop)


def run(engine: Engine, requests: list[GenerationRequest]) -> list[Generation]:
    """Answers in the order of the requests."""
    for item in requests:
        engine.submit(item)
    done = drain(engine)
    return [done[item.request_id] for item in requests]


def drain(engine: Engine) -> dict[str, Generation]:
    done: dict[str, Generation] = {}
    while engine.has_work():
        done.update((generation.request_id, generation) for generation in engine.step())
    return done


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tiny_dense: str, tiny_tied: str, tiny_moe: str) -> Iterator[Case]:
    engine_name, model_name = request.param.split("-")
    if engine_name not in registry.available_engines():
        pytest.skip(f"{engine_name} is not installed")
    path = {"dense": tiny_dense, "tied": tiny_tied, "moe": tiny_moe}[model_name]
    reference = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    engine = registry.acquire(EngineSpec(engine_name, path, "float32", MAX_MODEL_LEN, 16, STOP, seed=3))
    case = Case(engine, reference)
    try:
        engine.submit(GenerationRequest("early", [10], 1, 1.0, 0))
    except EngineError as error:
        case.refused_before_weights = error
    case.sync()
    yield case
    registry.release(engine)


def test_requests_are_refused_until_weights_arrive(case: Case) -> None:
    assert "load_weights" in str(case.refused_before_weights)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_log_probabilities_are_those_of_the_model_at_the_temperature(case: Case, temperature: float) -> None:
    requests = [request(case.prompt(n), temperature=temperature, seed=n) for n in (1, 2, 31, 64, 65, 130)]

    generations = run(case.engine, requests)

    assert max(map(case.error, requests, generations)) < EXACT
    assert all(g.logp.dtype == np.float32 and len(g.logp) == len(g.token_ids) for g in generations)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_stay_exact_after_three_updates(case: Case, temperature: float) -> None:
    for _ in range(3):
        before = case.weights()
        case.perturb()
        case.sync()
        requests = [request(case.prompt(n), temperature=temperature, seed=n) for n in (3, 40, 100)]

        generations = run(case.engine, requests)

        assert max(map(case.error, requests, generations)) < EXACT
        assert case.engine.weights_version == case.version
        changed = Case(case.engine, AutoModelForCausalLM.from_config(case.reference.config))
        changed.reference.load_state_dict({name: torch.tensor(array) for name, array in before.items()})
        assert max(map(changed.error, requests, generations)) > 0.05, "the update was too small to be noticed"


def test_samples_follow_the_distribution_at_the_temperature(case: Case) -> None:
    prompt, draws, temperature = case.prompt(20), 600, 0.7
    with torch.no_grad():
        probability = torch.softmax(case.reference(torch.tensor([prompt])).logits[0, -1] / temperature, dim=-1).numpy()

    requests = [request(prompt, max_tokens=1, temperature=temperature, seed=seed) for seed in range(draws)]
    sampled = np.array([generation.token_ids[0] for generation in run(case.engine, requests)])

    for token in probability.argsort()[-4:]:
        deviation = abs((sampled == token).mean() - probability[token])
        assert deviation < 4 * np.sqrt(probability[token] * (1 - probability[token]) / draws)


def test_temperature_zero_picks_the_most_likely_token(case: Case) -> None:
    asked = request(case.prompt(10), temperature=0.0, max_tokens=8)
    ids = asked.prompt_token_ids + run(case.engine, [asked])[0].token_ids

    with torch.no_grad():
        best = case.reference(torch.tensor([ids])).logits[0].argmax(dim=-1).tolist()

    assert ids[10:] == best[9 : len(ids) - 1]


def test_a_later_turn_reuses_the_earlier_ones_and_stays_exact(case: Case) -> None:
    contexts = [case.prompt(70) for _ in range(4)]
    reused = []
    for turn in range(3):
        requests = [request(context, seed=turn, temperature=0.7) for context in contexts]
        generations = run(case.engine, requests)
        assert max(map(case.error, requests, generations)) < EXACT
        reused.append([generation.num_cached_tokens for generation in generations])
        observations = [case.prompt(9) for _ in contexts]
        contexts = [c + g.token_ids + o for c, g, o in zip(contexts, generations, observations, strict=True)]

    assert min(reused[1]) >= 64 and min(reused[2]) >= 64


def test_requests_may_join_while_others_run(case: Case) -> None:
    first = [request(case.prompt(50), max_tokens=20, seed=1), request(case.prompt(5), max_tokens=30, seed=2)]
    late = [request(case.prompt(33), max_tokens=15, seed=3), request(case.prompt(1), max_tokens=5, seed=4)]
    done = {}
    for item in first:
        case.engine.submit(item)
    for _ in range(4):
        done.update((g.request_id, g) for g in case.engine.step())
    assert not done, "nothing was left to join"
    for item in late:
        case.engine.submit(item)
    done.update(drain(case.engine))

    assert max(case.error(item, done[item.request_id]) for item in first + late) < EXACT


def test_a_seed_fixes_the_samples_whatever_else_runs(case: Case) -> None:
    prompt = case.prompt(17)

    alone = run(case.engine, [request(prompt, seed=2**62 + 11)])[0]
    crowd = [request(case.prompt(n), seed=n) for n in (1, 8, 60, 9)]
    together = run(case.engine, [*crowd, request(prompt, seed=2**62 + 11)])[-1]
    other = run(case.engine, [request(prompt, seed=12)])[0]

    assert alone.token_ids == together.token_ids != other.token_ids
    np.testing.assert_allclose(alone.logp, together.logp, atol=EXACT)


def test_a_stop_id_ends_the_turn_and_belongs_to_it(case: Case) -> None:
    requests = [request(case.prompt(4), max_tokens=180, seed=seed) for seed in range(8)]
    requests += [request(case.prompt(4), max_tokens=2, seed=seed) for seed in range(8)]

    generations = run(case.engine, requests)

    assert {generation.finish_reason for generation in generations} == {"stop", "length"}
    for asked, generation in zip(requests, generations, strict=True):
        *others, last = generation.token_ids
        assert not set(others) & set(STOP)
        assert (last in STOP) == (generation.finish_reason == "stop")
        assert last in STOP or len(generation.token_ids) == asked.max_tokens


def test_a_stop_string_ends_the_turn_after_the_token_that_completes_it(case: Case) -> None:
    tokenizer = load_tokenizer(case.reference.name_or_path)
    prompts = [case.prompt(9) for _ in range(24)]
    free = run(case.engine, [request(p, max_tokens=40, seed=n) for n, p in enumerate(prompts)])
    asked, expected = [], []
    for number, (prompt, whole) in enumerate(zip(prompts, free, strict=True)):
        text = tokenizer.decode(whole.token_ids, skip_special_tokens=True)
        spans = [text[i : i + 3] for i in range(4, len(text) - 3) if text[i : i + 3].isascii()]
        if not spans:
            continue
        stop = ("never sampled", spans[len(spans) // 2])
        lengths = range(1, len(whole.token_ids) + 1)
        prefixes = [tokenizer.decode(whole.token_ids[:length], skip_special_tokens=True) for length in lengths]
        expected.append(next(n for n, prefix in zip(lengths, prefixes, strict=True) if stop[1] in prefix))
        # The last token that may be sampled completes some of the strings: it still ends the turn by itself.
        most = expected[-1] if number % 3 == 0 else 40
        asked.append((request(prompt, max_tokens=most, seed=number, stop=stop), whole))
    assert len(asked) > 5, "the model wrote too little text to stop in"

    generations = run(case.engine, [*(item for item, _ in asked), request(prompts[0], max_tokens=40, seed=0)])

    for (item, whole), length, generation in zip(asked, expected, generations, strict=False):
        assert generation.token_ids == whole.token_ids[:length]
        assert generation.finish_reason == "stop"
        np.testing.assert_allclose(generation.logp, whole.logp[:length], atol=EXACT)
        assert case.error(item, generation) < EXACT
    assert any(generation.token_ids[-1] not in STOP for generation in generations)
    assert generations[-1].token_ids == free[0].token_ids, "a request beside them knows nothing of their strings"


def test_a_stop_string_in_a_prompt_that_ends_within_a_character_ends_nothing(case: Case) -> None:
    tokenizer = load_tokenizer(case.reference.name_or_path)
    prompt = [*tokenizer.encode("abc"), *tokenizer.encode("€")[:1]]  # the first of its three bytes

    free = run(case.engine, [request(prompt)])[0]
    asked = run(case.engine, [request(prompt, stop=("abc",))])[0]

    assert "abc" not in tokenizer.decode(free.token_ids)
    assert asked.token_ids == free.token_ids


def test_a_context_may_fill_the_model_exactly(case: Case) -> None:
    asked = request(case.prompt(MAX_MODEL_LEN - 1), max_tokens=1)

    assert case.error(asked, run(case.engine, [asked])[0]) < EXACT


def test_an_aborted_request_disappears_and_the_others_go_on(case: Case) -> None:
    kept, dropped = request(case.prompt(12), seed=5), request(case.prompt(12), max_tokens=60, seed=6)
    case.engine.submit(kept)
    case.engine.submit(dropped)
    assert case.engine.step() == []

    case.engine.abort([dropped.request_id, "never submitted"])
    finished = drain(case.engine)

    assert list(finished) == [kept.request_id]
    assert case.error(kept, finished[kept.request_id]) < EXACT


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GenerationRequest("long", [10] * 250, 7, 1.0, 0), "at most 6 tokens"),
        (GenerationRequest("empty", [], 5, 1.0, 0), "at least one token id"),
        (GenerationRequest("id", [10, 320], 5, 1.0, 0), "320 is outside the model's vocabulary"),
        (GenerationRequest("negative id", [-1, 10], 5, 1.0, 0), "-1 is outside"),
        (GenerationRequest("nothing", [10], 0, 1.0, 0), "max_tokens is 0"),
        (GenerationRequest("cold", [10], 5, -0.5, 0), "temperature is -0.5"),
        (GenerationRequest("empty stop", [10], 5, 1.0, 0, ("a", "")), "must not be empty"),
        (GenerationRequest("nan", [10], 5, float("nan"), 0), "temperature is nan"),
    ],
    ids=lambda value: value.request_id if isinstance(value, GenerationRequest) else "",
)
def test_an_impossible_request_is_refused_and_leaves_no_trace(case: Case, bad: GenerationRequest, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        case.engine.submit(bad)

    assert not case.engine.has_work()
    assert case.engine.step() == []


def test_two_unfinished_requests_cannot_share_an_id(case: Case) -> None:
    asked = request(case.prompt(3))
    case.engine.submit(asked)

    with pytest.raises(EngineError, match="unique"):
        case.engine.submit(asked)

    case.engine.abort([asked.request_id])
    assert len(run(case.engine, [asked])) == 1


def test_weights_cannot_change_under_a_running_request(case: Case) -> None:
    asked = request(case.prompt(3), max_tokens=30)
    case.engine.submit(asked)
    case.engine.step()

    with pytest.raises(WeightSyncError, match="1 requests are unfinished"):
        case.engine.load_weights(case.weights(), case.version + 1)

    assert case.engine.weights_version == case.version
    assert case.error(asked, drain(case.engine)[asked.request_id]) < EXACT


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_an_update_that_does_not_fit_changes_nothing(case: Case, fault: str) -> None:
    broken = {name: array + 1 for name, array in case.weights().items()}
    name = "model.layers.1.mlp.gate.weight" if "model.layers.1.mlp.gate.weight" in broken else "lm_head.weight"
    if fault == "unknown":
        broken["model.layers.7.norm.weight"] = broken[name]
    array = broken.pop(name)
    if fault == "unknown":
        broken[name] = array
    if fault == "shape":
        broken[name] = array[1:]

    with pytest.raises(WeightSyncError, match="model.layers.7" if fault == "unknown" else name):
        case.engine.load_weights(broken, case.version + 1)

    asked = request(case.prompt(20))
    assert case.engine.weights_version == case.version
    assert case.error(asked, run(case.engine, [asked])[0]) < EXACT


def test_nothing_cached_under_old_weights_is_used_under_new_ones(case: Case) -> None:
    prompt = case.prompt(140)
    run(case.engine, [request(prompt)])
    warm = run(case.engine, [request(prompt)])[0]
    case.perturb()
    case.sync()

    asked = request(prompt)
    cold = run(case.engine, [asked])[0]

    assert warm.num_cached_tokens >= 128
    assert cold.num_cached_tokens == 0
    assert case.error(asked, cold) < EXACT


def test_an_older_version_may_come_back(case: Case) -> None:
    old_version, old_weights = case.version, case.weights()
    case.perturb()
    case.sync()

    case.engine.load_weights(old_weights, old_version)
    case.reference.load_state_dict({name: torch.tensor(array) for name, array in old_weights.items()})

    asked = request(case.prompt(20))
    assert case.engine.weights_version == old_version
    assert case.error(asked, run(case.engine, [asked])[0]) < EXACT


def test_the_process_keeps_its_random_state(case: Case) -> None:
    states = [random.getstate(), np.random.get_state(), torch.get_rng_state()]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case.sync()
        run(case.engine, [request(case.prompt(5)), request(case.prompt(5), temperature=0.0)])

    assert random.getstate() == states[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1], strict=True))
    assert torch.equal(torch.get_rng_state(), states[2])


def test_weights_may_be_tensors_where_the_learner_has_them(case: Case) -> None:
    case.perturb()
    case.version += 1
    requests = [request(case.prompt(n), seed=n) for n in (3, 40)]

    case.engine.load_weights(case.reference.state_dict(), case.version)  # type: ignore[arg-type]

    assert max(map(case.error, requests, run(case.engine, requests))) < EXACT

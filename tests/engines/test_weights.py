"""Weights that change under running requests: exact log-probabilities on both sides, and every token knows its side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gspo_rllib.engines import registry
from gspo_rllib.engines.protocol import Engine, EngineSpec, Generation, GenerationRequest
from gspo_rllib.engines.weights import TokenVersions
from gspo_rllib.errors import WeightSyncError

MAX_MODEL_LEN = 128
EXACT = 1e-4
PROMPT_LENGTHS = (3, 33, 64, 90, 20, 50)
LONG = 30

Weights = dict[str, np.ndarray]


class Loaded:
    """An engine, and the model under each version of the weights."""

    def __init__(self, engine: Engine, path: str) -> None:
        self.engine = engine
        self.models: dict[int, Any] = {}
        self._path = path

    def weights(self, version: int) -> Weights:
        if version not in self.models:
            model = AutoModelForCausalLM.from_pretrained(self._path, dtype=torch.float32)
            generator = torch.Generator().manual_seed(version)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
            self.models[version] = model
        return {name: tensor.numpy() for name, tensor in self.models[version].state_dict().items()}

    def load(self, version: int, **kwargs: Any) -> None:
        self.engine.load_weights(self.weights(version), version, **kwargs)

    def logp(self, request: GenerationRequest, generation: Generation, version: int) -> np.ndarray:
        ids = torch.tensor([request.prompt_token_ids + generation.token_ids])
        with torch.no_grad():
            logits = self.models[version](ids).logits[0, len(request.prompt_token_ids) - 1 : -1]
        logp = torch.log_softmax(logits / request.temperature, dim=-1)
        return logp.gather(1, torch.tensor(generation.token_ids).unsqueeze(1)).squeeze(1).numpy()


@pytest.fixture(
    scope="module", params=["transformers", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.slow])]
)
def loaded(request: pytest.FixtureRequest, tiny_moe: str) -> Iterator[Loaded]:
    if request.param not in registry.available_engines():
        pytest.skip(f"{request.param} is not installed")
    # No stop ids: a request lasts as long as it is asked to. Four at a time: some still wait when weights change.
    spec = EngineSpec(request.param, tiny_moe, "float32", MAX_MODEL_LEN, 4, (), seed=5)
    engine = registry.acquire(spec)
    yield Loaded(engine, tiny_moe)
    registry.release(engine)


def requests(*, max_tokens: int = LONG, temperature: float = 0.7) -> list[GenerationRequest]:
    rng = np.random.default_rng(0)
    return [
        GenerationRequest(str(n), rng.integers(0, 320, length).tolist(), max_tokens, temperature, seed=n)
        for n, length in enumerate(PROMPT_LENGTHS)
    ]


def step(engine: Engine, steps: int | None = None) -> dict[str, Generation]:
    done: dict[str, Generation] = {}
    while engine.has_work() and steps != 0:
        done |= {generation.request_id: generation for generation in engine.step()}
        steps = None if steps is None else steps - 1
    return done


def test_each_side_of_a_swap_has_the_log_probabilities_of_its_own_weights(loaded: Loaded) -> None:
    engine, asked = loaded.engine, requests()
    loaded.load(1)
    for request in asked:
        engine.submit(request)
    done = step(engine, 8)
    loaded.load(2, keep_running=True)
    done |= step(engine, 9)
    loaded.load(3, keep_running=True)
    done |= step(engine)

    assert engine.weights_version == 3
    seen: set[int] = set()
    for request in asked:
        generation = done[request.request_id]
        versions = generation.token_versions
        assert len(generation.token_ids) == LONG
        if versions is None:
            versions = np.full(LONG, 3, dtype=np.int32)
        assert versions.dtype == np.int32
        assert len(versions) == LONG
        assert (np.diff(versions) >= 0).all()
        for version in set(versions.tolist()):
            own = versions == version
            error = np.abs(loaded.logp(request, generation, version) - generation.logp)
            assert error[own].max() < EXACT
            assert not own.any() or error[~own].max(initial=1.0) > 0.05, "the weights differ too little to tell"
        seen |= set(versions.tolist())
    assert seen == {1, 2, 3}
    assert [done[r.request_id].token_versions is None for r in asked].count(True) >= 1, "one must have waited"


def test_a_request_goes_on_with_the_random_stream_it_had(loaded: Loaded) -> None:
    """The same weights again: with everything computed anew, the samples must be those of an undisturbed request."""
    engine, asked = loaded.engine, requests()
    loaded.load(1)
    for request in asked:
        engine.submit(request)
    undisturbed = step(engine)

    loaded.load(1)
    for request in asked:
        engine.submit(request)
    disturbed = step(engine, 7)
    engine.load_weights(loaded.weights(1), 4, keep_running=True)
    disturbed |= step(engine)

    for name, generation in undisturbed.items():
        assert disturbed[name].token_ids == generation.token_ids
        np.testing.assert_allclose(disturbed[name].logp, generation.logp, atol=EXACT)
        assert generation.token_versions is None
    spans = [g.token_versions for g in disturbed.values() if g.token_versions is not None]
    assert {tuple(versions.tolist()) for versions in spans} == {(1,) * 7 + (4,) * (LONG - 7)}


def test_nothing_computed_before_a_swap_is_used_after_it(loaded: Loaded) -> None:
    engine, asked = loaded.engine, requests()
    loaded.load(1)
    for request in asked:
        engine.submit(request)
    step(engine, 5)
    loaded.load(2, keep_running=True)
    engine.abort([request.request_id for request in asked[:3]])
    step(engine)

    again = GenerationRequest("again", asked[2].prompt_token_ids, 5, 1.0, seed=0)
    engine.submit(again)
    generation = step(engine)["again"]
    assert generation.token_versions is None
    assert np.abs(loaded.logp(again, generation, 2) - generation.logp).max() < EXACT


def test_without_keep_running_an_update_still_waits_for_idle(loaded: Loaded) -> None:
    engine = loaded.engine
    loaded.load(1)
    engine.submit(requests()[0])
    step(engine, 2)
    with pytest.raises(WeightSyncError, match="keep_running"):
        loaded.load(2)
    assert engine.weights_version == 1
    assert step(engine)["0"].token_versions is None


def test_an_update_that_does_not_fit_leaves_running_requests_as_they_are(loaded: Loaded) -> None:
    engine, request = loaded.engine, requests()[1]
    loaded.load(1)
    engine.submit(request)
    step(engine, 4)
    with pytest.raises(WeightSyncError, match="lacks 1"):
        engine.load_weights(dict(list(loaded.weights(2).items())[1:]), 2, keep_running=True)
    generation = step(engine)["1"]
    assert generation.token_versions is None
    assert np.abs(loaded.logp(request, generation, 1) - generation.logp).max() < EXACT


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("loaded", ["vllm"], indirect=True)
def test_an_engine_whose_core_runs_by_itself_refuses_and_says_it_cannot(loaded: Loaded) -> None:
    engine: Any = loaded.engine
    assert engine.can_update_while_running
    loaded.load(1)
    engine.submit(requests()[0])
    engine.can_update_while_running = False  # what enable_multiprocessing makes it
    try:
        with pytest.raises(WeightSyncError, match="can_update_while_running"):
            loaded.load(2, keep_running=True)
    finally:
        engine.can_update_while_running = True
    step(engine)


def test_versions_of_a_request_that_lived_through_reloads_of_one_version_are_none() -> None:
    versions = TokenVersions()
    versions.weights_change({"a": 3, "new": 0}, 5)
    assert versions.take("a", 8, 5) is None
    versions.weights_change({"a": 2}, 5)
    versions.weights_change({"a": 4}, 6)
    taken = versions.take("a", 6, 5)
    assert taken is not None
    assert taken.tolist() == [5, 5, 6, 6, 5, 5]
    assert versions.take("a", 6, 5) is None, "it is forgotten"

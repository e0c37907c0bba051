"""One engine per process and spec."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gspo_rllib.engines import registry, transformers
from gspo_rllib.engines.protocol import Engine, EngineSpec, GenerationRequest
from gspo_rllib.errors import EngineError, SettingError

FACTORY = "gspo_rllib.engines.transformers:TransformersEngine"


@pytest.fixture
def spec(tiny_dense: str) -> EngineSpec:
    return EngineSpec("transformers", tiny_dense, "float32", 64, 2, (0,), options={"max_batch_tokens": 64})


@pytest.fixture
def third_party() -> Iterator[str]:
    registry.register_engine("third_party", FACTORY, one_per_process=True)
    yield "third_party"
    del registry._entries["third_party"]


def test_equal_specs_share_an_engine_until_the_last_user_lets_go(spec: EngineSpec) -> None:
    first = registry.acquire(spec)
    second = registry.acquire(replace(spec, options=dict(spec.options)))
    other = registry.acquire(replace(spec, seed=1))
    assert first is second and first is not other

    registry.release(first)
    assert not _closed(second)
    registry.release(second)

    assert _closed(first)
    registry.release(first)  # a release too many does nothing
    assert not _closed(other)
    registry.release(other)


def test_a_released_spec_is_built_anew(spec: EngineSpec) -> None:
    first = registry.acquire(spec)
    registry.release(first)

    second = registry.acquire(spec)

    assert second is not first and not _closed(second)
    registry.release(second)


def test_a_misspelt_engine_is_named_with_what_was_meant(spec: EngineSpec) -> None:
    with pytest.raises(EngineError, match=r"'transformer' is unknown\. Did you mean 'transformers'"):
        registry.acquire(replace(spec, engine="transformer"))


def test_a_third_party_engine_is_found_by_its_name(spec: EngineSpec, third_party: str) -> None:
    engine = registry.acquire(replace(spec, engine=third_party))

    assert third_party in registry.available_engines()
    assert engine.max_model_len == 64
    registry.release(engine)


def test_a_second_different_engine_is_refused_where_two_cannot_coexist(spec: EngineSpec, third_party: str) -> None:
    held = registry.acquire(replace(spec, engine=third_party))
    try:
        assert registry.acquire(replace(spec, engine=third_party)) is held
        registry.release(held)
        with pytest.raises(EngineError, match=r"max_model_len=64 -> 32.*same generation settings"):
            registry.acquire(replace(spec, engine=third_party, max_model_len=32))
    finally:
        registry.release(held)

    registry.release(registry.acquire(replace(spec, engine=third_party, max_model_len=32)))


def test_missing_vllm_is_named_with_two_ways_out(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)

    assert registry.default_engine() == "transformers"
    assert "vllm" not in registry.available_engines()
    with pytest.raises(EngineError, match=r"pip install -e \"\.\[vllm\]\".*engine='transformers'"):
        registry.acquire(replace(spec, engine="vllm"))


@pytest.mark.parametrize(
    ("factory", "message"),
    [("no_colon", "must read"), ("gspo_rllib.no_such:Engine", "no_such"), (FACTORY + "s", "TransformersEngines")],
)
def test_a_factory_that_leads_nowhere_is_an_engine_error(spec: EngineSpec, factory: str, message: str) -> None:
    def register_and_acquire() -> None:
        registry.register_engine("broken", factory)
        registry.acquire(replace(spec, engine="broken"))

    with pytest.raises(EngineError, match=message):
        register_and_acquire()
    registry._entries.pop("broken", None)


def _closed(engine: Engine) -> bool:
    with pytest.raises(EngineError) as caught:
        engine.submit(GenerationRequest("x", [1], 1, 1.0, 0))  # refused either way: it has no weights
    return "closed" in str(caught.value)


def test_an_option_that_the_engine_has_not_is_refused_before_it_is_built(spec: EngineSpec) -> None:
    entry = registry.check_engine("transformers", spec.options)
    assert set(entry.options) == set(transformers._OPTIONS)
    with pytest.raises(SettingError, match=r"engine_options\['max_batch_token'\]: .* Did you mean 'max_batch_tokens'"):
        registry.check_engine("transformers", {"max_batch_token": 3})


def test_loading_an_engine_leaves_the_random_states_alone(
    spec: EngineSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM 0.27 draws from Python's when it is imported: two runners with one seed would go different ways."""
    (tmp_path / "engine_that_draws.py").write_text(
        "import random, numpy, torch\n"
        f"from {FACTORY.partition(':')[0]} import TransformersEngine\n"
        "random.random(), numpy.random.seed(3), torch.manual_seed(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        registry._entries, "draws", registry.EngineEntry("engine_that_draws:TransformersEngine", "torch")
    )

    def states() -> list[object]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]

    before = states()
    engine = registry.acquire(replace(spec, engine="draws"))
    assert states() == before
    registry.release(engine)

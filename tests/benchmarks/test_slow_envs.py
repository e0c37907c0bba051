"""Slow environments leave the engine to the others: the benchmark's definition on a smaller load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from benchmarks.slow_envs import Load, measure, open_engine
from gspo_rllib.engines import registry

LOAD = Load(fast=14, slow=2, sleep_s=0.3, turns=12, tokens_per_turn=8)


@pytest.fixture(scope="module")
def utilisation(tiny_dense: str) -> Iterator[Callable[..., float]]:
    """Share of the engine's utilisation without slow trajectories that is left beside them."""
    engine, renderer = open_engine("transformers", tiny_dense, 512, LOAD.fast + LOAD.slow)
    yield lambda *options, inline: measure(engine, renderer, *options, inline=inline)["utilisation_ratio"]
    registry.release(engine)


@pytest.mark.slow
def test_environments_that_sleep_leave_the_engine_its_utilisation(utilisation: Callable[..., float]) -> None:
    assert utilisation(LOAD, 3, inline=False) >= 0.8


@pytest.mark.slow
def test_the_same_environments_without_threads_would_not(utilisation: Callable[..., float]) -> None:
    assert utilisation(replace(LOAD, turns=4), 1, inline=True) < 0.5

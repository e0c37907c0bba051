"""Where bfloat16 is no faster, that is said once, and measured before it is said."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
from ray.util import debug

from gspo_rllib.algorithms.policy_gradient import bfloat16_gain


def _config(model: dict[str, Any], **changes: Any) -> SimpleNamespace:
    settings = {
        "num_env_runners": 0, "num_gpus_per_env_runner": 0, "num_gpus_per_learner": 0, "engine_device": None,
        "engine_dtype": None, "model_config": model,
    }  # fmt: skip
    return SimpleNamespace(**(settings | changes))


@pytest.fixture(autouse=True)
def no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug, "_logged", set())
    monkeypatch.setattr(bfloat16_gain, "gain", lambda: 0.61)


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        ({"precision": "bfloat16"}, {}, "learner and engine on a CPU"),
        ({"precision": "bfloat16"}, {"engine_dtype": "float32"}, "learner on a CPU"),
        ({}, {"engine_dtype": "bfloat16"}, "for engine on a CPU"),
        ({"autocast_dtype": "bfloat16"}, {}, "for learner on a CPU"),
        ({"precision": "bfloat16"}, {"num_gpus_per_learner": 1, "num_env_runners": 1}, "for engine on a CPU"),
        ({"precision": "bfloat16"}, {"num_gpus_per_learner": 1}, None),
        ({"precision": "bfloat16"}, {"engine_device": "cuda", "num_gpus_per_learner": 1}, None),
        ({}, {}, None),
    ],
)
def test_it_is_said_once_and_of_whom(
    model: dict[str, Any], changes: dict[str, Any], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "gspo_rllib"):
        bfloat16_gain.say_where_it_gains_nothing(_config(model, **changes))
        bfloat16_gain.say_where_it_gains_nothing(_config(model, **changes))
    if said is None:
        assert not caplog.messages
        return
    (message,) = caplog.messages
    assert said in message and "0.61 times" in message and "precision=float32" in message


def test_a_processor_that_gains_is_not_complained_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bfloat16_gain, "gain", lambda: 2.3)
    bfloat16_gain.say_where_it_gains_nothing(_config({"precision": "bfloat16"}))
    assert not caplog.messages


def test_the_gain_is_what_two_clocked_products_differ_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    bfloat16_gain.gain.cache_clear()
    assert 0.05 < bfloat16_gain.gain() < 50

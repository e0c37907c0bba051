"""Where sampling while learning cannot win, that is said once, and measured before it is said."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.util import debug

from gspo_rllib.algorithms.policy_gradient import overlap


def config(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**({"num_gpus_per_env_runner": 0, "num_gpus_per_learner": 0, "max_staleness": 1} | changes))


@pytest.fixture
def one_node(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bool]]:
    nodes = [{"Alive": True}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(debug, "_logged", set())
    return nodes


@pytest.mark.usefixtures("one_node")
def test_a_machine_that_does_no_two_things_at_once_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(overlap, "parallelism", lambda: 1.07)
    with caplog.at_level(logging.WARNING, "gspo_rllib"):
        overlap.say_where_it_cannot_win(config())
        overlap.say_where_it_cannot_win(config())
    (message,) = caplog.messages
    assert "1.07 times" in message and "max_staleness=0" in message


def test_cores_gpus_and_other_nodes_are_not_complained_of(
    one_node: list[dict[str, bool]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(overlap, "parallelism", lambda: 1.9)
    overlap.say_where_it_cannot_win(config())
    monkeypatch.setattr(overlap, "parallelism", lambda: pytest.fail("nothing to measure"))
    overlap.say_where_it_cannot_win(config(num_gpus_per_env_runner=0.5))
    overlap.say_where_it_cannot_win(config(num_gpus_per_learner=1))
    one_node.append({"Alive": True})
    overlap.say_where_it_cannot_win(config())
    assert not caplog.messages


def test_parallelism_is_of_this_machine_and_leaves_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlap, "_ROUND_S", 0.02)
    before = torch.get_num_threads()
    assert 0.2 < overlap.parallelism.__wrapped__() < 3  # 2 on two idle cores, 1 on one; a busy machine is anywhere near
    assert torch.get_num_threads() == before

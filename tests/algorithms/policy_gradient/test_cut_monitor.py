"""A run whose replies are cut off says so once."""

from __future__ import annotations

import dataclasses

import pytest

from gspo_rllib.algorithms.policy_gradient.cut_monitor import CutMonitor
from gspo_rllib.types import TURN, TrajectoryGroup
from tests.episodes import make_episode


def _group(num_cut: int, num_replies: int) -> TrajectoryGroup:
    episode = make_episode("g", 0, [(3, 2)] * num_replies, 0.0)
    turns = episode.extra_model_outputs[TURN]
    for number in range(num_replies):
        reason = "length" if number < num_cut else "stop"
        turns[number] = dataclasses.replace(turns[number], finish_reason=reason)
    return TrajectoryGroup("g", [episode])


def test_it_is_said_once_with_how_many_and_what_to_raise() -> None:
    monitor = CutMonitor()
    said = monitor.draw([_group(20, 20), _group(0, 20)])
    assert said is not None
    assert said.startswith("20 of 40 replies did not end by themselves: they were cut off, the longest after 2 tokens")
    assert "generation.max_tokens_per_turn" in said
    assert monitor.draw([_group(40, 40)]) is None


@pytest.mark.parametrize(("num_cut", "num_replies"), [(19, 40), (31, 31), (0, 40)])
def test_fewer_than_half_or_of_too_few_are_no_news(num_cut: int, num_replies: int) -> None:
    monitor = CutMonitor()
    assert monitor.draw([_group(num_cut, num_replies)] if num_replies else []) is None
    assert monitor.draw([_group(40, 40)]) is not None

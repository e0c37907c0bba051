"""A cluster that is busy: what is waited for is said, and what is free; nothing where nothing waits."""

from __future__ import annotations

import logging
import threading
import time

import ray

from gspo_rllib.algorithms import GSPOConfig
from gspo_rllib.algorithms.policy_gradient import waiting
from gspo_rllib.algorithms.policy_gradient.waiting import waiting_is_said, waiting_line


@ray.remote
class _Actor:
    def ready(self) -> bool:
        return True


def _config():
    return GSPOConfig().env_runners(num_env_runners=1).learners(num_learners=0)


def test_who_waits_for_room_is_told_what_is_asked_for_and_what_is_free(ray_local, caplog, monkeypatch):
    monkeypatch.setattr(waiting, "SAY_EVERY_S", 0.2)
    busy = _Actor.options(num_cpus=4).remote()
    ray.get(busy.ready.remote())
    late = _Actor.options(num_cpus=3).remote()
    try:
        with caplog.at_level(logging.WARNING, logger="gspo_rllib"), waiting_is_said(_config()):
            deadline = time.monotonic() + 60
            while len(caplog.messages) < 2 and time.monotonic() < deadline:
                time.sleep(0.1)
        first = caplog.messages[0]
        assert "no room yet for 1 actor. Asked for: 1 x env runner (1 CPU). Free now: nothing, of 4 CPU" in first
        assert "\n" not in first
        ray.kill(busy)
        ray.get(late.ready.remote())  # started as soon as there was room
        assert waiting_line("", seconds=1.0) is None
    finally:
        for actor in (busy, late):
            ray.kill(actor)


def test_no_thread_is_left_and_nothing_is_said_where_nothing_waits(ray_local, caplog, monkeypatch):
    monkeypatch.setattr(waiting, "SAY_EVERY_S", 0.05)
    with caplog.at_level(logging.WARNING, logger="gspo_rllib"), waiting_is_said(_config()):
        time.sleep(0.3)
    assert not caplog.messages
    deadline = time.monotonic() + 10
    while any(thread.name == "gspo-waiting" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(thread.name == "gspo-waiting" for thread in threading.enumerate())

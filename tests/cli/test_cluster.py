"""A Ray of the command's own starts in a thread, offers enough, and ends with the command."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from gspo_rllib.cli import cluster
from gspo_rllib.cli.cluster import expected_cpus, ray_session, ray_starting


class FakeRay:
    """Stands in for ``ray.init`` and ``ray.shutdown``: what they were called with, and in which thread."""

    def __init__(self) -> None:
        self.is_up = False
        self.offered: list[int] = []
        self.threads: list[threading.Thread] = []
        self.may_start = threading.Event()
        self.may_start.set()
        self.fails_with: Exception | None = None

    def init(self, **options: Any) -> None:
        assert self.may_start.wait(10)
        if self.fails_with is not None:
            raise self.fails_with
        self.offered.append(options["num_cpus"])
        self.threads.append(threading.current_thread())
        self.is_up = True

    def shutdown(self) -> None:
        self.is_up = False


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRay]:
    it = FakeRay()
    monkeypatch.setattr(ray, "init", it.init)
    monkeypatch.setattr(ray, "shutdown", it.shutdown)
    monkeypatch.setattr(ray, "is_initialized", lambda: it.is_up)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    yield it
    it.may_start.set()
    assert not it.is_up
    assert "ray" not in [thread.name for thread in threading.enumerate()]


def test_ray_starts_beside_the_block_in_a_thread_that_lives_as_long_as_it(fake: FakeRay) -> None:
    fake.may_start.clear()
    with ray_starting(1) as session:
        assert not fake.is_up  # and here the block is, importing
        threading.Timer(0.3, fake.may_start.set).start()
        session.wait(1)
        assert fake.is_up and fake.offered == [2]
        (starter,) = fake.threads
        assert starter is not threading.main_thread() and starter.is_alive()


def test_a_ray_with_too_few_cpus_for_what_was_imported_is_started_anew(fake: FakeRay) -> None:
    with ray_starting(2) as session:
        session.wait(4.5)
        assert fake.offered == [2, 5]
        assert fake.is_up
        session.wait(3)  # fits
        assert fake.offered == [2, 5]


def test_what_is_refused_while_ray_starts_ends_it(fake: FakeRay) -> None:
    fake.may_start.clear()
    with pytest.raises(ValueError, match="refused"), ray_starting(1):
        raise _refusal(fake)
    assert fake.offered == [2]


def test_a_ray_that_cannot_start_raises_where_it_is_waited_for(fake: FakeRay) -> None:
    fake.fails_with = OSError("no room")
    with pytest.raises(OSError, match="no room"), ray_session(1):
        raise AssertionError("not reached")


def test_ray_may_be_left_before_the_block_ends(fake: FakeRay) -> None:
    with ray_starting(1) as session:
        session.wait(1)
        session.leave()
        fake.threads[0].join(10)
        assert not fake.is_up


def test_a_ray_that_runs_already_is_used_and_left_running(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster, "Watch", None)  # not watched: it is somebody else's
    monkeypatch.setattr(ray, "shutdown", lambda: pytest.fail("it is not ours to end"))
    with ray_session(8):
        assert fake.offered == []


@pytest.mark.parametrize(
    ("sections", "cpus"),
    [
        ({}, 1.0),
        ({"env_runners": {"num_env_runners": 2}, "evaluation": {"evaluation_num_env_runners": 1}}, 4.0),
        ({"learners": {"num_learners": 2}, "env_runners": {}}, 3.0),
        ({"env_runners": {"num_env_runners": "two"}, "learners": {"num_learners": -1}}, 1.0),  # refused later, in words
    ],
)
def test_cpus_are_expected_from_what_the_file_says(sections: dict[str, dict[str, Any]], cpus: float) -> None:
    assert expected_cpus(sections) == cpus


def _refusal(fake: FakeRay) -> ValueError:
    threading.Timer(0.05, fake.may_start.set).start()
    return ValueError("refused")

"""A Ray of the command's own offers enough, starts after the imports, and ends with the command."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from gspo_rllib.cli import cluster
from gspo_rllib.cli.cluster import ray_session
from gspo_rllib.cli.main import main
from gspo_rllib.errors import SettingError


class FakeRay:
    """Stands in for ``ray.init`` and ``ray.shutdown``: what they were called with."""

    def __init__(self) -> None:
        self.is_up = False
        self.offered: list[int] = []
        self.fails_with: Exception | None = None

    def init(self, **options: Any) -> None:
        if self.fails_with is not None:
            raise self.fails_with
        self.offered.append(options["num_cpus"])
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
    assert not it.is_up


@pytest.mark.parametrize(("reserved", "offered"), [(1, 2), (4.5, 5)])
def test_ray_offers_what_the_actors_reserve_and_the_machines_cores_at_least(
    fake: FakeRay, reserved: float, offered: int
) -> None:
    with ray_session(reserved):
        assert fake.is_up and fake.offered == [offered]


def test_what_is_refused_while_ray_runs_ends_it(fake: FakeRay) -> None:
    with pytest.raises(ValueError, match="refused"), ray_session(1):
        raise ValueError("refused")
    assert fake.offered == [2]


def test_a_config_that_is_refused_starts_no_ray(fake: FakeRay, config_file: str) -> None:
    """Beside the imports a Ray must not start: what registers itself with Tune meanwhile starts another, and waits."""
    assert main(["train", config_file, "training.lr=-1", "run.iterations=1"]) == 2
    assert fake.offered == []


def test_a_ray_that_cannot_start_is_said_in_a_sentence(fake: FakeRay) -> None:
    fake.fails_with = OSError("no room")
    with pytest.raises(SettingError, match="cannot be started on this machine: no room"), ray_session(1):
        raise AssertionError("not reached")


def test_a_ray_that_runs_already_is_used_and_left_running(fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(cluster, "Watch", None)  # not watched: it is somebody else's
    monkeypatch.setattr(ray, "shutdown", lambda: pytest.fail("it is not ours to end"))
    with ray_session(8):
        assert fake.offered == []

"""Room for learners is waited for as long as was said, and nothing of it is kept; nor of those that were ended."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.rllib.core.learner import learner_group

from gspo_rllib.driver import learner_room
from gspo_rllib.driver.learner_room import await_room, learner_cpus, start_again


def _config(count: int, **changes: Any) -> Any:
    asked = {"num_cpus_per_learner": "auto", "num_gpus_per_learner": 0, "custom_resources_per_learner": None}
    return SimpleNamespace(num_learners=count, env_runner_restore_timeout_s=30.0, **(asked | changes))


def test_room_that_is_there_is_left_to_the_learners_and_room_that_is_not_is_waited_for(
    ray_local: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):  # four CPUs: what was kept of the first would be missing for the second
        assert await_room(_config(3))
    assert not caplog.records
    monkeypatch.setattr(learner_room, "LOOK_S", 0.2)
    monkeypatch.setattr(learner_room, "_SAY_S", 0.6)
    none = _config(1, num_cpus_per_learner=0.5, custom_resources_per_learner={"none has it": 1})
    none.env_runner_restore_timeout_s = 1.0
    assert not await_room(none)
    (record,) = caplog.records
    assert record.message.startswith("waiting for room for 1 learners, 0.5 CPU and 1 none has it each, 1 s of 1 s")


def test_learners_that_ask_for_nothing_or_have_their_place_are_not_waited_for() -> None:
    assert await_room(_config(2, num_cpus_per_learner=0))
    assert await_room(_config(2), object())
    assert [learner_cpus(_config(1, num_gpus_per_learner=gpus)) for gpus in (0, 1)] == [1, 0]


class Light:
    """Answers as a learner does."""

    framework = "torch"

    def _set_learner_index_and_placement_group(self, *, learner_index: int, placement_group: object) -> None:
        self.index, self.is_built = learner_index, False

    def build(self) -> None:
        self.is_built = True

    def told(self) -> tuple[int, bool]:
        return self.index, self.is_built


@pytest.mark.slow  # two starts of two processes that import RLlib
def test_learners_are_started_again_with_the_classes_that_were_made_for_the_first(ray_local: None) -> None:
    executor = learner_group.RLlibBackendExecutor(
        backend_config=learner_group._get_backend_config(Light),
        num_workers=2,
        resources_per_worker={"CPU": 0},
        max_retries=0,
    )
    executor.start(train_cls=Light)

    def classes() -> int:
        gc.collect()
        return sum(isinstance(each, type) and each.__name__ == "_WrappedExecutable" for each in gc.get_objects())

    before, first = classes(), [worker.actor for worker in executor.worker_group.workers]
    assert before
    try:
        executor.worker_group.shutdown(patience_s=0)
        actors = start_again(executor)
        assert ray.get([actor.told.remote() for actor in actors]) == [(0, True), (1, True)]
        assert not {actor._actor_id for actor in actors} & {actor._actor_id for actor in first}
        assert classes() == before
    finally:
        executor.shutdown(graceful_termination=False)

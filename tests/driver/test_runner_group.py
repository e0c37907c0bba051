"""Runners are started with the config itself: Ray has nothing to say about it, and restarts them without its store."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import ray
from ray.exceptions import RayError
from ray.rllib.algorithms import algorithm
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from gspo_rllib import GSPOConfig
from gspo_rllib.driver.runner_group import RunnerGroup, groups_by_value


def started(group: type[EnvRunnerGroup]) -> EnvRunnerGroup:
    class Light:
        """What a runner is given, in a process without a model."""

        def __init__(self, config: Any, **_: Any) -> None:
            self.seed = config.seed

        def apply(self, func: Any) -> Any:
            return func(self)

    config = GSPOConfig().debugging(seed=37).env_runners(num_env_runners=1, num_cpus_per_env_runner=0)
    config.validate_env_runners_after_construction = False
    config.env_runner_cls = Light
    return group(env_creator=None, config=config, local_env_runner=False)


def asked(actor: Any) -> int:
    """The seed a runner knows; the process may be on its way."""
    end = time.monotonic() + 120
    while True:
        try:
            seed: int = ray.get(actor.apply.remote(lambda runner: runner.seed), timeout=120)
            return seed
        except RayError:
            assert time.monotonic() < end
            time.sleep(0.2)


def test_ray_has_nothing_to_say_about_a_runner_that_is_started(
    ray_local: None, capfd: pytest.CaptureFixture[str]
) -> None:
    (actor,) = started(RunnerGroup)._worker_manager.actors().values()
    ray.kill(actor)
    # Ray's core writes to the descriptor, not through Python's logging.
    assert "constructor arguments" not in capfd.readouterr().err


@pytest.mark.slow  # two processes that import RLlib
def test_a_runner_starts_again_when_the_store_has_lost_its_config(ray_local: None) -> None:
    group = started(RunnerGroup)
    (actor,) = group._worker_manager.actors().values()
    assert asked(actor) == 37
    group._remote_config_obj_ref = None  # nobody holds what the store has
    actor.apply.remote(lambda runner: os._exit(1))
    time.sleep(0.5)
    assert asked(actor) == 37
    ray.kill(actor)


def test_rllib_s_own_group_is_what_ray_warns_of(ray_local: None, capfd: pytest.CaptureFixture[str]) -> None:
    """Were this to fail, Ray would not warn any more, and the class would not be needed."""
    group = started(EnvRunnerGroup)
    (actor,) = group._worker_manager.actors().values()
    ray.kill(actor)
    assert "constructor arguments in the object store" in capfd.readouterr().err


def test_an_algorithm_that_is_set_up_makes_groups_of_this_class_and_others_do_not() -> None:
    with groups_by_value():
        assert algorithm.EnvRunnerGroup is RunnerGroup
    assert algorithm.EnvRunnerGroup is EnvRunnerGroup

"""Fixtures of the environment pool's tests: pools that are closed behind each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from gspo_rllib.env_pool.pool import EnvPool
from tests.env_pool.answers import MakePool
from tests.toy_envs.faulty_envs import EchoEnv


@pytest.fixture
def make_pool() -> Iterator[MakePool]:
    pools: list[EnvPool] = []

    def make(
        env: Callable[[], EchoEnv],
        size: int = 1,
        *,
        blocking: bool = True,
        process: bool = False,
        timeout: float = 20.0,
    ) -> EnvPool:
        pools.append(EnvPool(env, size, blocking=blocking, process=process, step_timeout_s=timeout))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()

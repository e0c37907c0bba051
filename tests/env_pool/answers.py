"""What an environment pool answers, collected until nothing is owed."""

from __future__ import annotations

from collections.abc import Callable

from gspo_rllib.env_pool.calls import EnvAnswer
from gspo_rllib.env_pool.pool import EnvPool

MakePool = Callable[..., EnvPool]


def collect(pool: EnvPool) -> list[EnvAnswer]:
    answers: list[EnvAnswer] = []
    while pool.is_waiting:
        answers += pool.poll(wait=True)
    return answers

"""Countable tasks: training visits each once per epoch, an evaluation each in turn, whoever plays and whenever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import pytest

from gspo_rllib import metrics as names
from gspo_rllib.env_pool.factory import check_language_env_spec
from gspo_rllib.env_runners.language_env_runner import LanguageEnvRunner
from gspo_rllib.env_runners.task_order import TaskOrder
from gspo_rllib.errors import EnvError
from tests.env_runners.small_runner import Weights, runner_config
from tests.toy_envs.coin_env import CoinEnv

ROWS = [{"question": f"{n} + 0?", "answer": str(n)} for n in range(7)]
DATASET = "gspo_rllib.envs:gspo_rllib/Dataset-v0"


def _order(num_tasks: int, **changes: Any) -> TaskOrder:
    return TaskOrder(num_tasks, **({"run_seed": 0, "shuffled": True} | changes))


def test_every_epoch_visits_every_task_once_and_in_an_order_of_its_own() -> None:
    order = _order(50)
    epochs = [[order.task(str(50 * epoch + place), 0) for place in range(50)] for epoch in range(3)]
    assert all(sorted(map(int, tasks)) == list(range(50)) for tasks in epochs)
    assert len(set(map(tuple, epochs))) == 3
    assert epochs[0] != [_order(50, run_seed=1).task(str(place), 0) for place in range(50)]
    assert epochs[1] == [_order(50).task(str(50 + place), 0) for place in range(50)], "a function of names"


def test_a_task_that_cannot_be_played_is_replaced_by_any_and_moves_no_other() -> None:
    order = _order(1000)
    replaced = [order.task("3", replacement) for replacement in range(1, 20)]
    assert len(set(replaced)) > 15
    assert all(0 <= int(task) < 1000 for task in replaced)
    assert order.task("4", 0) == _order(1000).task("4", 0)


def test_a_group_without_a_number_plays_a_task_that_its_name_decides() -> None:
    assert _order(1000).task("a", 0) == _order(1000).task("a", 0) != _order(1000).task("b", 0)
    assert _order(1000).epoch("a") == 0


@pytest.fixture
def make_runner(tiny_dense: str, weights: Weights) -> Iterator[Callable[..., LanguageEnvRunner]]:
    runners: list[LanguageEnvRunner] = []

    def make(worker_index: int = 0, num_workers: int = 0, env: Any = DATASET, **changes: Any) -> LanguageEnvRunner:
        changes.setdefault("env_config", {"rows": ROWS})
        config = runner_config(tiny_dense, env, **changes)
        runners.append(LanguageEnvRunner(config=config, worker_index=worker_index, num_workers=num_workers))
        runners[-1].set_weights(weights, 1)
        return runners[-1]

    yield make
    for runner in runners:
        runner.stop()


def _questions(episodes: list) -> list[str]:
    return [episode.get_observations(0) for episode in episodes]


def test_training_groups_traverse_the_rows_and_count_epochs(make_runner: Callable) -> None:
    runner = make_runner()
    first = _questions(runner.sample(group_ids=[str(n) for n in range(7)]))
    assert sorted(first) == sorted(row["question"] for row in ROWS for _ in range(2)), "both members, every row once"
    assert first[::2] == first[1::2]
    assert runner.get_metrics()[names.EPOCH].peek() == 0
    second = _questions(runner.sample(group_ids=[str(n) for n in range(7, 14)]))
    assert sorted(second) == sorted(first)
    assert second != first
    assert runner.get_metrics()[names.EPOCH].peek() == 1
    assert _questions(make_runner().sample(group_ids=["9", "3"])) == second[4:6] + first[6:8]


def test_an_evaluation_plays_every_row_once_over_any_number_of_runners(make_runner: Callable) -> None:
    whole = _questions(make_runner(in_evaluation=True, group_size=1).sample(num_episodes=7))
    assert whole == [row["question"] for row in ROWS]
    shares = [
        _questions(make_runner(index, 2, in_evaluation=True, group_size=1).sample(num_episodes=count))
        for index, count in ((1, 4), (2, 3))
    ]
    assert [shares[n % 2][n // 2] for n in range(7)] == whole


def test_an_environment_that_does_not_count_its_tasks_is_asked_for_none(make_runner: Callable) -> None:
    class NoOptions(CoinEnv):
        def reset(self, *, seed: int | None = None) -> tuple[str, dict[str, Any]]:  # type: ignore[override]
            return super().reset(seed=seed)

    runner = make_runner(env=NoOptions, env_config={})
    assert len(runner.sample(group_ids=["0"])) == 2
    assert names.EPOCH not in runner.get_metrics()


class Counted(CoinEnv):
    def __init__(self, count: Any = 3) -> None:
        super().__init__()
        self._count = count

    def num_tasks(self) -> Any:
        return self._count


class InAWrapper(gym.Wrapper):
    def __init__(self, count: Any) -> None:
        super().__init__(Counted(count))


@pytest.mark.parametrize("count", [0, -1, True, 2.0, "3", None])
def test_a_count_that_is_none_is_refused(count: Any) -> None:
    with pytest.raises(EnvError, match=r"num_tasks\(\) returned .* it must return how many tasks there are"):
        check_language_env_spec(Counted, {"count": count})


def test_a_count_is_seen_through_wrappers() -> None:
    assert check_language_env_spec(InAWrapper, {"count": 5}).num_tasks == 5
    assert check_language_env_spec(CoinEnv).num_tasks is None

"""What type checkers know of a config. mypy reads this file in `make lint` and nothing runs it.

Each line that ends in an ignore is a mistake that must be found: where it is not, the ignore is unused and lint fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, assert_type

import gspo_rllib
from gspo_rllib import GSPO, GRPOConfig, GSPOConfig, TrajectoryGroup, load_groups, save_groups
from gspo_rllib.algorithms.policy_gradient.settings import TrainingSettings
from gspo_rllib.env_runners.settings import GenerationSettings


def a_builder_takes_the_knobs_and_returns_the_config(config: GSPOConfig) -> None:
    assert_type(config.training(lr=1e-6, group_size=4), GSPOConfig)
    assert_type(config.generation(temperature=1, max_turns=None).training(lr=[[0, 0.0], [100, 1e-6]]), GSPOConfig)
    assert_type(GRPOConfig().training(kl_coeff=0.04, kl_estimator="k2"), GRPOConfig)
    assert_type(GRPOConfig().agent("my_package.bot:play", tasks="tasks.jsonl"), GRPOConfig)


def a_name_that_is_not_public_is_refused() -> None:
    assert_type(gspo_rllib.GSPOConfig(), GSPOConfig)
    gspo_rllib.GSPOConfg  # type: ignore[attr-defined]


def a_name_that_is_no_knob_is_refused(config: GSPOConfig) -> None:
    config.training(lrr=1)  # type: ignore[call-arg]
    config.generation(temprature=1)  # type: ignore[call-arg]
    config.generation(top_p=0.9)  # type: ignore[call-arg]
    config.training(temperature=1.0)  # type: ignore[call-arg]
    config.training(train_batch_size=4000)  # type: ignore[call-arg]
    GRPOConfig().training(lrr=1)  # type: ignore[call-arg]
    config.agent("my_package.bot:play", task="tasks.jsonl")  # type: ignore[call-arg]
    config.agent("my_package.bot:play", "tasks.jsonl")  # type: ignore[call-arg]


def a_value_of_another_type_is_refused(config: GSPOConfig) -> None:
    config.training(group_size="8")  # type: ignore[arg-type]
    config.training(surrogate="clop")  # type: ignore[arg-type]
    config.generation(max_tokens_per_turn=0.5)  # type: ignore[arg-type]
    config.group_size = "8"  # type: ignore[assignment]
    config.group_size = 8


def a_knob_is_an_attribute_of_its_type(config: GSPOConfig) -> None:
    assert_type(config.group_size, int)
    assert_type(config.clip_low, float)
    assert_type(config.lr, float | list[Any])
    assert_type(config.max_turns, int | None)
    assert_type(config.uses_critic, bool)


def settings_are_read_as_one_object(config: GSPOConfig) -> None:
    assert_type(config.settings(TrainingSettings), TrainingSettings)
    assert_type(config.settings(GenerationSettings).temperature, float)
    TrainingSettings(lrr=1)  # type: ignore[call-arg]


def groups_are_read_written_and_trained_on(algo: GSPO, config: GSPOConfig) -> None:
    assert_type(load_groups("groups.jsonl", config), Iterator[TrajectoryGroup])
    assert_type(algo.train_on(load_groups([{"group_id": "a"}]), behavior="unknown"), dict[str, Any])
    save_groups("groups.jsonl", load_groups("others.jsonl"), append=True)
    load_groups(7)  # type: ignore[arg-type]
    algo.train_on(load_groups("groups.jsonl"), behavior="guessed")  # type: ignore[arg-type]

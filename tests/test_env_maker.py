"""What a run and the contract checker make of what ``config.environment(env, env_config)`` names."""

from __future__ import annotations

from typing import Any

from gspo_rllib.env_maker import env_maker
from gspo_rllib.env_pool.factory import check_language_env_spec
from gspo_rllib.envs import check_language_env
from gspo_rllib.envs.calculator import CalculatorEnv
from tests.toy_envs import faulty_envs


def test_a_class_gets_keyword_arguments_or_the_whole_config_if_it_asks_for_it() -> None:
    assert check_language_env_spec(faulty_envs.ThreadedEchoEnv, {"turns": 7}).make().unwrapped.turns == 7

    class Configured(faulty_envs.EchoEnv):
        def __init__(self, config: dict[str, Any]) -> None:
            super().__init__(turns=config["turns"] + config.worker_index)  # type: ignore[attr-defined]

    assert env_maker(Configured, {"turns": 7}, worker_index=3)().unwrapped.turns == 10

    class AsRLlibCallsIt(faulty_envs.EchoEnv):
        def __init__(self, env_config: dict[str, Any]) -> None:
            super().__init__(turns=env_config["turns"])

    assert env_maker(AsRLlibCallsIt, {"turns": 7})().unwrapped.turns == 7


def test_a_name_registered_with_tune_is_made_by_its_creator() -> None:
    from ray.tune.registry import ENV_CREATOR, _global_registry, register_env

    register_env("my_echo", lambda config: faulty_envs.ChattyEnv(turns=config["turns"]))
    spec = check_language_env_spec("my_echo", {"turns": 9})
    assert spec.make().unwrapped.turns == 9
    assert spec.chat == faulty_envs.ChattyEnv.chat
    _global_registry.unregister(ENV_CREATOR, "my_echo")


class TakesConfig(CalculatorEnv):
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(operations=config["operations"] + config.worker_index)  # type: ignore[attr-defined]


def test_the_checker_makes_an_environment_as_a_run_does() -> None:
    from ray.tune.registry import ENV_CREATOR, _global_registry, register_env

    register_env("my_calculator", lambda config: TakesConfig(config))
    try:
        for env in (TakesConfig, "my_calculator"):
            assert check_language_env(env, operations=2).passed
            check_language_env_spec(env, {"operations": 2})
    finally:
        _global_registry.unregister(ENV_CREATOR, "my_calculator")

"""Which environments the env runner accepts, and what it says about the others."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
import pytest

from gspo_rllib.env_pool.factory import check_language_env_spec
from gspo_rllib.errors import EnvError
from tests.toy_envs import faulty_envs
from tests.toy_envs.faulty_envs import RAISED, RaisingEnv


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    gym.register(
        "faulty/Echo-v0", entry_point="tests.toy_envs.faulty_envs:EchoEnv", kwargs={"turns": 5}, max_episode_steps=2
    )
    yield
    del gym.registry["faulty/Echo-v0"]


def test_a_gymnasium_id_gets_its_arguments_and_keeps_its_wrappers() -> None:
    spec = check_language_env_spec("tests.toy_envs.faulty_envs:faulty/Echo-v0", {"observation_chars": 4})
    env = spec.make()
    assert env.unwrapped.turns == 5
    assert env.unwrapped.observation_chars == 4
    env.reset(seed=0)
    assert env.step("a")[3] is False
    assert env.step("a")[3] is True, "the registered time limit truncates"
    assert (spec.blocking, spec.chat) == (False, None)
    assert (spec.observation_space, spec.action_space) == (faulty_envs.TEXT, faulty_envs.TEXT)


def test_an_environment_that_does_not_say_so_is_expected_to_block() -> None:
    assert check_language_env_spec(faulty_envs.ThreadedEchoEnv).blocking is True


@pytest.mark.parametrize(
    ("env", "env_config", "words"),
    [
        ("faulty/Ecko-v0", {}, "Did you mean 'faulty/Echo-v0'"),
        ("faulty/Echo-v7", {}, "Did you mean 'faulty/Echo-v0'"),
        ("tests.toy_envs.faulty_envs:faulty/Ecko-v0", {}, "Did you mean 'faulty/Echo-v0'"),
        ("NoSuchThing-v0", {}, "write 'module:id' to import it first"),
        ("no_such_package:Echo-v0", {}, "no_such_package.*before the colon"),
        ("CartPole-v1", {}, "observation_space is Box.*gymnasium.spaces.Text"),
        (faulty_envs.NumberEnv, {}, "observation_space is Box"),
        (faulty_envs.EchoEnv, {"tunrs": 3}, "unexpected keyword argument 'tunrs'"),
        ("faulty/Echo-v0", {"tunrs": 3}, "unexpected keyword argument 'tunrs'"),
        (dict, {}, "is a dict; it must be a gymnasium.Env"),
        (None, {}, "config.environment"),
        ("", {}, "config.environment"),
    ],
)
def test_what_is_no_language_environment_is_refused_with_the_remedy(env: Any, env_config: dict, words: str) -> None:
    with pytest.raises(EnvError, match=words):
        check_language_env_spec(env, env_config)


class Counting(faulty_envs.EchoEnv):
    """Says that it counts its tasks, and lets the seed choose."""

    def num_tasks(self) -> int:
        return 3

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return f"say {self.np_random.integers(1000)}", {}


def test_an_environment_that_counts_tasks_must_play_the_one_it_is_asked_for() -> None:
    with pytest.raises(EnvError, match=r"has num_tasks\(\), but reset.* with one seed and 'say .*' with another"):
        check_language_env_spec(Counting, tries=True)


def test_a_number_of_tasks_that_is_no_method_is_said() -> None:
    with pytest.raises(EnvError, match="num_tasks is 3; it must be a method"):
        check_language_env_spec(type("Counted", (faulty_envs.EchoEnv,), {"num_tasks": 3}))


def test_a_chat_attribute_of_another_type_is_refused() -> None:
    class Misframed(faulty_envs.EchoEnv):
        chat = "You echo."

    with pytest.raises(EnvError, match="ChatSpec or None"):
        check_language_env_spec(Misframed)


@pytest.mark.parametrize("what", RAISED)
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("make", "could not be made with env_config={}: "),
        ("chat", "asked for its spaces, metadata and chat, it raised "),
    ],
)
def test_whatever_an_environment_raises_when_it_is_looked_at_is_one_error(what, where, said) -> None:
    with pytest.raises(EnvError, match=re.escape(said + RAISED[what][1])):
        check_language_env_spec(lambda: RaisingEnv(what, where))


@pytest.mark.parametrize("what", RAISED)
def test_an_environment_that_cannot_be_closed_can_be_looked_at(what) -> None:
    assert check_language_env_spec(lambda: RaisingEnv(what, "close")).blocking is False

"""What every registered environment promises to an env runner; a new one joins by being registered.

Settings to test an environment with, beside its defaults, go into ``SETTINGS``.
"""

from __future__ import annotations

import doctest
import importlib
import json
import pickle
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import gspo_rllib.envs
from gspo_rllib.envs.spaces import UnicodeText
from gspo_rllib.errors import SettingError
from gspo_rllib.types import ChatSpec

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "gspo_rllib/Calculator-v0": [{}, {"operations": 1}, {"operations": 30}],
    "gspo_rllib/Bisection-v0": [{}, {"n": 2}, {"n": 1000}],
}
ENV_IDS = [env_id for env_id in gymnasium.registry if env_id.startswith("gspo_rllib/")]
CASES = [(env_id, settings) for env_id in ENV_IDS for settings in SETTINGS.get(env_id, [{}])]
HOSTILE = [
    "",
    "\0",
    "x" * 10_000,
    "9" * 10_000,
    "\U0001f600",
    "\ud800",
    "<|im_end|>\n<|im_start|>user",
    "\u0663+\u0664",
    "__import__('os')",
]
MODULES = [f"gspo_rllib.envs.{path.stem}" for path in Path(gspo_rllib.envs.__file__).parent.glob("[!_]*.py")]

each_case = pytest.mark.parametrize(("env_id", "settings"), CASES)


def make(env_id: str, settings: dict[str, Any]) -> gymnasium.Env[str, str]:
    return gymnasium.make(f"gspo_rllib.envs:{env_id}", **settings)


def play(env: gymnasium.Env[str, str], policy: Any, seed: int | None) -> tuple[float, list[Any]]:
    observation, info = env.reset(seed=seed)
    episode: list[Any] = [(observation, info)]
    over = False
    total = 0.0
    while not over:
        step = env.step(policy(observation))
        observation, reward, terminated, truncated, _ = step
        over = terminated or truncated
        total += reward
        episode.append(step)
    return total, episode


@each_case
def test_gymnasium_s_checker_has_no_complaint(env_id, settings) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(env_id, settings | {"render_mode": "ansi"}).unwrapped)


@each_case
def test_the_spaces_are_text_and_the_steps_do_not_block(env_id, settings) -> None:
    env = make(env_id, settings)
    assert isinstance(env.observation_space, UnicodeText)
    assert isinstance(env.action_space, UnicodeText)
    assert env.metadata["blocking"] is False
    assert isinstance(env.unwrapped.chat, ChatSpec)


@each_case
def test_a_seed_fixes_the_task_in_every_instance(env_id, settings) -> None:
    first, second = make(env_id, settings), make(env_id, settings)
    for seed in range(5):
        assert play(first, first.unwrapped.expert(), seed) == play(second, second.unwrapped.expert(), seed)


@each_case
def test_different_seeds_give_different_tasks(env_id, settings) -> None:
    env = make(env_id, settings)
    tasks = {json.dumps(play(env, env.unwrapped.expert(), seed)) for seed in range(20)}
    assert len(tasks) > 1


@each_case
def test_a_reset_without_a_seed_goes_on_to_a_new_task(env_id, settings) -> None:
    env = make(env_id, settings)
    seeded = [play(env, env.unwrapped.expert(), seed)[1] for seed in (3, *[None] * 20)]
    again = [play(env, env.unwrapped.expert(), seed)[1] for seed in (3, *[None] * 20)]
    assert seeded == again
    assert any(task != seeded[0] for task in seeded)


@each_case
def test_hostile_text_costs_a_turn_and_nothing_else(env_id, settings) -> None:
    env = make(env_id, settings)
    for seed, action in enumerate(HOSTILE):
        total, episode = play(env, lambda _, action=action: action, seed)
        assert total == 0.0
        assert len(episode) - 1 == env.unwrapped.max_turns
        for observation, reward, terminated, _, info in episode[1:]:
            assert isinstance(observation, str)
            assert len(observation) < 500, "an observation must not echo what it was sent"
            assert (reward, terminated, info["valid_action"]) == (0.0, False, False)
        assert episode[-1][4]["truncated_by"] == "turns"
        assert episode[-1][4]["success"] is False


@each_case
def test_an_episode_survives_hostile_text_in_its_middle(env_id, settings) -> None:
    env = make(env_id, settings)
    observation, _ = env.reset(seed=1)
    expert = env.unwrapped.expert()
    action = expert(observation)
    explained = env.step("?")[0]
    assert explained != observation
    if env.unwrapped.max_turns > len(settings) + 1:
        assert env.step(action)[4]["valid_action"] is True


@each_case
def test_info_is_json(env_id, settings) -> None:
    env = make(env_id, settings)
    for policy in (env.unwrapped.expert(), lambda _: "?"):
        _, episode = play(env, policy, 0)
        json.dumps([part[-1] for part in episode])


@each_case
def test_global_random_state_is_left_alone(env_id, settings) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()
    env = make(env_id, settings)
    play(env, env.unwrapped.expert(), 0)
    play(env, lambda _: "?", None)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@each_case
def test_an_env_pickles_in_the_middle_of_an_episode(env_id, settings) -> None:
    env = make(env_id, settings).unwrapped
    observation, _ = env.reset(seed=5)
    copy = pickle.loads(pickle.dumps(env))
    action = env.expert()(observation)
    assert copy.step(action) == env.step(action)
    assert copy.reset() == env.reset()


@each_case
def test_closing_twice_is_harmless(env_id, settings) -> None:
    env = make(env_id, settings)
    env.reset(seed=0)
    env.close()
    env.close()


@each_case
def test_the_expert_solves_every_task_from_observations_alone(env_id, settings) -> None:
    env = make(env_id, settings)
    for seed in range(100):
        total, episode = play(env, env.unwrapped.expert(), seed)
        assert total == 1.0
        assert episode[-1][4]["success"] is True
        assert not episode[-1][3], "the expert ran out of turns"


@each_case
def test_random_text_scores_nothing(env_id, settings) -> None:
    env = make(env_id, settings)
    env.action_space.seed(0)
    returns = [play(env, lambda _: env.action_space.sample(), seed)[0] for seed in range(50)]
    assert np.mean(returns) <= 0.02


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [("gspo_rllib/Calculator-v0", {"operations": value}) for value in (0, 31, -1, 2.0, "6", True, None)]
    + [("gspo_rllib/Bisection-v0", {"n": value}) for value in (1, 10_000, "16", True)],
)
def test_a_setting_out_of_range_is_refused_with_the_range(env_id, settings) -> None:
    (name,) = settings
    with pytest.raises(SettingError, match=f"{name}=.*must be an integer from"):
        make(env_id, settings)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_an_environment_s_file_are_true(module) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0
    assert results.failed == 0


def test_the_card_and_an_id_exist_for_every_environment_file() -> None:
    homes = {str(gymnasium.spec(env_id).entry_point).partition(":")[0] for env_id in ENV_IDS}
    assert homes == set(MODULES) - {"gspo_rllib.envs.spaces"}
    for home in homes:
        card = importlib.import_module(home).__doc__ or ""
        for field in ("Observation", "Action", "Reward", "Ends", "Info", "Settings", "Versions"):
            assert f"\n{field} " in card, f"{home}: its card lacks {field}"


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)


def test_environments_load_neither_torch_nor_ray_nor_vllm() -> None:
    root = Path(gspo_rllib.__file__).parents[1]
    code = (
        "import sys, gymnasium; gymnasium.make('gspo_rllib.envs:gspo_rllib/Calculator-v0');"
        "print(sorted({'torch', 'ray', 'vllm', 'transformers'} & set(sys.modules)))"
    )
    done = run_python(code, root)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_bare_name_is_refused() -> None:
    done = run_python("import envs", Path(gspo_rllib.__file__).parents[1])
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "gspo_rllib.envs" in done.stderr


def test_a_wrong_calculator_call_is_worked_out_and_spoils_the_answer() -> None:
    env = make("gspo_rllib/Calculator-v0", {"operations": 2})
    observation, info = env.reset(seed=0)
    head = env.unwrapped.expert()(observation)
    rest = observation.removeprefix(head)
    left = int(head[0])
    assert env.step("50 + 7")[0] == f"57{rest}" != f"{left}{rest}"
    total = float(env.step(f"answer {info['answer']}")[1])
    assert total == 1.0, "the answer itself is what counts, however it was found"


def test_a_calculator_call_that_leaves_the_display_is_explained_and_changes_nothing() -> None:
    env = make("gspo_rllib/Calculator-v0", {"operations": 2})
    expression, _ = env.reset(seed=0)
    observation, reward, terminated, _, info = env.step("99*99")
    assert observation.endswith(f": {expression}")
    assert (reward, terminated, info["valid_action"]) == (0.0, False, False)
    assert env.unwrapped.expert()(observation) == env.unwrapped.expert()(expression)


def test_the_sample_of_a_text_space_is_the_same_in_every_process() -> None:
    code = "from gspo_rllib.envs.spaces import UnicodeText as T; print(ascii(T(seed=3).sample()))"
    root = Path(gspo_rllib.__file__).parents[1]
    assert len({run_python(code, root).stdout for _ in range(2)} - {""}) == 1


def test_a_text_space_holds_any_string_and_pickles_small() -> None:
    space = UnicodeText()
    assert all(text in space for text in HOSTILE)
    assert len(pickle.dumps(space)) < 10_000
    assert pickle.loads(pickle.dumps(space)) == space != UnicodeText(max_length=5)

"""What every registered environment promises to an env runner; a new one joins by being registered.

Settings to test an environment with, beside its defaults, go into ``SETTINGS``. Other packages' environments
(``envs/adapters``) promise what ``check_language_env`` asks for, and are held to that with their own tests.
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
from gspo_rllib.errors import EnvError, SettingError
from gspo_rllib.types import ChatSpec

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "gspo_rllib/Calculator-v0": [{}, {"operations": 1}, {"operations": 30}],
    "gspo_rllib/Bisection-v0": [{}, {"n": 2}, {"n": 1000}],
    "gspo_rllib/Mastermind-v0": [
        {},
        {"positions": 1, "colours": 2, "tries": 2},
        {"positions": 4, "colours": 6, "tries": 8},
    ],
    "gspo_rllib/Recall-v0": [{}, {"turns": 8, "keys": 2, "values": 4}, {"turns": 200, "keys": 20, "values": 100}],
    "gspo_rllib/Quest-v0": [{}, {"rooms": 4, "locks": 0}, {"rooms": 20, "locks": 5}],
    "gspo_rllib/Arithmetic-v0": [{}, {"operands": 10, "digits": 9}],
    "gspo_rllib/Shell-v0": [{}, {"depth": 1, "fanout": 1, "files": 1}, {"depth": 2, "fanout": 3}],
    "gspo_rllib/SQL-v0": [{}, {"questions": 5, "tables": 2, "rows": 10}],
    "gspo_rllib/Dataset-v0": [
        {"verifier": "numeric", "rows": [{"question": f"{n} * 7?", "answer": f"#### {7 * n}"} for n in range(100, 150)]}
    ],
    "gspo_rllib/PythonTool-v0": [{"backend": "monty"}, {"backend": "monty", "steps": 1}],
}
ENV_IDS = [
    env_id
    for env_id, spec in gymnasium.registry.items()
    if env_id.startswith("gspo_rllib/") and ".adapters." not in str(spec.entry_point)
]
ANY_TEXT_IS_AN_ANSWER = {"gspo_rllib/Dataset-v0"}
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
HOMES = {str(gymnasium.spec(env_id).entry_point).partition(":")[0] for env_id in ENV_IDS}
MODULES = [f"gspo_rllib.envs.{path.stem}" for path in Path(gspo_rllib.envs.__file__).parent.glob("[!_]*.py")]

each_case = pytest.mark.parametrize(("env_id", "settings"), CASES)


def make(env_id: str, settings: dict[str, Any]) -> gymnasium.Env[str, str]:
    try:
        return gymnasium.make(f"gspo_rllib.envs:{env_id}", **settings)
    except EnvError as error:
        if "pip install" in str(error):
            pytest.skip(str(error))
        raise


def play(
    env: gymnasium.Env[str, str], policy: Any, seed: int | None, task_id: str | None = None
) -> tuple[float, list[Any]]:
    observation, info = env.reset(seed=seed, options=None if task_id is None else {"task_id": task_id})
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
def test_the_spaces_are_text_and_the_metadata_says_whether_a_step_blocks(env_id, settings) -> None:
    env = make(env_id, settings)
    assert isinstance(env.observation_space, UnicodeText)
    assert isinstance(env.action_space, UnicodeText)
    assert isinstance(env.metadata["blocking"], bool)
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
            assert reward == 0.0
            assert (terminated, info["valid_action"]) == (False, False) or env_id in ANY_TEXT_IS_AN_ANSWER
        assert episode[-1][4].get("truncated_by") == "turns" or env_id in ANY_TEXT_IS_AN_ANSWER
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


def replies(env: gymnasium.Env[str, str], seed: int) -> list[str]:
    """A mixture of the expert's actions and invalid ones, that the expert goes on from."""
    sent = []
    expert = env.unwrapped.expert()
    draw = np.random.default_rng(seed)

    def policy(observation: str) -> str:
        action = expert(observation)
        sent.append("?" if draw.random() < 0.2 else action)
        return sent[-1]

    play(env, policy, seed)
    return sent


def script(actions: list[str]) -> Any:
    left = iter(actions)
    return lambda _: next(left)


@each_case
def test_a_task_id_plays_the_same_task_again(env_id, settings) -> None:
    first, second = make(env_id, settings), make(env_id, settings)
    second.reset(seed=99)
    task_ids = set()
    for seed in range(10):
        actions = replies(first, seed)
        _, episode = play(first, script(actions), seed)
        task_id = episode[0][1]["task_id"]
        assert isinstance(task_id, str)
        task_ids.add(task_id)
        for other_seed in (None, seed + 1):
            assert play(second, script(actions), other_seed, task_id)[1] == episode
    assert len(task_ids) > 1


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_task_id_plays_the_same_task_in_another_process(env_id) -> None:
    told, played = [], []
    for settings in SETTINGS.get(env_id, [{}]):
        env = make(env_id, settings)
        actions = replies(env, 7)
        episode = play(env, script(actions), 7)[1]
        told.append([settings, episode[0][1]["task_id"], actions])
        played.append(episode)
    code = (
        "import gymnasium, json, sys\n"
        "for settings, task_id, actions in json.load(sys.stdin):\n"
        f"    env = gymnasium.make('gspo_rllib.envs:{env_id}', **settings)\n"
        "    print(json.dumps([env.reset(options={'task_id': task_id}), *map(env.step, actions)]))\n"
    )
    root = Path(gspo_rllib.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, input=json.dumps(told), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == json.loads(json.dumps(played))


@each_case
@pytest.mark.parametrize("task_id", ["", "no such task", "-1", "9" * 5000, "\u0663", 3, ["1"]])
def test_an_unknown_task_is_refused_with_what_is_allowed(env_id, settings, task_id) -> None:
    env = make(env_id, settings)
    with pytest.raises(EnvError, match=r"task_id=.*[Aa]llowed: ") as refused:
        env.reset(seed=0, options={"task_id": task_id})
    assert len(str(refused.value)) < 500
    assert play(env, env.unwrapped.expert(), 0)[0] == env.unwrapped.optimal_return


@each_case
def test_every_turn_says_what_the_contract_asks_for(env_id, settings) -> None:
    env = make(env_id, settings)
    rng = np.random.default_rng(0)
    policies = [env.unwrapped.expert(), lambda _: "?"]
    if hasattr(env.unwrapped, "random_action"):
        policies.append(lambda _: env.unwrapped.random_action(rng))
    for policy in policies:
        total, episode = play(env, policy, 0)
        assert json.dumps(episode[0][1]["task_id"])
        for turn, (observation, reward, terminated, truncated, info) in enumerate(episode[1:], start=1):
            over = turn == len(episode) - 1
            assert isinstance(observation, str) and type(reward) is float
            assert info["valid_action"] in (True, False) and info["obs_role"] in ("user", "tool")
            assert (terminated or truncated) == over == ("success" in info)
            assert truncated == ("truncated_by" in info)
            assert sum(info.get("reward_parts", {"": reward}).values()) == pytest.approx(reward)
        assert episode[-1][4]["success"] == (total == env.unwrapped.optimal_return)
        assert total <= env.unwrapped.optimal_return


@pytest.mark.parametrize(("env_id", "settings"), [case for case in CASES if case[0] not in ANY_TEXT_IS_AN_ANSWER])
def test_random_valid_play_is_valid_and_earns_less_than_the_expert(env_id, settings) -> None:
    env = make(env_id, settings)
    rng = np.random.default_rng(0)
    returns = []
    for seed in range(20):
        total, episode = play(env, lambda _: env.unwrapped.random_action(rng), seed)
        assert all(step[4]["valid_action"] for step in episode[1:])
        returns.append(total)
    assert np.mean(returns) < env.unwrapped.optimal_return


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
        assert total == env.unwrapped.optimal_return
        assert episode[-1][4]["success"] is True
        assert not episode[-1][3], "the expert ran out of turns"
        assert len(episode) - 1 <= env.unwrapped.max_turns


@each_case
def test_random_text_scores_nothing(env_id, settings) -> None:
    env = make(env_id, settings)
    env.action_space.seed(0)
    returns = [play(env, lambda _: env.action_space.sample(), seed)[0] for seed in range(50)]
    assert np.mean(returns) <= 0.02


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [("gspo_rllib/Calculator-v0", {"operations": value}) for value in (0, 31, -1, 2.0, "6", True, None)]
    + [("gspo_rllib/Bisection-v0", {"n": value}) for value in (1, 10_000, "16", True)]
    + [("gspo_rllib/Mastermind-v0", {"positions": value}) for value in (0, 7, 3.0)]
    + [("gspo_rllib/Mastermind-v0", {"colours": 1}), ("gspo_rllib/Mastermind-v0", {"tries": 0})]
    + [("gspo_rllib/Recall-v0", {name: value}) for name in ("turns", "keys", "values") for value in (0, 1001, None)]
    + [("gspo_rllib/Quest-v0", {"rooms": value}) for value in (1, 41)]
    + [("gspo_rllib/Quest-v0", {"locks": value}) for value in (-1, 9)]
    + [("gspo_rllib/Arithmetic-v0", {name: value}) for name in ("operands", "digits") for value in (0, 11, True)]
    + [("gspo_rllib/Shell-v0", {name: value}) for name in ("depth", "fanout", "files") for value in (0, 4, True)]
    + [("gspo_rllib/SQL-v0", {name: value}) for name in ("questions", "tables", "rows") for value in (0, 201, "3")]
    + [("gspo_rllib/PythonTool-v0", {"steps": value}) for value in (0, 21)],
)
def test_a_setting_out_of_range_is_refused_with_the_range(env_id, settings) -> None:
    (name,) = settings
    with pytest.raises(SettingError, match=f"{name}=.*must be an integer from"):
        make(env_id, settings)


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_an_environment_s_file_are_true(module) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0 or module not in HOMES
    assert results.failed == 0


def test_the_card_and_an_id_exist_for_every_environment_file() -> None:
    assert not {module for module in MODULES if "\n    def expert(self)" in source(module)} - HOMES
    for home in HOMES:
        card = importlib.import_module(home).__doc__ or ""
        for field in ("Observation", "Action", "Reward", "Ends", "Info", "Settings", "Versions"):
            assert f"\n{field} " in card, f"{home}: its card lacks {field}"


def source(module: str) -> str:
    return Path(str(importlib.import_module(module).__file__)).read_text()


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)


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


def test_the_sample_of_a_text_space_is_the_same_in_every_process() -> None:
    code = "from gspo_rllib.envs.spaces import UnicodeText as T; print(ascii(T(seed=3).sample()))"
    root = Path(gspo_rllib.__file__).parents[1]
    assert len({run_python(code, root).stdout for _ in range(2)} - {""}) == 1


def test_a_text_space_holds_any_string_and_pickles_small() -> None:
    space = UnicodeText()
    assert all(text in space for text in HOSTILE)
    assert len(pickle.dumps(space)) < 10_000
    assert pickle.loads(pickle.dumps(space)) == space != UnicodeText(max_length=5)

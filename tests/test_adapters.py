"""Other packages' environments behind our contract, played for real; a suite that is not installed skips its tests."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from guessing_server import running

import gspo_rllib
from gspo_rllib.envs import check_language_env
from gspo_rllib.envs.adapters.reasoning_gym import NEEDS_PYCOSAT
from gspo_rllib.errors import EnvError, SettingError

ROOT = Path(gspo_rllib.__file__).parents[1]
ADAPTERS = {
    "babyai": ("gspo_rllib/BabyAI-v0", "minigrid", {}),
    "textworld-express": ("gspo_rllib/TextWorldExpress-v0", "textworld_express", {}),
    "scienceworld": ("gspo_rllib/ScienceWorld-v0", "scienceworld", {}),
    "textarena": ("gspo_rllib/TextArena-v0", "textarena", {}),
    "reasoning-gym": ("gspo_rllib/ReasoningGym-v0", "reasoning_gym", {}),
    "openenv": ("gspo_rllib/OpenEnv-v0", "websockets", {"url": "ws://localhost:1/ws"}),
}
PLAYERS = [
    "2048-v0-easy",
    "Bandit-v0",
    "Blackjack-v0",
    "Countdown-v0",
    "Crosswords-v0",
    "Cryptarithm-v0",
    "FifteenPuzzle-v0",
    "FrozenLake-v0",
    "GuessTheNumber-v0",
    "LightsOut-v0",
    "LogicPuzzle-v0",
    "Mastermind-v0",
    "Minesweeper-v0-small",
    "PegJump-v0",
    "RushHour-v0",
    "Secretary-v0",
    "Set-v0",
    "Slitherlink-v0",
    "Sokoban-v0",
    "Sudoku-v0-easy",
    "ThreeCardMonte-v0",
    "TowerOfHanoi-v0",
]
# Datasets whose scorers would run the answer as code.
RUNNERS = [
    "binary_matrix",
    "n_queens",
    "spiral_matrix",
    "string_insertion",
    "countdown",
    "polynomial_multiplication",
    "puzzle24",
    "simple_integration",
    "intermediate_integration",
]
HOSTILE = [
    "",
    "\0",
    "\ud800",
    "[",
    "[1]",
    "[up]",
    "[999999999999999999999]",
    f"[{'9' * 5000}]",
    "[A 1]",
    "[-1 -1]",
    "[\u0663]",
]


def needs(*modules: str, java: bool = False) -> Any:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if java and not shutil.which("java"):
        missing.append("Java")
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


needs_minigrid = needs("minigrid")
needs_textworld_express = needs("textworld_express", java=True)
needs_scienceworld = needs("scienceworld", java=True)
needs_textarena = needs("textarena")
needs_reasoning_gym = needs("reasoning_gym")
needs_websockets = needs("websockets")


def make(name: str, **settings: Any) -> Any:
    return gymnasium.make(f"gspo_rllib.envs:gspo_rllib/{name}-v0", disable_env_checker=True, **settings).unwrapped


def play(env: Any, policy: Callable[[str], str], **how: Any) -> tuple[float, list[Any]]:
    observation, info = env.reset(**how)
    episode: list[Any] = [(observation, info)]
    total, over = 0.0, False
    while not over:
        step = env.step(policy(observation))
        observation, reward, terminated, truncated, _ = step
        total, over = total + reward, terminated or truncated
        episode.append(step)
    return total, episode


def recorded(policy: Callable[[str], str]) -> tuple[Callable[[str], str], list[str]]:
    actions: list[str] = []

    def record(observation: str) -> str:
        actions.append(policy(observation))
        return actions[-1]

    return record, actions


# -- all of them


@pytest.mark.parametrize("extra", ADAPTERS)
def test_a_missing_package_is_an_error_that_names_the_extra(extra, monkeypatch) -> None:
    env_id, package, settings = ADAPTERS[extra]
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvError, match=rf"pip install 'gspo-rllib\[{extra}\]'"):
        gymnasium.make(f"gspo_rllib.envs:{env_id}", **settings)


def test_the_extras_and_the_package_are_in_the_project_file() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert all(f"\n{extra} = [" in text for extra in ADAPTERS)


@pytest.mark.parametrize(("name", "settings"), [("TextWorldExpress", {}), ("ScienceWorld", {})])
def test_missing_java_is_an_error_that_says_how_to_get_it(name, settings, monkeypatch, tmp_path) -> None:
    pytest.importorskip("py4j")
    pytest.importorskip(name.lower() if name == "ScienceWorld" else "textworld_express")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(EnvError, match=r"Java was not found.*default-jre-headless.*JAVA_HOME"):
        make(name, **settings)


def test_registering_them_imports_none_of_the_packages() -> None:
    packages = {package for _, package, _ in ADAPTERS.values()} | {"py4j", "reasoning_gym", "torch", "ray"}
    code = f"import sys, gspo_rllib.envs; print(sorted({sorted(packages)!r} & sys.modules.keys()))"
    code = code.replace(repr(sorted(packages)), f"set({sorted(packages)!r})")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "envs/adapters").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_the_examples_of_an_adapter_are_true_and_its_card_is_complete(path) -> None:
    module = importlib.import_module(f"gspo_rllib.envs.adapters.{path.stem}")
    assert doctest.testmod(module).failed == 0
    if path.stem not in ("jvm", "randomness", "suite"):
        for field in ("Observation", "Action", "Reward", "Ends", "Info", "Settings", "Expert", "Cannot", "Versions"):
            if (field, path.stem) != ("Cannot", "babyai"):
                assert f"\n{field} " in (module.__doc__ or ""), field


# -- BabyAI


@needs_minigrid
@pytest.mark.parametrize("settings", [{}, {"level": "UnlockPickup"}, {"level": "BossLevel"}])
def test_babyai_keeps_the_contract(settings) -> None:
    report = check_language_env("gspo_rllib.envs:gspo_rllib/BabyAI-v0", **settings)
    assert "its expert solves its tasks" in report.passed


@needs_minigrid
@pytest.mark.parametrize(("level", "tasks"), [("GoToLocal", 40), ("PutNextLocal", 10), ("GoToObjS6", 10)])
def test_the_bot_of_babyai_does_every_mission_in_text(level, tasks) -> None:
    env = make("BabyAI", level=level)
    for seed in range(tasks):
        total, episode = play(env, env.expert(), seed=seed)
        assert total == 1.0
        assert episode[-1][4]["success"] is True


@needs_minigrid
def test_random_actions_in_babyai_seldom_succeed() -> None:
    env = make("BabyAI", level="PutNextLocal")
    rng = np.random.default_rng(0)
    assert np.mean([play(env, lambda _: env.random_action(rng), seed=seed)[0] for seed in range(10)]) <= 0.3


@needs_minigrid
def test_a_babyai_turn_changes_what_is_told_as_a_turn_of_the_head_does() -> None:
    env = make("BabyAI", level="GoToLocal")
    first, info = env.reset(seed=0)
    told = first.removeprefix(f"mission: {info['mission']}; ")
    seen = [env.step("turn left")[0] for _ in range(4)]
    directions = [text.split(";")[0] for text in [told, *seen]]
    assert seen[3] == told
    compass = ["facing north", "facing west", "facing south", "facing east"]
    start = compass.index(directions[0])
    assert directions == [compass[(start + turn) % 4] for turn in range(5)]


@needs_minigrid
def test_babyai_s_own_limit_truncates_and_an_own_one_replaces_it() -> None:
    for settings, turns in (({"level": "GoToLocal"}, 64), ({"max_turns": 5}, 5), ({"max_turns": 200}, 200)):
        env = make("BabyAI", **settings)
        # Turning on the spot, looking for nothing, cannot do a mission that asks for something elsewhere.
        _, episode = play(env, lambda _: "drop", seed=1)
        assert len(episode) - 1 == turns == env.max_turns
        assert episode[-1][4]["truncated_by"] == "turns"


@needs_minigrid
def test_an_unknown_level_is_refused_and_a_minigrid_one_has_no_bot() -> None:
    with pytest.raises(SettingError, match="Did you mean 'GoToLocal'"):
        make("BabyAI", level="GotoLocal")
    env = make("BabyAI", level="MiniGrid-DoorKey-5x5-v0")
    assert "door" in env.reset(seed=0)[0]
    with pytest.raises(EnvError, match="BabyAI's levels only"):
        env.expert()


# -- TextWorldExpress


@needs_textworld_express
@pytest.mark.parametrize("settings", [{}, {"game": "simonsays"}, {"game": "mapreader", "show_actions": True}])
def test_textworld_express_keeps_the_contract(settings) -> None:
    report = check_language_env("gspo_rllib.envs:gspo_rllib/TextWorldExpress-v0", **settings)
    assert "its expert solves its tasks" in report.passed


@needs_textworld_express
@pytest.mark.parametrize(
    "game", ["arithmetic", "coin", "cookingworld", "mapreader", "peckingorder", "simonsays", "twc"]
)
def test_a_group_on_one_task_in_one_java_machine_plays_as_one_alone(game) -> None:
    alone, *group = [make("TextWorldExpress", game=game, max_turns=150) for _ in range(4)]
    for task_id in ("133", "10474", "20007"):
        policy, actions = recorded(alone.expert())
        total, episode = play(alone, policy, options={"task_id": task_id})
        assert total == pytest.approx(1.0)
        firsts = [env.reset(options={"task_id": task_id}) for env in group]
        assert firsts == [episode[0]] * 3
        for action, expected in zip(actions, episode[1:], strict=True):
            assert [env.step(action) for env in group] == [expected] * 3


@needs_textworld_express
@pytest.mark.slow
@pytest.mark.parametrize("game", ["coin", "cookingworld", "twc"])
def test_a_textworld_express_game_reads_the_same_in_another_process(game) -> None:
    env = make("TextWorldExpress", game=game, max_turns=150)
    policy, actions = recorded(env.expert())
    episode = play(env, policy, seed=11)[1]
    code = (
        "import gymnasium, json, sys\n"
        f"env = gymnasium.make('gspo_rllib.envs:gspo_rllib/TextWorldExpress-v0', game={game!r}, max_turns=150)\n"
        "told = [env.reset(seed=11)]\n"
        "told += [env.step(action) for action in json.load(sys.stdin)]\n"
        "print(json.dumps(told))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(actions), capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == json.loads(json.dumps(episode)), done.stderr


@needs_textworld_express
def test_textworld_express_draws_tasks_of_its_split_and_takes_any() -> None:
    for split, least in (("train", 0), ("dev", 10_000), ("test", 20_000)):
        env = make("TextWorldExpress", split=split)
        drawn = {int(env.reset(seed=seed)[1]["task_id"]) for seed in range(5)}
        assert len(drawn) > 1
        assert all(least <= number < least + 1000 for number in drawn)
    assert env.reset(options={"task_id": "3"})[1]["task_id"] == "3"
    with pytest.raises(EnvError, match="no such task"):
        env.reset(options={"task_id": "1000"})


@needs_textworld_express
def test_textworld_express_fails_with_minus_one_and_ignores_what_is_no_action() -> None:
    env = make("TextWorldExpress", game="simonsays")
    env.reset(seed=0)
    assert env.step("xyzzy")[1:4] == (0.0, False, False)
    wrong = next(action for action in env._valid if action != env.expert()(""))
    _, reward, terminated, _, info = env.step(wrong)
    assert (reward, terminated, info["success"]) == (-1.0, True, False)


@needs_textworld_express
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"game": "cooking"}, "Did you mean 'cookingworld'"),
        ({"game": "sorting"}, "share their objects"),
        ({"params": "numLocations=99"}, "less than or equal to 11"),
        ({"params": "rooms=2"}, "Unrecognized property"),
        ({"split": "validation"}, "Allowed: dev, test, train"),
        ({"heap_mb": 1}, "heap_mb=1"),
    ],
)
def test_textworld_express_refuses_wrong_settings(settings, message) -> None:
    with pytest.raises(SettingError, match=message):
        make("TextWorldExpress", **settings)


# -- ScienceWorld


@needs_scienceworld
@pytest.mark.slow
def test_scienceworld_keeps_the_contract_and_says_what_it_cannot_do() -> None:
    env = make("ScienceWorld", task="find-living-thing", simplifications="easy")
    assert env.metadata["deterministic"] is False
    assert env.metadata["picklable"] is False
    first = env.reset(seed=3)
    assert env.reset(options={"task_id": first[1]["task_id"]})[1] == first[1]
    total, episode = play(env, env.expert(), seed=3)
    assert episode[0][0].splitlines()[0] == first[0].splitlines()[0]
    assert total == pytest.approx(1.0)
    assert episode[-1][4]["success"] is True
    assert sum(step[1] for step in episode[1:-1]) < 1.0, "the reward is a change of the score, turn by turn"
    with pytest.raises(EnvError, match="pickle"):
        pickle.dumps(env)
    with pytest.raises(EnvError, match="Start the task anew"):
        env.get_state()


@needs_scienceworld
def test_hostile_text_in_scienceworld_costs_a_turn_and_a_wrong_focus_fails() -> None:
    env = make("ScienceWorld", task="find-living-thing", simplifications="easy")
    env.reset(seed=3)
    for action in [*HOSTILE[:4], "x" * 10_000, "reset task", "\U0001f600"]:
        observation, reward, terminated, truncated, info = env.step(action)
        assert (reward, terminated, truncated, info["valid_action"]) == (0.0, False, False, False)
        assert len(observation) < 500
    _, reward, terminated, _, info = env.step("focus on air")
    assert (terminated, info["success"], info["valid_action"]) == (True, False, True)
    assert reward == pytest.approx(-1.0)


@needs_scienceworld
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "boyl"}, "Did you mean 'boil'"),
        ({"simplifications": "eazy"}, "Did you mean 'easy'"),
        ({"split": "x"}, "no such split"),
    ],
)
def test_scienceworld_refuses_wrong_settings(settings, message) -> None:
    with pytest.raises(SettingError, match=message):
        make("ScienceWorld", **settings)


@needs_scienceworld
def test_scienceworld_refuses_a_variation_it_does_not_have() -> None:
    env = make("ScienceWorld")
    for task_id in ("300", "-1", "01", "x"):
        with pytest.raises(EnvError, match="'0' to '299'"):
            env.reset(options={"task_id": task_id})


# -- TextArena


@needs_textarena
@pytest.mark.parametrize("game", ["GuessTheNumber-v0", "2048-v0-easy", "Sudoku-v0-easy"])
def test_textarena_keeps_the_contract(game) -> None:
    check_language_env("gspo_rllib.envs:gspo_rllib/TextArena-v0", game=game)


@needs_textarena
@pytest.mark.parametrize("game", PLAYERS)
def test_textarena_games_replay_exactly_while_another_is_played(game, capsys) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()
    other = make("TextArena", game="Bandit-v0")
    episodes = []
    for disturb in (False, True):
        env = make("TextArena", game=game, max_turns=len(HOSTILE))
        left = iter(HOSTILE)

        def policy(_: str, left: Iterator[str] = left, disturb: bool = disturb) -> str:
            if disturb:
                other.reset(seed=9)
                other.step("[red]")
            return next(left)

        episodes.append(play(env, policy, seed=5))
    assert episodes[0] == episodes[1]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert capsys.readouterr().out == ""
    assert pickle.loads(pickle.dumps(env)).get_state() == env.get_state()


@needs_textarena
def test_a_player_who_halves_the_range_wins_guess_the_number() -> None:
    env = make("TextArena", game="GuessTheNumber-v0")
    for seed in range(10):
        low, high = 1, 20

        def policy(observation: str) -> str:
            nonlocal low, high
            middle = (low + high) // 2
            if "lower" in observation and "target number is" in observation:
                high = middle - 1
            elif "higher" in observation and "target number is" in observation:
                low = middle + 1
            return f"[{(low + high) // 2}]"

        total, episode = play(env, policy, seed=seed)
        assert total == 1.0
        assert episode[-1][4]["success"] is True
        assert all("target number is" not in episode[0][0] for _ in episode)


@needs_textarena
def test_invalid_moves_cost_turns_unless_the_suite_s_own_rule_is_asked_for() -> None:
    _, episode = play(make("TextArena", max_turns=7), lambda _: "?", seed=0)
    assert [step[1] for step in episode[1:]] == [0.0] * 7
    assert episode[-1][4]["truncated_by"] == "turns"
    assert not any(step[4]["valid_action"] for step in episode[1:])
    total, episode = play(make("TextArena", game="2048-v0-easy", error_allowance=1), lambda _: "?", seed=0)
    assert len(episode) - 1 == 2
    assert total < 1.0


@needs_textarena
@pytest.mark.parametrize(
    ("game", "error", "message"),
    [
        ("Wordle-v0", EnvError, "NLTK would download"),
        ("TwentyQuestions-v0", EnvError, "paid service"),
        ("Klondike-v0", EnvError, "newer Python"),
        ("Chess-v0", SettingError, "not a game for one player"),
        ("GuessTheNumbr-v0", SettingError, "Did you mean 'GuessTheNumber-v0'"),
    ],
)
def test_textarena_games_that_cannot_be_offered_are_refused(game, error, message) -> None:
    with pytest.raises(error, match=message):
        make("TextArena", game=game)


# -- reasoning-gym


@needs_reasoning_gym
@pytest.mark.parametrize("dataset", ["chain_sum", "countdown", "pool_matrix"])
def test_reasoning_gym_keeps_the_contract(dataset) -> None:
    check_language_env("gspo_rllib.envs:gspo_rllib/ReasoningGym-v0", dataset=dataset)


@needs_reasoning_gym
@pytest.mark.parametrize(
    "dataset",
    ["chain_sum", "maze", "spell_backward", "string_manipulation", *RUNNERS],
)
def test_the_suite_s_own_answer_scores_one(dataset) -> None:
    env = make("ReasoningGym", dataset=dataset)
    for seed in range(5):
        assert play(env, env.expert(), seed=seed)[0] == 1.0
        _, info = env.reset(seed=seed)
        assert env.step(f"Let me see. <answer> {info['answer']} </answer> It is.")[1] == 1.0
        assert pickle.loads(pickle.dumps(env)).reset(seed=seed) == env.reset(seed=seed)


@needs_reasoning_gym
@pytest.mark.parametrize(
    "dataset",
    RUNNERS,
)
def test_no_answer_is_run_as_code(dataset, tmp_path) -> None:
    env = make("ReasoningGym", dataset=dataset)
    trace = tmp_path / "ran"
    for code in (
        f"open({str(trace)!r}, 'w')",
        f"[open({str(trace)!r}, 'w')]",
        f"(lambda: open({str(trace)!r}, 'w'))()",
    ):
        env.reset(seed=0)
        assert env.step(code)[1] == 0.0
        assert not trace.exists()
    env.reset(seed=0)
    assert env.step("9**9**9**9")[1] <= 0.05, "and no number is worked out that never ends"


@needs_reasoning_gym
def test_a_scorer_that_raises_makes_the_answer_invalid() -> None:
    env = make("ReasoningGym", dataset="prime_factorization")
    env.reset(seed=0)
    assert env.step("seven")[1:] == (0.0, True, False, {"valid_action": False, "obs_role": "user", "success": False})


@needs_reasoning_gym
def test_reasoning_gym_refuses_wrong_settings_and_has_no_expert_without_answers() -> None:
    with pytest.raises(SettingError, match="Did you mean 'chain_sum'"):
        make("ReasoningGym", dataset="chainsum")
    with pytest.raises(SettingError, match="refuses them"):
        make("ReasoningGym", dataset="chain_sum", params={"terms": 3})
    with pytest.raises(SettingError, match="set by the task"):
        make("ReasoningGym", dataset="chain_sum", params={"seed": 3})
    env = make("ReasoningGym", dataset="graph_color")
    observation, _ = env.reset(seed=0)
    with pytest.raises(EnvError, match="no expert"):
        env.expert()(observation)


@needs_reasoning_gym
def test_without_pycosat_only_the_dataset_that_needs_it_is_refused(monkeypatch) -> None:
    make("ReasoningGym")
    importlib.util.find_spec("pycosat")  # raises if what stood in for it during the import was left behind
    monkeypatch.setitem(sys.modules, "pycosat", None)
    with pytest.raises(EnvError, match=r"'zebra_puzzles' needs pycosat.*pip install pycosat"):
        make("ReasoningGym", dataset="zebra_puzzles")
    datasets = importlib.import_module("reasoning_gym.factory").DATASETS
    near = {name for name, (kind, _) in datasets.items() if kind.__module__.startswith("reasoning_gym.logic.")}
    assert near > NEEDS_PYCOSAT
    for dataset in near - NEEDS_PYCOSAT:
        make("ReasoningGym", dataset=dataset).reset(seed=0)


# -- OpenEnv


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    pytest.importorskip("websockets")
    with running() as url:
        yield url


def halving() -> Callable[[str], str]:
    low, high, guess = 0, 99, -1

    def policy(observation: str) -> str:
        nonlocal low, high, guess
        low, high = (guess + 1, high) if observation == "too low" else (low, high)
        low, high = (low, guess - 1) if observation == "too high" else (low, high)
        guess = (low + high) // 2
        return str(guess)

    return policy


@needs_websockets
def test_an_openenv_server_is_played_through_its_websocket(server) -> None:
    env, other = (make("OpenEnv", url=server, observation_field="text") for _ in range(2))
    for seed in range(5):
        total, episode = play(env, halving(), seed=seed)
        assert total == 1.0
        assert episode[0][0] == "guess 0 to 99"
        assert episode[-1][4]["success"] is True
        assert play(other, halving(), options={"task_id": episode[0][1]["task_id"]})[1] == episode
    env.close()
    env.close()
    assert env.reset(seed=0)[0] == "guess 0 to 99", "a closed environment connects again"
    env.close()
    other.close()


@needs_websockets
def test_hostile_text_reaches_an_openenv_server_and_comes_back(server) -> None:
    env = make("OpenEnv", url=server, observation_field="text", max_turns=len(HOSTILE))
    left = iter(HOSTILE)
    total, episode = play(env, lambda _: next(left), seed=0)
    assert total == 0.0
    assert {step[0] for step in episode[1:]} == {"not a number"}
    assert episode[-1][4]["truncated_by"] == "turns"
    with pytest.raises(EnvError, match="cannot be pickled"):
        pickle.dumps(env)
    env.close()


@needs_websockets
def test_what_an_openenv_server_refuses_is_an_error_that_quotes_it(server) -> None:
    env = make("OpenEnv", url=server, action_field="bogus")
    assert '"text": "guess 0 to 99"' in env.reset(seed=0)[0], "without a field, all of the observation is shown"
    with pytest.raises(EnvError, match="Invalid message"):
        env.step("1")
    env.close()
    env = make("OpenEnv", url=server, observation_field="texd")
    with pytest.raises(EnvError, match=r"'texd'.*'text'"):
        env.reset(seed=0)
    env.close()
    with pytest.raises(EnvError, match="Is the server running"):
        make("OpenEnv", url="ws://127.0.0.1:1/ws").reset(seed=0)
    with pytest.raises(SettingError, match="must begin with ws://"):
        make("OpenEnv", url="http://localhost:8000")
    with pytest.raises(SettingError, match="seconds above 0"):
        make("OpenEnv", url=server, timeout_s=0)

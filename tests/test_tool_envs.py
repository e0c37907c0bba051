"""The shell, a tree of folders in memory, and the Python tool, which runs code in a sandbox."""

from __future__ import annotations

import itertools
import pickle
import time
from typing import Any

import gymnasium
import pytest

import gspo_rllib.envs.sandbox as sandbox_package
from gspo_rllib.envs.python_tool import OPERATIONS, PythonToolEnv, build_recipe, solve, without_seven
from gspo_rllib.envs.sandbox import open_sandbox, unavailable_backends
from gspo_rllib.envs.shell import ShellEnv, build_tree, folders, lookup, most_turns, resolve
from gspo_rllib.errors import EnvError, SettingError

REASONS = unavailable_backends()
needs_monty = pytest.mark.skipif(bool(REASONS["monty"]), reason=str(REASONS["monty"]))
each_backend = pytest.mark.parametrize(
    "backend",
    [pytest.param(name, marks=pytest.mark.skipif(bool(why), reason=f"{name}: {why}")) for name, why in REASONS.items()],
)


def play(env: gymnasium.Env[str, str], policy: Any, seed: int = 0) -> list[Any]:
    observation, _ = env.reset(seed=seed)
    steps: list[Any] = []
    while not steps or not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(policy(observation)))
        observation = steps[-1][0]
    return steps


def names(folder: dict[str, Any]) -> int:
    return sum(1 + names(entry) if isinstance(entry, dict) else 0 for entry in folder.values())


def test_the_tree_is_full_and_every_name_is_asked_for_once() -> None:
    tree, path = build_tree(task=5, depth=3, fanout=3, files=3)
    assert names(tree) + 1 == folders(3, 3) == 40
    assert isinstance(lookup(tree, resolve((), path)), str)

    def lines(folder: dict[str, Any]) -> list[str]:
        return [line for entry in folder.values() for line in (lines(entry) if isinstance(entry, dict) else [entry])]

    keys = [line.partition("=")[0] for line in lines(tree)]
    assert len(keys) == len(set(keys)) == 120


def test_the_shell_walks_lists_and_reads() -> None:
    env = ShellEnv(depth=2, fanout=2, files=1)
    _, info = env.reset(seed=3)
    folder, _, file = info["path"].removeprefix("/").rpartition("/")
    assert env.step("pwd")[0] == "/"
    top = env.step("ls")[0].split()
    assert len(top) == 3 and sum(name.endswith("/") for name in top) == 2
    child = next(name for name in top if name.endswith("/")).removesuffix("/")
    assert env.step(f"cd {child}")[0] == f"/{child}"
    inside = env.step("ls")[0]
    assert env.step(f"ls /{child}")[0] == env.step(f"ls ../{child}")[0] == inside
    assert env.step("cd ..")[0] == env.step("cd ../../..")[0] == "/"
    assert env.step(f"cat /{folder}/{file}")[0].endswith(f"={info['answer']}")
    assert env.step(f"answer {info['answer']}")[:3] == ("right", 1.0, True)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("cat nowhere", "cat: no such file"),
        ("cat /", "cat: no such file"),
        ("cd nowhere", "cd: no such folder"),
        ("ls nowhere", "ls: no such folder"),
        ("answer", "answer: needs a number, such as answer 37"),
        ("answer ba", "answer: needs a number, such as answer 37"),
        ("find .", "not a command: ls, cd ba, cat fi, pwd, answer 37"),
        ("cat /etc/passwd", "cat: no such file"),
        ("ls; rm -rf /", "not a command: ls, cd ba, cat fi, pwd, answer 37"),
    ],
)
def test_a_wrong_command_is_explained_and_leaves_one_where_one_was(command, complaint) -> None:
    env = ShellEnv()
    env.reset(seed=1)
    observation, reward, terminated, _, info = env.step(command)
    assert (observation, reward, terminated, info["valid_action"]) == (complaint, 0.0, False, False)
    assert env.step("pwd")[0] == "/"


def test_a_wrong_answer_ends_the_search() -> None:
    env = ShellEnv()
    _, info = env.reset(seed=1)
    observation, reward, terminated, _, step_info = env.step(f"answer {info['answer'] + 1}")
    assert (observation, reward, terminated, step_info["success"]) == ("wrong", 0.0, True, False)


def test_the_largest_tree_has_480_turns_and_the_search_needs_at_most_half() -> None:
    env = ShellEnv(depth=3, fanout=3, files=3)
    assert env.max_turns == 480 == 2 * most_turns(3, 3, 3) + 2
    lengths = []
    for seed in range(40):
        steps = play(env, env.expert(), seed)
        assert steps[-1][1] == 1.0
        assert all(len(step[0]) <= 60 for step in steps)
        lengths.append(len(steps))
    assert max(lengths) <= 239
    assert max(lengths) > 150


def test_the_shell_makes_5000_steps_a_second() -> None:
    env = ShellEnv()
    begin, steps = time.process_time(), 0
    for seed in range(100):
        steps += len(play(env, env.expert(), seed))
    assert steps / (time.process_time() - begin) > 5000


@needs_monty
def test_the_verifier_and_the_code_agree_on_every_operation() -> None:
    sandbox = open_sandbox("monty")
    for name, operation in OPERATIONS.items():
        for number in (operation.least, operation.least + 1, 97, operation.most - 1, operation.most):
            if operation.least <= number <= operation.most:
                shown = sandbox.run(f"x = {number}\n{operation.code}\nprint(x)").output
                assert int(shown) == operation.compute(number), (name, number)
    sandbox.close()


def test_numbers_without_a_seven_are_counted_right() -> None:
    for bound in (0, 6, 7, 8, 69, 70, 79, 80, 777, 1000):
        assert without_seven(bound) == sum("7" not in str(number) for number in range(bound + 1))


def test_a_recipe_never_leaves_its_range_or_repeats_itself() -> None:
    for task in range(100):
        start, recipe = build_recipe(task, steps=8)
        assert (start, recipe) == build_recipe(task, steps=8)
        values = [solve(start, recipe[:count]) for count in range(9)]
        assert all(2 <= value <= 9999 for value in values)
        assert all(one != other for one, other in itertools.pairwise(values))


@each_backend
def test_the_expert_solves_its_task_in_every_sandbox(backend) -> None:
    env = PythonToolEnv(steps=4, backend=backend)
    steps = play(env, env.expert(), seed=2)
    assert [step[1] for step in steps] == [0.0] * 4 + [1.0]
    assert env.reset(seed=2)[1]["backend"] == backend
    env.close()
    env.close()


@needs_monty
def test_output_error_and_silence_are_told_apart() -> None:
    env = PythonToolEnv(output_chars=60)
    env.reset(seed=0)
    assert env.step("y = 1")[0] == "nothing was printed: use print"
    assert env.step("print(y)\n1 / 0")[0] == "1\nerror: ZeroDivisionError: division by zero (line 2)"
    assert env.step("Look:\n```python\nprint(y + 1)\n```\n")[0] == "2"
    observation, _, _, _, info = env.step("   ")
    assert observation.startswith("no code") and info["valid_action"] is False
    assert [len(env.step(code)[0]) for code in ("print('x' * 999)", "print('x' * 999); z")] == [60, 60]


@needs_monty
def test_code_that_never_ends_costs_its_time_and_the_variables() -> None:
    env = PythonToolEnv(seconds=0.2)
    env.reset(seed=0)
    env.step("y = 1")
    begin = time.monotonic()
    observation, reward, terminated, _, info = env.step("while True: pass")
    assert time.monotonic() - begin < 3.0
    assert (reward, terminated, info["valid_action"]) == (0.0, False, False)
    assert observation == "error: stopped after 0.2 s; its variables are lost"
    assert "NameError" in env.step("print(y)")[0]


@needs_monty
def test_variables_end_with_their_episode() -> None:
    env = PythonToolEnv()
    env.reset(seed=0)
    env.step("y = 1")
    env.reset(seed=0)
    assert "NameError" in env.step("print(y)")[0]


@each_backend
def test_a_copy_runs_the_episode_s_code_again(backend) -> None:
    env = PythonToolEnv(backend=backend)
    env.reset(seed=0)
    for code in ("y = 1", "y += 1", "y / 0", "print(y)"):
        env.step(code)
    copy = pickle.loads(pickle.dumps(env))
    assert copy.step("y += 5; print(y)") == env.step("y += 5; print(y)")
    assert copy.step("print(y)")[0] == env.step("print(y)")[0] == "7"
    copy.close()
    env.close()


@needs_monty
def test_the_answer_cannot_be_found_from_inside() -> None:
    env = PythonToolEnv()
    _, info = env.reset(seed=0)
    for code in (
        "print(globals())",
        "print(dir())",
        "import gc\nprint(gc.get_objects())",
        "import sys\nprint(sys.argv)",
    ):
        assert str(info["answer"]) not in env.step(code)[0]


def test_without_a_sandbox_the_environment_is_refused_with_the_remedy(monkeypatch) -> None:
    for name, (_, opens) in list(sandbox_package._BACKENDS.items()):
        monkeypatch.setitem(sandbox_package._BACKENDS, name, (lambda: "not installed", opens))
    for settings in ({}, {"backend": "monty"}, {"backend": "bwrap"}):
        with pytest.raises(EnvError, match=r"pip install 'gspo-rllib\[sandbox\]'"):
            gymnasium.make("gspo_rllib.envs:gspo_rllib/PythonTool-v0", **settings)


@pytest.mark.parametrize(
    "settings", [{"backend": "docker"}, {"seconds": 0}, {"output_chars": 1}, {"output_chars": "9"}]
)
def test_a_wrong_setting_is_refused(settings) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(settings))}="):
        PythonToolEnv(**settings)


def test_a_slow_tool_says_so() -> None:
    assert PythonToolEnv.metadata["blocking"] is True
    assert ShellEnv.metadata["blocking"] is False

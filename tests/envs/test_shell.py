"""The shell, a tree of folders in memory."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gspo_rllib.envs.python_tool import PythonToolEnv
from gspo_rllib.envs.shell import ShellEnv, build_tree, folders, lookup, most_turns, resolve
from gspo_rllib.errors import SettingError
from tests.envs.play import steps_of


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
        steps = steps_of(env, env.expert(), seed)
        assert steps[-1][1] == 1.0
        assert all(len(step[0]) <= 60 for step in steps)
        lengths.append(len(steps))
    assert max(lengths) <= 239
    assert max(lengths) > 150


def test_the_shell_makes_5000_steps_a_second() -> None:
    env = ShellEnv()
    begin, steps = time.process_time(), 0
    for seed in range(100):
        steps += len(steps_of(env, env.expert(), seed))
    assert steps / (time.process_time() - begin) > 5000


@pytest.mark.parametrize(
    "settings", [{"backend": "docker"}, {"seconds": 0}, {"output_chars": 1}, {"output_chars": "9"}]
)
def test_a_wrong_setting_is_refused(settings) -> None:
    with pytest.raises(SettingError, match=f"{next(iter(settings))}="):
        PythonToolEnv(**settings)

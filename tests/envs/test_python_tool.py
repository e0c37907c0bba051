"""The Python tool, which runs code in a sandbox."""

from __future__ import annotations

import itertools
import pickle
import time

import gymnasium
import pytest

import gspo_rllib.envs.sandbox as sandbox_package
from gspo_rllib.envs.python_tool import OPERATIONS, PythonToolEnv, build_recipe, solve, without_seven
from gspo_rllib.envs.sandbox import open_sandbox, unavailable_backends
from gspo_rllib.envs.shell import ShellEnv
from gspo_rllib.errors import EnvError
from tests.envs.play import steps_of

REASONS = unavailable_backends()
needs_monty = pytest.mark.skipif(bool(REASONS["monty"]), reason=str(REASONS["monty"]))
each_backend = pytest.mark.parametrize(
    "backend",
    [pytest.param(name, marks=pytest.mark.skipif(bool(why), reason=f"{name}: {why}")) for name, why in REASONS.items()],
)


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
    steps = steps_of(env, env.expert(), seed=2)
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
    env = PythonToolEnv(seconds=0.5)
    env.reset(seed=0)
    env.step("y = 1")
    begin = time.monotonic()
    observation, reward, terminated, _, info = env.step("while True: pass")
    assert time.monotonic() - begin < 60.0
    assert (reward, terminated, info["valid_action"]) == (0.0, False, False)
    assert observation == "error: stopped after 0.5 s; its variables are lost"
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


def test_a_slow_tool_says_so() -> None:
    assert PythonToolEnv.metadata["blocking"] is True
    assert ShellEnv.metadata["blocking"] is False

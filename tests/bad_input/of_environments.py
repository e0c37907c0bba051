"""Environments that break the contract, or whoever makes them: known before the first iteration."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium as gym
import numpy as np

from gspo_rllib.envs.spaces import UnicodeText
from tests.bad_input.case import Case, config

RETURNS = (
    "reset must return (observation str, info dict), and step (observation str, reward float, terminated bool, "
    "truncated bool, info dict); `gspo-rllib check-env` checks the whole contract."
)
RESET = "it must return (observation str, info dict)."
STEP = "it must return (observation str, reward float, terminated bool, truncated bool, info dict)."


class Good(gym.Env):
    """One turn; nothing is wrong with it."""

    observation_space = action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """Begins."""
        super().reset(seed=seed)
        return "Say something.", {}

    def step(self, action: str) -> Any:
        """Ends."""
        return "Thank you.", 1.0, True, False, {}


def _environment(name: str, said: str, **members: Any) -> Case:
    """``Good`` with other members."""
    kind = type(name.title().replace(" ", ""), (Good,), members)

    def act(model: str) -> None:
        used = config(model)
        used.env_config = {}
        used.environment(kind).validate()

    return Case(name, said, act)


def _returning(value: Any) -> Any:
    return lambda self, *args, seed=None, options=None: value


def _raising(error: BaseException) -> Any:
    def constructor(self: Any) -> None:
        raise error

    return constructor


def _made(name: str, constructor: Any, said: str) -> Case:
    return _environment(
        name, f"environment <class …> could not be made with env_config={{}}: {said}", __init__=constructor
    )


def _reset(name: str, value: Any, said: str) -> Case:
    return _environment(name, f"environment …: reset() returned {said} {RETURNS}", reset=_returning(value))


def _step(name: str, value: Any, said: str) -> Case:
    return _environment(name, f"environment …: step() returned {said} {RETURNS}", step=_returning(value))


def _given(name: str, env: Any, said: str, **env_config: Any) -> Case:
    def act(model: str) -> None:
        used = config(model)
        used.env_config = dict(env_config)
        used.environment(env).validate()

    return Case(name, said, act)


SPACE = "but a language model reads and writes text: both spaces must be gymnasium.spaces.Text …"
TASKS = "it must return how many tasks there are, an int >= 1, …"

ENVIRONMENTS: list[Case] = [
    _made("exits", lambda self: sys.exit(3), "SystemExit: 3"),
    _made("exits well", lambda self: sys.exit(), "SystemExit"),
    _made("interrupts", _raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    _made("stops a generator", _raising(GeneratorExit()), "GeneratorExit"),
    _made("raises", _raising(ValueError("no key")), "ValueError: no key"),
    _made("has no memory", _raising(MemoryError()), "MemoryError"),
    _made("recurses", lambda self: self.__init__(), "RecursionError: maximum recursion depth exceeded…"),
    _made("wants more", lambda self, size: None, "TypeError: …missing 1 required positional argument: 'size'"),
    _reset("reset returns text", "hello", f"'hello' (str); {RESET}"),
    _reset("reset returns nothing", None, f"None (NoneType); {RESET}"),
    _reset("reset returns three", ("a", {}, 1), f"('a', {{}}, 1) (tuple); {RESET}"),
    _reset("reset returns a list", ["a", {}], f"['a', {{}}] (list); {RESET}"),
    _reset("first observation is a number", (5, {}), "the observation 5 (int); it must be a str."),
    _reset("first observation is bytes", (b"a", {}), "the observation b'a' (bytes); it must be a str."),
    _reset(
        "first observation is an array",
        (np.zeros(2), {}),
        "the observation array([0., 0.]) (ndarray); it must be a str.",
    ),
    _reset("first info is a list", ("a", []), "the info [] (list); it must be a dict."),
    _reset("first info is nothing", ("a", None), "the info None (NoneType); it must be a dict."),
    _environment(
        "unknown role",
        f"environment …: info['obs_role'] is 'robot' (str); allowed: user, tool. {RETURNS}",
        reset=_returning(("a", {"obs_role": "robot"})),
    ),
    _step("step of four", ("x", 0.0, True, {}), f"('x', 0.0, True, {{}}) (tuple); {STEP}"),
    _step("step of text", "x", f"'x' (str); {STEP}"),
    _step("step of nothing", None, f"None (NoneType); {STEP}"),
    _step("observation is nothing", (None, 0.0, True, False, {}), "the observation None (NoneType); it must be a str."),
    _step("reward is text", ("x", "1", True, False, {}), "the reward '1' (str); it must be a finite number."),
    _step("reward is nan", ("x", float("nan"), True, False, {}), "the reward nan (float); it must be a finite number."),
    _step("reward is huge", ("x", 10**400, True, False, {}), "the reward …; it must be a finite number."),
    _step("reward is nothing", ("x", None, True, False, {}), "the reward None (NoneType); it must be a finite number."),
    _step("terminated is a number", ("x", 0.0, 1, False, {}), "terminated=1 (int); it must be True or False."),
    _step("truncated is text", ("x", 0.0, True, "no", {}), "truncated='no' (str); it must be True or False."),
    _step("info is text", ("x", 0.0, True, False, "i"), "the info 'i' (str); it must be a dict."),
    _environment(
        "reset without seed",
        "environment …: its reset takes no seed, so the trajectories of a group could not "
        "meet the same task. Write reset(self, *, seed=None, options=None), and draw the task from "
        "self.np_random after super().reset(seed=seed).",
        reset=lambda self: ("a", {}),
    ),
    _environment(
        "reset with options only",
        "environment …: its reset takes no seed, …",
        reset=lambda self, *, options=None: ("a", {}),
    ),
    _environment(
        "beyond the context",
        "environment: the first prompts of 3 of 3 tasks that were tried have up to … "
        "tokens, while a context has 512, and a reply needs one at least. Raise generation.max_model_len, use a "
        "model with a longer context, or shorten what the environment says first.",
        reset=_returning(("x y " * 2000, {})),
    ),
    _environment(
        "box to observe",
        f"environment …: its observation_space is Box(…), {SPACE}",
        observation_space=gym.spaces.Box(0, 1),
    ),
    _environment(
        "number to act", f"environment …: its action_space is Discrete(2), {SPACE}", action_space=gym.spaces.Discrete(2)
    ),
    _environment("no space", f"environment …: its observation_space is None, {SPACE}", observation_space=None),
    _environment(
        "chat is a dict",
        "environment …: its attribute `chat` is {'tools': []}; it must be a ChatSpec or None.",
        chat={"tools": []},
    ),
    _environment("no tasks", f"environment …: num_tasks() returned 0; {TASKS}", num_tasks=lambda self: 0),
    _environment("half a task", f"environment …: num_tasks() returned 1.5; {TASKS}", num_tasks=lambda self: 1.5),
    _environment(
        "tasks raise",
        "environment …: asked for its spaces, metadata and chat, it raised …",
        num_tasks=lambda self: 1 / 0,
    ),
    _given("a class of numbers", int, "environment <class 'int'> is a int; it must be a gymnasium.Env."),
    _given(
        "a function of nothing", lambda: None, "environment <function …> is a NoneType; it must be a gymnasium.Env."
    ),
    _given("CartPole", "CartPole-v1", f"environment 'CartPole-v1': its observation_space is Box(…), {SPACE}"),
    _given("unknown", "Nowhere-v0", "environment 'Nowhere-v0' is not registered with Gymnasium. …"),
    _given("unknown module", "no_such_package:Env-v0", "environment 'no_such_package:Env-v0': No module named …"),
    _given(
        "misspelt setting",
        "gspo_rllib.envs:gspo_rllib/Calculator-v0",
        "environment 'gspo_rllib.envs:gspo_rllib/Calculator-v0' could not be made with env_config={'opertions': 1}: "
        "TypeError: CalculatorEnv.__init__() got an unexpected keyword argument 'opertions'…",
        opertions=1,
    ),
    _given(
        "text for a number",
        "gspo_rllib.envs:gspo_rllib/Calculator-v0",
        "environment 'gspo_rllib.envs:gspo_rllib/Calculator-v0' could not be made with env_config={'operations': "
        "'x'}: SettingError: operations='x': must be an integer from 1 to 30.",
        operations="x",
    ),
]

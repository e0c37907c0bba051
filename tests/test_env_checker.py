"""The contract checker: every broken promise is found and named with its remedy, and a kept one is not."""

from __future__ import annotations

import pickle
import random
from typing import Any, ClassVar

import gymnasium
import pytest

from gspo_rllib.cli.main import main
from gspo_rllib.envs import UnicodeText, check_language_env
from gspo_rllib.errors import EnvError


class GoodEnv(gymnasium.Env[str, str]):
    """Asks for a number three times; each test breaks one promise of it."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "blocking": False}

    def __init__(self) -> None:
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self.number, self.turn = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        asked = (options or {}).get("task_id")
        self.number = int(self.np_random.integers(1000)) if asked is None else int(asked)
        self.turn = 0
        return f"say {self.number}", {"task_id": str(self.number)}

    def step(self, action: str) -> Any:
        self.turn += 1
        right = action == str(self.number)
        over = right or self.turn == 6
        info = {"valid_action": True} | ({"success": right} if over else {})
        return f"no, turn {self.turn}", float(right), right, over and not right, info


class WrongSpace(GoodEnv):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = gymnasium.spaces.Text(100)


class NoSpace(GoodEnv):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Discrete(2)


class Chatty(GoodEnv):
    chat = "be brief"


class NumberObservation(GoodEnv):
    def step(self, action: str) -> Any:
        return (7, *super().step(action)[1:])


class FourTuple(GoodEnv):
    def step(self, action: str) -> Any:
        return super().step(action)[:4]


class InfiniteReward(GoodEnv):
    def step(self, action: str) -> Any:
        observation, _, *rest = super().step(action)
        return observation, float("inf"), *rest


class TensorInfo(GoodEnv):
    def step(self, action: str) -> Any:
        *rest, info = super().step(action)
        return *rest, info | {"raw": {1, 2}}


class OddRole(GoodEnv):
    def step(self, action: str) -> Any:
        *rest, info = super().step(action)
        return *rest, info | {"obs_role": "assistant"}


class Crashes(GoodEnv):
    def step(self, action: str) -> Any:
        if not action.isascii():
            raise ValueError("only ASCII")
        return super().step(action)


class IgnoresSeed(GoodEnv):
    made = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        observation, info = super().reset(seed=seed, options=options)
        IgnoresSeed.made += 1
        return f"{observation} ({IgnoresSeed.made})", info


class OneTask(GoodEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        super().reset(seed=seed)
        self.number = 5
        return "say 5", {}


class DeafToTaskId(GoodEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        return super().reset(seed=seed)


class WholeHistory(GoodEnv):
    history = ""

    def step(self, action: str) -> Any:
        observation, *rest = super().step(action)
        self.history = "" if self.turn == 1 else self.history
        self.history += f"{observation}\n"
        return self.history, *rest


class GlobalRandom(GoodEnv):
    def step(self, action: str) -> Any:
        random.random()
        return super().step(action)


class BadExpert(GoodEnv):
    def expert(self) -> Any:
        return lambda _: "0"


class ForgetfulCopy(GoodEnv):
    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "turn": 0}

    def step(self, action: str) -> Any:
        if self.turn == 0 and not vars(self).get("fresh"):
            return (f"copy {self.number}", *super().step(action)[1:])
        return super().step(action)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        returned = super().reset(seed=seed, options=options)
        self.turn = 0
        return returned

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, number=-1)


class NeitherPickledNorReplayed(GoodEnv):
    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "deterministic": False}

    def __getstate__(self) -> Any:
        raise pickle.PicklingError("holds a connection")


class ClosesOnce(GoodEnv):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("already closed")
        self.closed = True


class OneTaskPerSeed(GoodEnv):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        return super().reset(seed=seed)[0], {}


BROKEN = [
    (NoSpace, ["observation_space is Discrete(2)", "UnicodeText"]),
    (WrongSpace, ["action_space", "does not contain every text", "UnicodeText"]),
    (Chatty, ["attribute chat is 'be brief'", "ChatSpec"]),
    (NumberObservation, ["observation", "str"]),
    (FourTuple, ["step", "truncated"]),
    (InfiniteReward, ["reward", "finite"]),
    (TensorInfo, ["info of step is not plain data"]),
    (OddRole, ["'assistant'", "'user' or 'tool'"]),
    (Crashes, ["ValueError", "an action that cannot be understood costs a turn"]),
    (IgnoresSeed, ["reset"]),
    (OneTask, ["20 seeds gave one and the same task"]),
    (DeafToTaskId, ["task_id", "whatever the seed"]),
    (WholeHistory, ["repeat the one before them", "only what is new"]),
    (GlobalRandom, ["global random state", "self.np_random"]),
    (BadExpert, ["its expert does not solve task seed=0"]),
    (ForgetfulCopy, ["pickled copy answers differently"]),
    (NeitherPickledNorReplayed, ["neither be pickled (PicklingError", "nor replayed"]),
    (ClosesOnce, ["close() raises RuntimeError"]),
]


@pytest.mark.parametrize(("env", "parts"), BROKEN, ids=[env.__name__ for env, _ in BROKEN])
def test_a_broken_promise_is_named_with_its_remedy(env, parts) -> None:
    with pytest.raises(EnvError) as caught:
        check_language_env(env)
    for part in (*parts, "Remedy"):
        assert part in str(caught.value)
    assert env.__name__ in str(caught.value)


def test_an_environment_that_keeps_them_passes_and_is_told_what_it_does_not_offer() -> None:
    report = check_language_env(GoodEnv)
    assert len(report.passed) == 11
    assert report.notes == ["no expert(): a policy cannot be warm-started by imitation"]


def test_what_is_not_offered_is_noted() -> None:
    class Connected(OneTaskPerSeed):
        def __getstate__(self) -> Any:
            raise pickle.PicklingError("holds a connection")

    notes = check_language_env(Connected).notes
    assert notes[0] == 'no info["task_id"]: a task can be repeated by its seed only'
    assert notes[1] == "cannot be pickled (PicklingError); it is replayed from its task and actions"


def test_wrong_settings_are_one_clear_error() -> None:
    with pytest.raises(EnvError, match=r"could not be made with {'turn': 3}: TypeError"):
        check_language_env(GoodEnv, turn=3)


def test_the_command_prints_what_was_checked_and_turns_a_broken_promise_into_one_line(capsys, monkeypatch) -> None:
    assert main(["check-env", "gspo_rllib.envs:gspo_rllib/Bisection-v0", "--env-config", "n=8"]) == 0
    out = capsys.readouterr().out
    assert "ok    a seed fixes the task, in every instance" in out
    assert out.splitlines()[-1] == "gspo_rllib.envs:gspo_rllib/Bisection-v0 keeps the language-environment contract"
    gymnasium.register(id="broken/History-v0", entry_point="tests.test_env_checker:WholeHistory")
    try:
        assert main(["check-env", "broken/History-v0"]) == 2
        assert "only what is new" in capsys.readouterr().err
        assert main(["check-env", "gspo_rllib.envs:gspo_rllib/Bisect-v0"]) == 2
        assert "Bisection-v0" in capsys.readouterr().err
    finally:
        del gymnasium.registry["broken/History-v0"]

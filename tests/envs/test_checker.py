"""The contract checker: every broken promise is found and named with its remedy, and a kept one is not."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from gspo_rllib.envs import check_language_env
from gspo_rllib.errors import EnvError
from tests.toy_envs.contract_breakers import (
    BadExpert,
    Chatty,
    ClosesOnce,
    CountsAndDrawsByTheSeed,
    CountsInAnAttribute,
    CountsToNothing,
    Crashes,
    DeafToTaskId,
    ForgetfulCopy,
    FourTuple,
    GlobalRandom,
    GoodEnv,
    IgnoresSeed,
    InfiniteReward,
    NamesTasksOtherwise,
    NeitherPickledNorReplayed,
    NoPart,
    NoSpace,
    NumberObservation,
    NumpyNumbers,
    NumpyTruncates,
    OddRole,
    OneTask,
    OneTaskPerSeed,
    TensorInfo,
    WholeHistory,
    WrongSpace,
)

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
    (CountsToNothing, ["num_tasks() is 0", "an int >= 1"]),
    (NamesTasksOtherwise, ["reset(options={'task_id': '0'}) plays the task '00'", "name the tasks '0', '1'"]),
    (CountsInAnAttribute, ["num_tasks is 3", "make it a method"]),
    (CountsAndDrawsByTheSeed, ["'task_id': '0'", "begins otherwise with another seed"]),
    (NumpyTruncates, ["truncated=np.False_", "bool(truncated)"]),
    (NoPart, ["{'form': nan}", "{name: finite float}"]),
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


def test_numbers_of_numpy_are_as_good_as_pythons() -> None:
    assert len(check_language_env(NumpyNumbers).passed) == 11


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

"""Errors of env runners that come back as values."""

from __future__ import annotations

import pickle

import pytest

from gspo_rllib.errors import EngineError, EngineLostError
from gspo_rllib.runner_calls import Raised, RunnerCall, returned


def _refuse(runner: object) -> int:
    raise EngineError(f"{runner} refuses")


def _break(runner: object) -> int:
    raise ZeroDivisionError


def test_what_runners_return_comes_back_in_order() -> None:
    assert returned([RunnerCall(lambda runner: runner + 1)(n) for n in (1, 2)]) == [2, 3]


def test_a_refusal_survives_the_way_back_and_is_raised_there() -> None:
    answer = pickle.loads(pickle.dumps(RunnerCall(_refuse)("runner 3")))
    assert isinstance(answer, Raised)
    with pytest.raises(EngineError, match="runner 3 refuses"):
        returned([1, answer])


def test_any_other_error_is_still_the_death_that_rllib_takes_it_for() -> None:
    with pytest.raises(ZeroDivisionError):
        RunnerCall(_break)(None)


def test_a_lost_engine_is_the_death_of_its_runner() -> None:
    def lose(runner: object) -> int:
        raise EngineLostError("killed")

    with pytest.raises(EngineLostError):
        RunnerCall(lose)(None)

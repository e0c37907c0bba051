"""Which runners may sample beside the learners: nobody before its engine was compared with their policy."""

from __future__ import annotations

from typing import Any

import pytest

from gspo_rllib.driver.admission import Admission
from gspo_rllib.errors import WeightSyncError
from gspo_rllib.weight_sync import Receipt


class Policy:
    """Weights of a version, and whether what engines sample with them is right."""

    def __init__(self, version: int, right: bool = True) -> None:
        self.version, self._right = version, right

    def loading(self, *, here: bool) -> Any:
        return lambda runner: runner.load(self.version)

    def prove(self, receipt: Receipt) -> bool:
        if not self._right:
            raise WeightSyncError("another policy")
        return True

    def marking_proven(self) -> Any:
        return "proven"


class Runner:
    """Notes what is done to it, in order."""

    def __init__(self) -> None:
        self.done: list[Any] = []

    def stop_sampling(self) -> None:
        self.done.append("stop")

    def load(self, version: int) -> Receipt:
        self.done.append(version)
        return Receipt(version)


class Sent:
    """What was sent to runners; the answer's reference is its place."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Any]] = []

    def __call__(self, worker: int, call: Any) -> str:
        self.calls.append((worker, call))
        return f"ref {len(self.calls) - 1}"


def test_a_runner_is_asked_once_and_admitted_with_the_present_weights_alone() -> None:
    sent, runner = Sent(), Runner()
    admission: Any = Admission(sent)
    admission.restart([1])
    admission.ask([1, 2], Policy(4))
    admission.ask([1, 2], Policy(4))
    assert [worker for worker, _ in sent.calls] == [2] and admission.pending == {"ref 0": 2}

    receipt = sent.calls[0][1](runner)
    assert runner.done == ["stop", 4], "it may have been sampling when it was lost"
    admission.settle("ref 0", receipt, Policy(5))
    assert admission.admitted == {1} and not admission.pending, "the learners have moved on"

    admission.ask([1, 2], Policy(5))
    admission.settle("ref 1", Receipt(5), Policy(5))
    assert admission.admitted == {1, 2}
    assert sent.calls[-1] == (2, "proven")
    admission.expel(2)
    assert admission.admitted == {1}


def test_an_engine_that_samples_from_another_policy_is_never_admitted() -> None:
    admission: Any = Admission(Sent())
    admission.ask([1, 2], Policy(0))
    (one, two) = admission.pending
    with pytest.raises(WeightSyncError, match="another policy"):
        admission.settle(one, Receipt(0), Policy(0, right=False))
    admission.settle(two, None, Policy(0))
    assert not admission.admitted and not admission.pending

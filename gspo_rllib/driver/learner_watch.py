"""Waits for what learners answer, and says where one cannot be counted on any more."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from gspo_rllib.driver.learner_calls import Raised
from gspo_rllib.driver.processes import LOOK_S, Standstill, is_here
from gspo_rllib.errors import GSPOError

LEAST_DEADLINE_S = 60.0
"""Shortest deadline of an update, in seconds; the first has none, because nobody knows how long it takes."""

DEADLINE_IN_MEDIANS = 10.0
"""Deadline of an update, in medians of those before it."""

OTHERS_WAIT_S = 30.0
"""Seconds that learners that work together may go on after one of them has raised."""

_BROUGHT_AT_ONCE = 32
"""Values from another machine. To get one and put it again, in turns, took 500 ms each; in parts of 16, 14 to 44 ms."""

_VERDICT_S = 1.0  # how long others may take to say what they saw, after a learner was lost


class LearnerLost(Exception):
    """A learner cannot be counted on any more; the message says why."""


class LearnerWatch:
    """Waits for learners that may have ended, stand still, or hang.

    Args:
        patience_s: How long a process may stand still.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._durations: deque[float] = deque(maxlen=100)
        self._standstill = Standstill()

    @property
    def deadline_s(self) -> float:
        """How long an update may take."""
        if not self._durations:
            return float("inf")
        return max(LEAST_DEADLINE_S, DEADLINE_IN_MEDIANS * statistics.median(self._durations))

    def start_over(self) -> None:
        """The learners have other processes from now on."""
        self._standstill = Standstill()

    def wait(
        self,
        refs: Mapping[ray.ObjectRef, int],
        learners: Sequence[Any],
        *,
        is_update: bool = False,
        together: bool = False,
    ) -> dict[int, Any]:
        """The answers by number.

        Args:
            refs: Answers that are to come, and the numbers of the learners they come from.
            learners: The handles of all learners.
            is_update: Whether it is an update: it has a deadline, and a learner that raises in it has half of it.
            together: Whether each waits for the others: one that raises may leave them waiting for ever.

        Raises:
            LearnerLost: A process ended, stands still or takes too long; or a learner raised in an update.
            GSPOError: A learner refused an update.
        """
        limit, started = self.deadline_s if is_update else float("inf"), time.monotonic()
        pending, answers = dict(refs), dict[int, Any]()
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=LOOK_S)
            if lost := _take(ready, pending, answers, is_update):
                # A rank that lost its peer says so first: what became of the peer says more.
                later = ray.wait(list(pending), num_returns=len(pending), timeout=_VERDICT_S)[0] if pending else []
                raise LearnerLost(min(_take(later, pending, answers, is_update) + lost)[1])
            actors = {number: learners[number] for number in pending.values()}
            for number, what in self._standstill.find(actors, self._patience_s).items():
                raise LearnerLost(f"learner {number} {what}")
            raised = [f"learner {n} raised {a.text}" for n, a in answers.items() if isinstance(a, Raised)]
            if together and raised and ready:
                # Where all raised, they say so at once.
                limit = min(limit, time.monotonic() - started + OTHERS_WAIT_S)
            if pending and raised and time.monotonic() - started > limit:
                raise LearnerLost(f"{raised[0]}, and the others waited for it for {OTHERS_WAIT_S:.0f} s")
            if pending and time.monotonic() - started > limit:
                raise LearnerLost(f"an update took more than {limit:.0f} s, which is taken for hanging")
        if is_update:
            self._durations.append(time.monotonic() - started)
        return answers


def _take(
    ready: Sequence[ray.ObjectRef], pending: dict[ray.ObjectRef, int], answers: dict[int, Any], is_update: bool
) -> list[tuple[bool, str]]:
    """Moves answers that are there from one dict to the other; what was lost, in words: deaths sort first."""
    lost = []
    for ref in ready:
        number = pending.pop(ref)
        try:
            answers[number] = answer = ray.get(ref)
        except RayError as error:
            lost.append((False, f"learner {number} died ({type(error).__name__})"))
            continue
        if is_update and isinstance(answer, Raised):
            if isinstance(answer.error, GSPOError):
                raise answer.error
            lost.append((True, f"learner {number} raised {answer.text}"))
    return lost


def brought_home(learner: Any, values: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """What a learner yielded, on this process's machine and owned by it.

    Args:
        learner: The learner's actor.
        values: In the object store, wherever the learner is.

    Raises:
        LearnerLost: Its machine is gone.
    """
    if is_here(learner):
        return values
    try:
        starts = range(0, len(values), _BROUGHT_AT_ONCE)
        return [ray.put(value) for at in starts for value in ray.get(values[at : at + _BROUGHT_AT_ONCE])]
    except RayError as error:
        raise LearnerLost(f"a learner's machine is gone ({type(error).__name__})") from error

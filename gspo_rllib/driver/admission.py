"""Which remote env runners may sample beside the learners: those whose engine was seen to sample from their policy.

A runner that was restarted builds an engine, loads the present weights and answers a short conversation, while the
others go on sampling; only when the learners agree with what it sampled is it sent groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray

from gspo_rllib.runner_calls import RunnerCall
from gspo_rllib.weight_sync import Receipt, Weights


class Admission:
    """Admits env runners.

    Args:
        send: Number of a runner and a call -> reference to its answer.

    Attributes:
        admitted: Numbers of the runners that may be sent groups, and weights while they sample.
        processes: Numbers of the processes they were admitted in; in another one they are not what was admitted.
    """

    def __init__(self, send: Callable[[int, RunnerCall[Any]], Any]) -> None:
        self.admitted: set[int] = set()
        self.processes: dict[int, int] = {}
        self._send = send
        self._asked: dict[ray.ObjectRef, int] = {}

    @property
    def pending(self) -> dict[ray.ObjectRef, int]:
        """Answers that are still to come, and the runners they come from."""
        return dict(self._asked)

    def restart(self, admitted: Iterable[int], processes: Mapping[int, int] | None = None) -> None:
        """Forgets what is pending; these runners are admitted, no others.

        Args:
            admitted: Numbers of runners that hold weights and were compared with the learners.
            processes: Their processes.
        """
        self.admitted = set(admitted)
        self.processes = dict(processes or {})
        self._asked.clear()

    def ask(self, workers: Iterable[int], weights: Weights) -> None:
        """Sends weights to those of the runners that are neither admitted nor about to be."""
        new = set(workers).difference(self.admitted, self._asked.values())
        if not new:
            return
        load = weights.loading(here=False)

        def start_over(runner: Any) -> Receipt:
            runner.stop_sampling()  # one that was lost and found again may still be at it
            return load(runner)

        for worker in new:
            self._asked[self._send(worker, RunnerCall(start_over))] = worker

    def settle(self, ref: ray.ObjectRef, receipt: Receipt | None, weights: Weights) -> None:
        """Takes an answer that was pending; one to older weights admits nobody.

        Args:
            ref: The answer's reference.
            receipt: The answer; None where the runner died.
            weights: The present weights.

        Raises:
            WeightSyncError: The engine samples from another policy.
        """
        worker = self._asked.pop(ref)
        if receipt is not None and receipt.version == weights.version:
            if weights.prove(receipt):
                self._send(worker, weights.marking_proven())
            self.admitted.add(worker)
            self.processes[worker] = receipt.process

    def expel(self, worker: int) -> None:
        """From now on the runner is asked again before it samples."""
        self.admitted.discard(worker)
        self.processes.pop(worker, None)

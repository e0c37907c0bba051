"""The env runners of a run: called without waiting for ever, and waited for while one can come back.

Ray restarts a runner whose process ended, and tells whoever waits for its answer. It does not tell of a process that
was stopped: that one neither answers nor ends. So whoever waits here looks at the processes it waits for, and one that
stands still for too long is ended, to be restarted like any other.

What a lost runner was asked is played again by name; see ``lockstep`` and ``stream``. Neither counts how often.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from gspo_rllib.driver.processes import LOOK_S, Standstill, actor_entry
from gspo_rllib.errors import RunnersLostError

logger = logging.getLogger(__name__)

LOCAL = 0
"""RLlib's number of the env runner in the driver's own process."""

STOP_S = 10.0
"""Seconds that runners have for ending by themselves."""

_OWN = "gspo_rllib_fleet"
"""Attribute of a group of env runners that holds its fleet."""

_SAY_S = 10.0  # between two lines that say who is waited for


class Fleet:
    """RLlib's group of env runners, with the same calls, none of which hangs on a runner that cannot answer.

    Args:
        runners: Remote env runners, or the one in this process. ``env_runner_health_probe_timeout_s`` of its config is
            how long a process may stand still, ``env_runner_restore_timeout_s`` how long the run waits when none is
            left.
    """

    def __init__(self, runners: EnvRunnerGroup) -> None:
        self._runners = runners
        self._pings: dict[ray.ObjectRef, int] = {}
        self._standstill = Standstill()
        # Of runners that were lost where nobody else keeps a note of it.
        self._causes: collections.deque[str] = collections.deque(maxlen=3)

    @classmethod
    def of(cls, runners: EnvRunnerGroup) -> Fleet:
        """The one of this group: who was asked whether it is back need not be asked twice."""
        # Kept by the group itself, so that both go together.
        fleet: Fleet = vars(runners).setdefault(_OWN, cls(runners))
        return fleet

    @property
    def is_local(self) -> bool:
        """Whether the only runner is the one in this process."""
        return int(self._runners.num_remote_env_runners()) == 0

    @property
    def local_env_runner(self) -> Any:
        """The runner in this process."""
        return self._runners.local_env_runner

    @property
    def _worker_manager(self) -> Any:
        return self._runners._worker_manager

    def num_remote_env_runners(self) -> int:
        """How many runners have a process of their own."""
        return int(self._runners.num_remote_env_runners())

    def num_healthy_remote_workers(self) -> int:
        """How many of them are not lost, as far as is known."""
        return int(self._runners.num_healthy_remote_workers())

    def healthy(self) -> list[int]:
        """RLlib's numbers of the runners that are not lost, as far as is known."""
        return [LOCAL] if self.is_local else list(self._worker_manager.healthy_actor_ids())

    def send(self, worker: int, function: Callable[[Any], Any]) -> Any:
        """Has a runner call a function with itself; the reference to its answer, or the answer of the local one."""
        if self.is_local:
            return function(self.local_env_runner)
        # RLlib's own asynchronous calls are dropped while an earlier one is under way.
        return self._worker_manager.actors()[worker].apply.remote(function)

    def first_ready(self, refs: Mapping[ray.ObjectRef, int]) -> list[ray.ObjectRef]:
        """Waits for one of the answers; that of a runner that is lost is an error, which ``answer`` takes.

        Args:
            refs: Answers that are to come, and the runners they come from; at least one.
        """
        waiting = list(refs)
        while True:
            ready, _ = ray.wait(waiting, num_returns=1, timeout=LOOK_S)
            self._end_stopped(refs.values())
            if ready:
                return list(ray.wait(waiting, num_returns=len(waiting), timeout=0)[0])

    def answer(self, worker: int, ref: ray.ObjectRef) -> tuple[Any, str | None]:
        """What a runner answered, and None; or None and what became of it, which takes it out of service.

        Raises:
            RayError: A runner was lost that is neither to be replaced nor done without.
        """
        try:
            return ray.get(ref), None
        except RayError as error:
            self._worker_manager.set_actor_state(worker, healthy=False)
            config = self._runners._remote_config
            if not (config.restart_failed_env_runners or config.ignore_env_runner_failures):
                raise
            return None, f"env runner {worker} died: {' '.join(str(error).split())[:300]}"

    def foreach_env_runner(self, function: Callable[[Any], Any], *, local_env_runner: bool = True) -> list[Any]:
        """The answers of all runners that are not lost meanwhile; RLlib's call of this name waits for those, too.

        Args:
            function: Called with each runner, where it is.
            local_env_runner: Whether the one in this process is called; remote ones are, in any case.
        """
        answers = [function(self.local_env_runner)] if local_env_runner and self.local_env_runner else []
        if self.is_local:
            return answers
        pending = {self.send(worker, function): worker for worker in self.healthy()}
        while pending:
            for ref in self.first_ready(pending):
                value, lost = self.answer(pending.pop(ref), ref)
                if lost:
                    self._causes.append(lost)
                else:
                    answers.append(value)
        return answers

    def revive(self) -> list[int]:
        """The lost runners that are back, which hold no weights yet; waits for none."""
        if self.is_local:
            return []
        lost = set(self._worker_manager.actors()).difference(self.healthy())
        for worker in lost.difference(self._pings.values()):
            self._pings[self._worker_manager.actors()[worker].ping.remote()] = worker
        ready, _ = ray.wait(list(self._pings), num_returns=len(self._pings), timeout=0) if self._pings else ([], [])
        back = []
        for ref in ready:
            worker = self._pings.pop(ref)
            try:
                ray.get(ref)
            except RayError:
                continue  # it is asked again by the next call
            self._worker_manager.set_actor_state(worker, healthy=True)
            back.append(worker)
        self._end_stopped(self._pings.values())
        return back

    def await_one(self, causes: Iterable[str] = ()) -> None:
        """Returns once a runner is not lost; says every few seconds who is waited for.

        Args:
            causes: Why they were lost, as far as the caller knows.

        Raises:
            RunnersLostError: None came back in ``env_runner_restore_timeout_s``, or none can.
        """
        if self.is_local:
            return
        config = self._runners._remote_config
        started, said = time.monotonic(), 0.0
        while not (self.revive() or self.healthy()):
            waited = time.monotonic() - started
            total = self.num_remote_env_runners()
            limit = config.env_runner_restore_timeout_s
            if not config.restart_failed_env_runners or self._all_gone() or waited > limit:
                known = "; ".join([*self._causes, *causes][-3:]) or "none was reported"
                raise RunnersLostError(
                    f"0 of {total} remote env runners are healthy, and none came back in {waited:.0f} s. Last errors: "
                    f"{known}. What was drawn and not played is kept: save a checkpoint and resume from it, or call "
                    "train() again. See the env runners' logs; env_runner_restore_timeout_s says how long to wait."
                )
            if waited >= said:
                said += _SAY_S
                logger.warning("waiting for %d of %d env runners, %.0f s of %.0f s", total, total, waited, limit)
            time.sleep(0.2)

    def end(self) -> None:
        """Has every remote runner end by itself; ends those that do not in ``STOP_S``, and for good."""
        if self.is_local:
            return
        actors = dict(self._worker_manager.actors())
        asked = {actor.apply.remote(_stop): worker for worker, actor in actors.items()}
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=STOP_S)
        for ref, worker in asked.items():
            with contextlib.suppress(RayError):
                if ref in done:
                    ray.get(ref)
                    continue
                logger.warning("env runner %d did not stop within %.0f s, and is ended.", worker, STOP_S)
            # RLlib asks all it knows of once more, and waits for those that are just being restarted.
            self._worker_manager.remove_actor(worker)
            ray.kill(actors[worker], no_restart=True)

    def _all_gone(self) -> bool:
        """Whether Ray restarts none of the runners any more."""
        return all(self._entry(worker).get("State") == "DEAD" for worker in self._worker_manager.actors())

    def _entry(self, worker: int) -> dict[str, Any]:
        """What Ray's own table says of a runner's process."""
        return actor_entry(self._worker_manager.actors()[worker])

    def _end_stopped(self, workers: Iterable[int]) -> None:
        """Ends those of the runners whose process has stood still for too long; Ray restarts them."""
        actors = self._worker_manager.actors()
        patience_s = self._runners._remote_config.env_runner_health_probe_timeout_s
        for worker, what in self._standstill.find({w: actors[w] for w in set(workers)}, patience_s).items():
            logger.warning("env runner %d %s, is replaced.", worker, what)
            self._causes.append(f"env runner {worker} {what}")
            self._worker_manager.set_actor_state(worker, healthy=False)
            # Ray kills a process that does not end by itself after a few seconds.
            ray.kill(actors[worker], no_restart=False)


def _stop(runner: Any) -> None:
    runner.stop()

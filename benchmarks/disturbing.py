"""Kills and stops the processes of a run at chosen moments; see ``faults.py`` and ``soak.py``."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import psutil

from gspo_rllib.driver.fleet import Fleet
from gspo_rllib.driver.processes import actor_entry

IN_PHASE = ("sampling", "learning", "weights")
"""What the driver is doing when a runner is hit; while it learns, runners of a run that takes turns are idle."""

MOMENTS = (*IN_PHASE, "all at once", "constructor")
"""When runners are hit: in a phase of the driver, all of them together, or one while it is being built."""

_PATIENCE_S = 15.0  # a moment that has not come by then is given up for any other


def processor_time() -> float:
    """Seconds of processor time of this process and of all below it, also of those that have ended."""
    total = 0.0
    for process in (this := psutil.Process(), *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            # Of what has ended, its parent knows.
            total += sum(process.cpu_times()[:4])
    return total


def titled(title: str) -> list[int]:
    """Processes below this one whose command line begins like this; Ray writes there what an actor is doing."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [process.pid] if " ".join(process.cmdline()).startswith(title) else []
    return found


class Phases:
    """Watches what an algorithm's driver is doing.

    Args:
        algorithm: The algorithm; its calls for sampling, updates and weights are wrapped.
    """

    def __init__(self, algorithm: Any) -> None:
        self._changed = threading.Condition()
        self._began = Counter[str]()
        self._lasted = {name: deque([0.05], maxlen=20) for name in IN_PHASE}
        algorithm._source.take = self._watched("sampling", algorithm._source.take)
        algorithm.learner_group.update = self._watched("learning", algorithm.learner_group.update)
        algorithm._source.advance = self._watched("weights", algorithm._source.advance)

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self._changed:
                self._began[name] += 1
                self._changed.notify_all()
            started = time.monotonic()
            try:
                return call(*args, **kwargs)
            finally:
                self._lasted[name].append(time.monotonic() - started)

        return watched

    def wait(self, name: str, chance: random.Random) -> bool:
        """Returns at a random moment within the next phase of this name; False where none begins."""
        with self._changed:
            before = self._began[name]
            if not self._changed.wait_for(lambda: self._began[name] > before, _PATIENCE_S):
                return False
        time.sleep(chance.uniform(0, statistics.median(self._lasted[name])))
        return True


def hit(pid: int, fault: str) -> bool:
    """Kills (``"kill"``) or stops a process; whether it was there, and not stopped already."""
    try:
        if psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            return False
        os.kill(pid, signal.SIGKILL if fault == "kill" else signal.SIGSTOP)
    except (psutil.Error, ProcessLookupError):
        return False
    return True


def living_runners(fleet: Fleet, state: str = "ALIVE") -> list[int]:
    """Processes of the env runners that are built, or in another of Ray's states."""
    entries = [fleet._entry(worker) for worker in fleet._worker_manager.actors()]
    return [int(entry.get("Pid") or 0) for entry in entries if entry.get("State") == state and entry.get("Pid")]


def runners_being_built(fleet: Fleet) -> list[int]:
    """Processes that are to become env runners: they have just been started, or are in the constructor."""
    found = {*living_runners(fleet, "RESTARTING"), *titled("ray::LanguageEnvRunner.__init__")}
    return [pid for pid in found if psutil.pid_exists(pid)]


def living_learners(team: Any) -> list[int]:
    """Processes of the learners; none while they are rebuilt, since a run ends where an update fails twice."""
    if team._is_healing:
        return []
    return [pid for worker in team._workers if (pid := int(actor_entry(worker).get("Pid") or 0))]


class Disturber(threading.Thread):
    """Makes faults of env runners, or of learners where those have processes of their own, one after the other.

    The moment that was hit least often so far is hit next, where it can be. A runner is hit while it is being built, or
    once half of them are back, so that a slow machine is not kept from training altogether.

    Args:
        algorithm: The run.
        faults: ``"kill"`` and ``"stop"``, in their order.
        pause: Mean seconds between two.
        seconds: After which no more are made.
        seed: Seeds the moments, and whom they hit.

    Attributes:
        done: Moment and fault of each that was made.
    """

    def __init__(self, algorithm: Any, faults: list[str], *, pause: float, seconds: float, seed: int) -> None:
        super().__init__(daemon=True)
        self._fleet = Fleet.of(algorithm.env_runner_group)
        self._team = algorithm.learner_group
        self._phases = Phases(algorithm)
        self._faults, self._pause = faults, pause
        self._end = time.monotonic() + seconds
        self._random = random.Random(seed)
        self.done: list[tuple[str, str]] = []

    def run(self) -> None:
        """Until every fault was made, or the time is over."""
        while len(self.done) < len(self._faults) and time.monotonic() < self._end:
            time.sleep(self._random.uniform(0, 2 * self._pause))
            counts = Counter(dict.fromkeys(self._possible(), 0))
            counts.update(moment for moment, _ in self.done if moment in counts)
            if not counts:
                continue
            moment = min(counts, key=lambda name: (counts[name], self._random.random()))
            for pid in self._at(moment):
                if len(self.done) < len(self._faults) and hit(pid, self._faults[len(self.done)]):
                    self.done.append((moment, self._faults[len(self.done)]))

    def _possible(self) -> list[str]:
        """The moments that can be hit now."""
        if self._team.is_remote:
            return list(IN_PHASE) if living_learners(self._team) else []
        enough = 2 * len(living_runners(self._fleet)) >= self._fleet.num_remote_env_runners()
        # Whoever is hit time and again while he is built is never there for anything else.
        done = Counter(moment for moment, _ in self.done)
        behind = done["constructor"] <= min(done[name] for name in MOMENTS[:-1])
        built = behind and runners_being_built(self._fleet)
        return [*(MOMENTS[:-1] if enough else ()), *(MOMENTS[-1:] if built else ())]

    def _at(self, moment: str) -> list[int]:
        """Waits for the moment; the processes that are to be hit then."""
        if moment in IN_PHASE and not self._phases.wait(moment, self._random):
            return []
        if moment == "constructor":
            time.sleep(self._random.uniform(0, 1))
            found = runners_being_built(self._fleet)
        else:
            found = living_learners(self._team) if self._team.is_remote else living_runners(self._fleet)
        return found if moment == "all at once" else self._random.sample(found, min(1, len(found)))

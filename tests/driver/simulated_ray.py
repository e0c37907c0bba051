"""Env runners whose processes die, stop and answer late by script: what the driver's bookkeeping calls, without Ray.

``RAY`` stands in for the module ``ray`` where the driver uses it; every wait for an answer lets the world take a step.
A step is one of ``FAULTS``, named by a byte, or, when the script is over, everybody doing what they were asked to.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray.exceptions import ActorUnavailableError, RayActorError

from gspo_rllib.env_runners.sample_report import SampleReport
from gspo_rllib.errors import SettingError, WeightSyncError
from gspo_rllib.types import TrajectoryGroup
from tests.episodes import make_episode

MOST_STEPS = 600
"""Steps of the world within one call of the driver, after which it is taken to hang."""


OUTAGE_S = 2.5
"""How long all runners are down in an outage, which is longer than the driver waits for one."""


class BrokenPromise(Exception):
    """Something that must not happen did."""


class Ref:
    """An answer that is to come."""

    def __init__(self, value: Any = None, *, done: bool = False) -> None:
        self.value, self.error, self.done = value, None, done

    def settle(self, value: Any = None, error: Exception | None = None) -> None:
        if not self.done:
            self.value, self.error, self.done = value, error, True


@dataclass(frozen=True)
class Sampled(TrajectoryGroup):
    """A group, and what the driver is not told.

    Attributes:
        policy: Which policy sampled it.
        attempt: The number of the request for it.
        proven: Whether somebody had compared the engine with the learners.
    """

    policy: int
    attempt: int
    proven: bool


@functools.cache
def _episodes(name: str, version: int, *, dull: bool) -> list[Any]:
    return [make_episode(name, i, [(1, 1)], 0.0 if dull else float(i), version=version) for i in range(2)]


class Runner:
    """The process of an env runner, as the driver knows it."""

    def __init__(self, world: World, worker_index: int) -> None:
        self._world = world
        self.worker_index = worker_index
        self.pid = next(world.numbers)
        self.version: int | None = None
        self.policy: int | None = None
        self._proven = False
        self._offered: tuple[Any, int] | None = None
        self._playing: dict[str, tuple[int, int, int]] = {}
        self._waiting: dict[str, int] = {}
        self._done: list[Sampled] = []
        self._given_up: list[str] = []
        self._told: list[Sampled] = []
        self._told_in = 0
        self.repeats = False

    def set_weights(self, named: Ref, version: int, *, force: bool = False) -> int | None:
        if force or version != self.version:
            self.policy, self.version = RAY.get(named) if isinstance(named, Ref) else named, version
        self._offered = None
        return self.version

    def offer_weights(self, named: Ref, version: int) -> None:
        self._offered = (named, version)

    def converse(self, conversation: Any) -> Any:
        if self._proven:
            return None
        policy = self.policy
        return SimpleNamespace(trajectories=lambda: [policy], temperatures=[1.0], spec=None, policy=policy)

    def mark_proven(self) -> None:
        self._proven = True

    def raise_engine_failure(self) -> None:
        pass

    def pause_sampling(self) -> None:
        self._load_offered()

    def resume_sampling(self) -> None:
        pass

    def stop_sampling(self) -> None:
        self._playing, self._waiting, self._offered = {}, {}, None
        self._done, self._given_up, self._told, self.repeats = [], [], [], False

    def sample_groups(self, group_ids: list[str], *, weights_version: int) -> SampleReport:
        if self.version != weights_version:
            return SampleReport(weights_version=self.version)
        for name in group_ids:
            self._ask(name)
            self._start(name)
        for name in group_ids:
            self._end(name)
        groups, given_up = self._take()
        # Not in the order they were asked for: who was fast is nobody's business.
        return SampleReport(groups[::-1], given_up, self._words(given_up), {}, self.version)

    def sample_in_background(self, group_ids: list[str]) -> None:
        if self.version is None and self._offered is None:
            raise WeightSyncError("this env runner has no weights yet")
        for name in group_ids:
            self._ask(name)

    def take_finished(self, timeout_s: float) -> SampleReport:
        if not self._world.actors:
            self.play(self._world.next_event())
        groups, given_up = self._take()
        fresh = groups
        if self.repeats or self._world.says_twice:
            # A message that comes twice, not one from an earlier call of the driver, nor of an earlier attempt.
            asked_again = {*self._waiting, *self._playing, *(group.group_id for group in fresh)}
            told = self._told if self._told_in == self._world.num_scripts else []
            groups, self.repeats = [g for g in told if g.group_id not in asked_again] + groups, False
        self._told, self._told_in = fresh, self._world.num_scripts
        return SampleReport(groups, given_up, self._words(given_up), {}, self.version, len(self._playing))

    def play(self, place: int) -> None:
        """Loads what was offered, starts what waits, and ends one of the groups."""
        self._load_offered()
        for name in list(self._waiting):
            self._start(name)
        if self._playing:
            self._end(list(self._playing)[place % len(self._playing)])

    def _load_offered(self) -> None:
        if self._offered is not None:
            (named, version), self._offered = self._offered, None
            if version != self.version:
                self.set_weights(named, version)

    def _ask(self, name: str) -> None:
        if name in self._playing or name in self._waiting:
            raise SettingError(f"group_ids: every group may be asked for once, got {name}.")
        # By when it was asked for, not by when the call arrives.
        attempt = self._waiting[name] = self._world.call or next(self._world.numbers)
        self._world.attempts[name] = max(attempt, self._world.attempts.get(name, 0))

    def _start(self, name: str) -> None:
        assert self.version is not None and self.policy is not None
        self._playing[name] = (self.version, self.policy, self._waiting.pop(name))

    def _end(self, name: str) -> None:
        version, policy, attempt = self._playing.pop(name)
        if self._world.is_unlucky(name):
            self._given_up.append(name)
        else:
            episodes = _episodes(name, version, dull=self._world.is_dull(name))
            self._done.append(Sampled(name, episodes, policy, attempt, self._proven))

    def _take(self) -> tuple[list[Sampled], list[str]]:
        groups, given_up = self._done, self._given_up
        self._done, self._given_up = [], []
        return groups, given_up

    @staticmethod
    def _words(given_up: Sequence[str]) -> list[str]:
        return [f"no luck with {name}" for name in given_up]


class Actor:
    """An env runner's process as Ray keeps it: calls wait in a queue, and a process that ends is started again."""

    def __init__(self, world: World, number: int) -> None:
        self._world, self._number = world, number
        self._calls: deque[tuple[int, Callable[[Any], Any], Ref]] = deque()
        self.runner: Runner | None = Runner(world, number)
        self.is_stopped = False
        self.looks = 0
        self.apply = SimpleNamespace(remote=self._send)
        self.ping = SimpleNamespace(remote=lambda: self._send(lambda runner: "pong"))

    def _send(self, function: Callable[[Any], Any]) -> Ref:
        ref = Ref()
        if self.runner is None:
            ref.settle(error=_unavailable())
        else:
            self._calls.append((next(self._world.numbers), function, ref))
        return ref

    def serve(self, count: int = 1) -> None:
        """Has it answer calls, in their order."""
        while count and self._calls and self.runner is not None and not self.is_stopped:
            count -= 1
            self._world.call, function, ref = self._calls.popleft()
            self._world.pid = self.runner.pid
            try:
                ref.settle(function(self.runner))
            except WeightSyncError as error:  # an error in an actor is told to who asks for the answer
                ref.settle(error=RayActorError(error_msg=str(error)))

    def play(self, place: int) -> None:
        if self.runner is not None and not self.is_stopped:
            self.runner.play(place)

    def crash(self) -> None:
        for *_, ref in self._calls:
            ref.settle(error=RayActorError(error_msg="the actor died"))
        self._calls.clear()
        self.runner, self.is_stopped, self.looks = None, False, 0

    def restart(self) -> None:
        if self.runner is None:
            self.runner = Runner(self._world, self._number)

    def lose_answers(self) -> None:
        """What was asked is done all the same, and nobody is told so."""
        for *_, ref in self._calls:
            ref.settle(error=_unavailable())


def _unavailable() -> Exception:
    return ActorUnavailableError("the actor is temporarily unavailable", b"0" * 16)


FAULTS = (
    "serve", "serve", "serve", "play", "play", "play", "calm",
    "crash", "restart", "reborn", "answers lost", "stop", "repeat", "outage",
)  # fmt: skip
"""What a step can be; a byte of the script says which, and of whom."""


class World:
    """Everything outside the driver.

    Args:
        num_runners: Env runners with a process of their own; 0 for one in the driver's.
        unlucky: Every how many-th group cannot be completed; 0 for none.
        dull: Every how many-th group has the same return in all its trajectories; 0 for none.
        newest_first: Whether, of the groups that a runner plays, the last begun ends first.
        says_twice: Whether every report comes twice.
    """

    current: World

    def __init__(
        self, num_runners: int, *, unlucky: int = 0, dull: int = 0, newest_first: bool = False, says_twice: bool = False
    ) -> None:
        self.numbers = itertools.count(1)
        self.clock = 0.0
        self.events: deque[int] = deque()
        self.attempts: dict[str, int] = {}
        self.pid = self.call = 0
        self._unlucky, self._dull, self._ends = unlucky, dull, -1 if newest_first else 0
        self._down_until = 0.0
        self.says_twice = says_twice
        self._budget, self.num_scripts = MOST_STEPS, 0
        self.actors = {number: Actor(self, number) for number in range(1, num_runners + 1)}
        self.runners = RunnerGroup(self)
        World.current = self

    def is_unlucky(self, name: str) -> bool:
        return bool(self._unlucky) and int(name) % self._unlucky == 1

    def is_dull(self, name: str) -> bool:
        return bool(self._dull) and int(name) % self._dull == 2

    def script(self, events: bytes) -> None:
        self.events, self._budget = deque(events), MOST_STEPS
        self.num_scripts += 1

    def next_event(self) -> int:
        self._spend()
        return self.events.popleft() if self.events else self._ends

    def step(self) -> None:
        self._spend()
        if not (self.events and self.actors):
            self._calm()
            return
        which, rest = self.events.popleft(), 0
        which, rest = which % len(FAULTS), which // len(FAULTS)
        actor = self.actors[1 + rest % len(self.actors)]
        self.fault(FAULTS[which], actor, rest // len(self.actors))

    def fault(self, fault: str, actor: Actor, place: int = 0) -> None:
        if fault == "serve":
            actor.serve()
        elif fault == "play":
            actor.play(place)
        elif fault == "calm":
            self._calm()
        elif fault == "crash":
            actor.crash()
        elif fault == "restart":
            self._restart(actor)
        elif fault == "reborn":
            actor.crash()
            self._restart(actor)
        elif fault == "outage":
            self._down_until = self.clock + OUTAGE_S
            for one in self.actors.values():
                one.crash()
        elif fault == "answers lost":
            actor.lose_answers()
        elif fault == "stop":
            actor.is_stopped = actor.runner is not None
        elif actor.runner is not None:
            actor.runner.repeats = True

    def _calm(self) -> None:
        for actor in self.actors.values():
            self._restart(actor)
            actor.serve(count=100)
            actor.play(self._ends)

    def _restart(self, actor: Actor) -> None:
        if self.clock >= self._down_until:
            actor.restart()

    def _spend(self) -> None:
        self._budget -= 1
        if self._budget < 0:
            raise BrokenPromise("the driver waits for what nobody is at any more")


class RunnerGroup:
    """What ``Fleet`` uses of RLlib's ``EnvRunnerGroup``."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.local_env_runner = None if world.actors else Runner(world, 0)
        self._worker_manager = self
        self._remote_config = SimpleNamespace(
            restart_failed_env_runners=True,
            ignore_env_runner_failures=False,
            env_runner_health_probe_timeout_s=1.0,
            env_runner_restore_timeout_s=1.5,
        )
        self._healthy = dict.fromkeys(world.actors, True)

    def num_remote_env_runners(self) -> int:
        return len(self._world.actors)

    def num_healthy_remote_workers(self) -> int:
        return sum(self._healthy.values())

    def healthy_actor_ids(self) -> list[int]:
        return [worker for worker, healthy in self._healthy.items() if healthy]

    def actors(self) -> dict[int, Actor]:
        return self._world.actors

    def set_actor_state(self, worker: int, healthy: bool) -> None:
        self._healthy[worker] = healthy

    def foreach_env_runner(self, function: Callable[[Any], Any], local_env_runner: bool = True) -> list[Any]:
        return [function(self.local_env_runner)]


class _Ray:
    """The functions of the module ``ray`` that the driver uses."""

    ObjectRef = Ref

    def wait(
        self, refs: Sequence[Ref], num_returns: int = 1, timeout: float | None = None, **_: Any
    ) -> tuple[list[Ref], list[Ref]]:
        if timeout != 0:
            World.current.step()
        ready = [ref for ref in refs if ref.done][:num_returns]
        if not ready and timeout:
            World.current.clock += timeout
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Ref) -> Any:
        assert ref.done, "who gets an answer has waited for it"
        if ref.error is not None:
            raise ref.error
        return ref.value

    def kill(self, actor: Actor, *, no_restart: bool) -> None:
        actor.crash()


RAY = _Ray()


class Standstill:
    """Finds stopped processes at the second look."""

    def find(self, actors: dict[int, Actor], patience_s: float) -> dict[int, str]:
        found = {}
        for number, actor in actors.items():
            actor.looks += actor.is_stopped
            if actor.looks >= 2:
                found[number] = "stood still"
        return found


class Clock:
    """Time, in which the world goes on while the driver sleeps."""

    def monotonic(self) -> float:
        return World.current.clock

    def sleep(self, seconds: float) -> None:
        World.current.step()
        World.current.clock += seconds


def entry(actor: Actor) -> dict[str, Any]:
    """What Ray's own table says of a runner."""
    return {"State": "RESTARTING" if actor.runner is None else "ALIVE"}


def pid() -> int:
    """Of the process in which a call is being executed."""
    return World.current.pid


def names(groups: Iterable[TrajectoryGroup]) -> list[str]:
    """Of groups, in their order."""
    return [group.group_id for group in groups]

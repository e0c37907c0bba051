"""Plays groups of trajectories with agents of the user's own, on one engine.

It answers the same calls as ``rollout.Rollout``, so whoever drives it knows no difference. Each trajectory is a call of
the user's function in a thread; what it asks is posted to the thread that advances the rollout, which alone touches the
engine. The clock of a trajectory stands still while nobody advances.

In place of threads the function may have processes, or somebody outside plays; see ``agents.workers``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field

from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.agents.agent_session import AgentSession
from gspo_rllib.agents.agent_thread import Outcome
from gspo_rllib.agents.context_watch import ContextWatch
from gspo_rllib.agents.door import Door
from gspo_rllib.agents.messages import RequestRefused, SessionEnded
from gspo_rllib.agents.result import checked_result
from gspo_rllib.agents.session import Sampled, Session
from gspo_rllib.agents.settings import AgentSettings
from gspo_rllib.agents.stitching import episode_of
from gspo_rllib.agents.tasks import Tasks
from gspo_rllib.agents.workers import Job, Running, Workers
from gspo_rllib.engines.protocol import Engine, Generation, GenerationRequest
from gspo_rllib.env_pool.calls import EnvFailure
from gspo_rllib.env_runners.agent_slots import AgentSlots
from gspo_rllib.env_runners.engine_player import EnginePlayer
from gspo_rllib.env_runners.group_scheduler import Assignment, GroupScheduler
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.env_runners.trajectory import EpisodeObserver
from gspo_rllib.errors import EnvError
from gspo_rllib.types import GroupMember, turns

MakeSession = Callable[[], Session]

LOOK_S = 0.05
"""Between two looks at what is overdue while the engine is busy; an engine's step may be shorter than such a look."""
LONGEST_SLEEP_S = 3600.0
"""Clocks of the system take no infinite time-out; who wakes up early sleeps again."""


@dataclass(eq=False, slots=True)
class _Asked:
    """A reply that is waited for."""

    future: Future[Sampled]
    since: float


@dataclass(eq=False, slots=True)
class _Playing:
    """A trajectory, and the calls it waits for."""

    assignment: Assignment
    slot: int
    session: Session
    key: str
    started: float
    last_reply: float
    own_s: float = 0.0
    has_begun: bool = False
    running: Running | None = None
    waiting: dict[str, _Asked] = field(default_factory=dict)


class AgentRollout(EnginePlayer):
    """Plays groups of trajectories.

    Args:
        engine: Samples the replies; nothing else may use it between ``begin`` and ``end``, except while turns are held
            and it is idle.
        slots: As many trajectories run at a time as it has places.
        workers: Play the trajectories.
        tasks: What it is to do.
        make_session: Makes an empty session.
        settings: Temperature.
        agent: How long an agent may take.
        contexts: Warns of conversations that do not stay one context.
        run_seed: Root of the sampling seeds.
        observer: Called with every event of every episode once it is finished; None for no calls.

    Attributes:
        holds_turns: While True no new call reaches the engine, so that it becomes idle once those that run have ended;
            agents go on. The first ``advance`` after it is False submits the calls held meanwhile.

    Raises:
        WeightSyncError: The engine holds no weights yet.
        EngineError: From ``run`` and ``advance``: the engine failed, or refused a request. What a client may not ask
            is refused by its session, and never gets here.
    """

    def __init__(
        self,
        engine: Engine,
        slots: AgentSlots,
        *,
        workers: Workers,
        tasks: Tasks,
        make_session: MakeSession,
        settings: GenerationSettings,
        agent: AgentSettings,
        contexts: ContextWatch,
        run_seed: int,
        observer: EpisodeObserver | None = None,
    ) -> None:
        super().__init__(engine)
        self._slots = slots
        self._workers = workers
        self._tasks = tasks
        self._make_session = make_session
        self._temperature = settings.temperature
        self._agent = agent
        self._contexts = contexts
        self._run_seed = run_seed
        self._observe = observer
        self._running: dict[Assignment, _Playing] = {}
        self._by_request: dict[str, _Playing] = {}
        self._left = self._last_begun = time.monotonic()
        self._stood_still = 0.0
        self._looked = -math.inf

    def begin(self, scheduler: GroupScheduler[SingleAgentEpisode]) -> None:
        """From now on ``advance`` plays the groups of this scheduler, those added to it later included."""
        super().begin(scheduler)
        self._left = time.monotonic()

    def advance(self) -> bool:
        """One step of the engine and what agents have asked meanwhile.

        With nothing for the engine to do it sleeps until an agent asks for something or ``AgentSlots.wake`` is called,
        but not while turns are held.

        Returns:
            Whether anything is left to play.
        """
        self._stood_still += time.monotonic() - self._left
        self._release_turns()
        any_posted = self._slots.run_posted(0.0)
        self._start_trajectories()
        if self._engine.has_work():
            for generation in self._step_engine():
                self._on_generation(generation)
        elif not self._running:
            return False
        elif not self.holds_turns and not any_posted:  # which may have been a ``wake``
            self._slots.run_posted(self._until_next_deadline())
            self._looked = -math.inf
        if self._now >= self._looked + LOOK_S:
            self._looked = self._now
            self._fail_overdue()
        self._left = time.monotonic()
        return True

    def end(self) -> None:
        """Abandons every trajectory that is still being played."""
        for playing in list(self._running.values()):
            self._stop(playing)

    @property
    def _now(self) -> float:
        """Seconds on a clock that stands still while nobody advances."""
        return time.monotonic() - self._stood_still

    def _start_trajectories(self) -> None:
        while (slot := self._slots.acquire()) is not None:
            assignment = self._scheduler.next_assignment()
            if assignment is None:
                self._slots.release(slot)
                return
            self._running[assignment] = self._start(assignment, slot)

    def _start(self, assignment: Assignment, slot: int) -> _Playing:
        now, endpoint = self._now, self._slots.endpoint
        playing = _Playing(assignment, slot, self._make_session(), key="", started=now, last_reply=now)
        door = Door(
            playing.session,
            name=assignment.name,
            temperature=self._temperature,
            sampling_seed=functools.partial(assignment.sampling_seed, self._run_seed),
            submit=functools.partial(self._submit_from_anywhere, playing),
            on_passed_over=lambda names: self._slots.post(lambda: self._stats.passed_over.update(names)),
        )
        playing.key = endpoint.open(door)
        job = Job(
            slot,
            assignment.attempt,
            self._tasks.task(assignment.task_seed, assignment.task_id),
            AgentSession(door, endpoint, key=playing.key, seed=assignment.task_seed),
            playing.session,
            on_begin=lambda: self._slots.post(lambda: self._on_begin(playing)),
            on_end=functools.partial(self._end_from_anywhere, playing),
        )
        playing.running = self._workers.start(job)
        return playing

    def _submit_from_anywhere(self, playing: _Playing, request: GenerationRequest) -> Future[Sampled]:
        future: Future[Sampled] = Future()

        def forget_if_cancelled(done: Future[Sampled]) -> None:
            if done.cancelled():
                self._slots.post(lambda: self._forget(playing, request.request_id))

        future.add_done_callback(forget_if_cancelled)
        self._slots.post(lambda: self._on_request(playing, request, future))
        return future

    def _end_from_anywhere(self, playing: _Playing, outcome: Outcome) -> None:
        self._slots.post(lambda: self._on_end(playing, outcome))

    def _on_begin(self, playing: _Playing) -> None:
        playing.has_begun = True
        playing.started = playing.last_reply = self._last_begun = self._now

    def _on_request(self, playing: _Playing, request: GenerationRequest, future: Future[Sampled]) -> None:
        if self._running.get(playing.assignment) is not playing:
            _settle(future, SessionEnded())
        elif not future.cancelled():
            playing.own_s += self._own_time(playing)
            playing.waiting[request.request_id] = _Asked(future, self._now)
            self._by_request[request.request_id] = playing
            self._submit_or_hold(request)

    def _on_generation(self, generation: Generation) -> None:
        playing = self._by_request.pop(generation.request_id, None)
        if playing is None:
            return
        future = playing.waiting.pop(generation.request_id).future
        playing.last_reply = self._now
        failure = self._counted(generation)
        if failure is not None:
            _settle(future, SessionEnded())
            self._fail(playing, failure)
            return
        versions = generation.token_versions
        version = self._engine.weights_version if versions is None else int(versions.min())
        assert version is not None
        _settle(future, Sampled(generation, version))

    def _on_end(self, playing: _Playing, outcome: Outcome) -> None:
        if self._running.get(playing.assignment) is not playing:
            return
        playing.session.seal()
        playing.own_s += self._own_time(playing)
        if outcome.failure is not None:
            self._fail(playing, outcome.failure)
            return
        calls = playing.session.trained_calls()
        try:
            result = checked_result(outcome.returned, num_calls=len(calls))
        except EnvError as error:
            self._fail(playing, EnvFailure("invalid", str(error)))
            return
        if playing.session.is_out_of_calls and result.truncated_by is None:
            result = dataclasses.replace(result, truncated_by="turns")
        assignment = playing.assignment
        member = GroupMember(assignment.group_id, assignment.index, assignment.task_seed)
        task = self._tasks.recorded(assignment.task_seed, assignment.task_id)
        episode = episode_of(calls, result, member, task=task, observe=self._observer_of(playing))
        self._stats.num_segments += sum(turn.starts_segment for turn in turns(episode))
        self._stats.env_s += playing.own_s
        self._contexts.note(playing.session)
        self._stop(playing)
        self._scheduler.finish(assignment, episode)

    def _own_time(self, playing: _Playing) -> float:
        """Seconds since the agent last waited for a reply."""
        return 0.0 if playing.waiting else self._now - playing.last_reply

    def _observer_of(self, playing: _Playing) -> Callable[[str, SingleAgentEpisode], None] | None:
        observe = self._observe
        return None if observe is None else lambda event, episode: observe(event, episode, playing.slot)

    def _until_next_deadline(self) -> float:
        return max(0.0, min(LONGEST_SLEEP_S, min(map(self._deadline, self._running.values())) - self._now))

    def _deadline(self, playing: _Playing) -> float:
        """When a trajectory is overdue; an agent that waits for a reply is not idle."""
        if not playing.has_begun:
            # Where places are few, who waits in line is not forgotten as long as the line moves.
            return max(playing.started, self._last_begun) + self._workers.patience_s
        next_due = playing.last_reply + self._agent.idle_timeout_s
        if playing.waiting:
            next_due = min(asked.since for asked in playing.waiting.values()) + self._call_timeout_s
        return min(next_due, playing.started + self._agent.trajectory_timeout_s)

    @property
    def _call_timeout_s(self) -> float:
        limit = self._agent.call_timeout_s
        return math.inf if limit is None else limit

    def _refuse_overdue_calls(self, now: float) -> None:
        """Answers calls that took too long; their trajectories go on."""
        for playing in list(self._running.values()):
            for request_id, asked in list(playing.waiting.items()):
                if asked.since + self._call_timeout_s <= now:
                    self._forget(playing, request_id)
                    message = f"there was no reply within agent.call_timeout_s={self._call_timeout_s:g} seconds."
                    _settle(asked.future, RequestRefused(message, code="call_timeout", status=408))

    def _fail_overdue(self) -> None:
        now = self._now
        if self._agent.call_timeout_s is not None:
            self._refuse_overdue_calls(now)
        for playing in [playing for playing in self._running.values() if self._deadline(playing) <= now]:
            if self._running.get(playing.assignment) is not playing:
                continue  # its group was discarded with the one before
            if playing.running is not None and not playing.running.cancel():
                continue  # it has just ended, which is about to be told
            if not playing.has_begun:
                self._fail(playing, EnvFailure("timeout", self._workers.impatience))
                continue
            if playing.started + self._agent.trajectory_timeout_s <= now:
                message = f"did not return within trajectory_timeout_s={self._agent.trajectory_timeout_s:g} seconds."
            else:
                message = f"neither called nor returned for idle_timeout_s={self._agent.idle_timeout_s:g} seconds."
            self._fail(playing, EnvFailure("timeout", f"the agent {message}"))

    def _fail(self, playing: _Playing, failure: EnvFailure, *, retry: bool = True) -> None:
        self._stats.add_failure(failure)
        self._stop(playing)
        for assignment in self._scheduler.fail(playing.assignment, retry=retry):
            self._stop(self._running[assignment])

    def _forget(self, playing: _Playing, request_id: str) -> None:
        """A call that nobody waits for any more."""
        self._by_request.pop(request_id, None)
        if playing.waiting.pop(request_id, None) is None:
            return
        playing.last_reply = self._now
        self._withdraw(request_id)

    def _stop(self, playing: _Playing) -> None:
        playing.session.seal()
        self._slots.endpoint.end(playing.key)
        del self._running[playing.assignment]
        for request_id, asked in list(playing.waiting.items()):
            self._forget(playing, request_id)
            _settle(asked.future, SessionEnded())
        if playing.running is not None:
            playing.running.cancel()
        self._slots.release(playing.slot)


def _settle(future: Future[Sampled], value: Sampled | Exception) -> None:
    """Ends a wait, unless it was given up at this moment."""
    try:
        future.set_exception(value) if isinstance(value, Exception) else future.set_result(value)
    except InvalidStateError:
        return

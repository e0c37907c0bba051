"""The rollout loop: many environments, one engine, nobody waits for the slowest.

Every environment's answer becomes the next request at once, and the engine runs whenever it has a request, so turns of
different trajectories share forward passes without any lock-step. When the engine has nothing to do the loop sleeps
until an environment answers. What happens to one trajectory is told in ``trajectory``; this file knows only what each
one waits for. It knows neither RLlib's config nor its actors.

``Rollout.run`` plays a fixed set of groups to their end. The same loop can be driven piece by piece (``begin``, then
``advance`` over and over, ``collect`` and ``end``), so that groups are added, finished ones taken and weights changed
between two steps; see ``background``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.engines.protocol import Engine, Generation, GenerationRequest
from gspo_rllib.env_pool.calls import EnvAnswer, EnvFailure
from gspo_rllib.env_pool.pool import EnvPool
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.engine_player import EnginePlayer
from gspo_rllib.env_runners.first_observations import FirstObservations
from gspo_rllib.env_runners.group_scheduler import Assignment
from gspo_rllib.env_runners.rollout_stats import RolloutStats
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.env_runners.trajectory import (
    EpisodeObserver,
    Reset,
    Trajectory,
    TrajectoryFailed,
    Wait,
)
from gspo_rllib.types import ChatSpec


@dataclass(slots=True)
class _Playing:
    """A trajectory and the one thing it waits for."""

    trajectory: Trajectory
    story: Generator[Wait, Any, None]
    ticket: int | None = None
    request_id: str | None = None
    first_reply: str | None = None


class Rollout(EnginePlayer):
    """Plays groups of trajectories.

    Args:
        engine: Samples the turns; nothing else may use it between ``begin`` and ``end``, except while turns are held
            and it is idle.
        pool: Plays the environments; as many trajectories run at a time as it has slots.
        renderer_for: The chat renderer for an environment's framing.
        settings: Temperature and budgets.
        run_seed: Root of the sampling seeds.
        observer: Called with every event of every episode; None for no calls.
        deterministic: Whether the environment answers equal replies alike, as it says itself.

    Attributes:
        holds_turns: While True no new turn reaches the engine, so that it becomes idle once those that run have ended;
            environments go on answering. The first ``advance`` after it is False submits the turns held meanwhile.

    Raises:
        WeightSyncError: The engine holds no weights yet.
        EngineError: From ``run`` and ``advance``: the engine failed, or refused a request.
    """

    def __init__(
        self,
        engine: Engine,
        pool: EnvPool,
        renderer_for: Callable[[ChatSpec | None], ChatRenderer],
        settings: GenerationSettings,
        *,
        run_seed: int,
        observer: EpisodeObserver | None = None,
        deterministic: bool = True,
    ) -> None:
        super().__init__(engine)
        self._pool = pool
        self._renderer_for = renderer_for
        self._settings = settings
        self._run_seed = run_seed
        self._observe = observer or _observe_nothing
        self._running: dict[Assignment, _Playing] = {}
        self._by_ticket: dict[int, _Playing] = {}
        self._by_request: dict[str, _Playing] = {}
        self._first_observations = FirstObservations(deterministic=deterministic)

    def advance(self) -> bool:
        """One step of the engine and the answers of the environments that have come in.

        With nothing for the engine to do it sleeps until an environment answers or ``EnvPool.wake`` is called, but not
        while turns are held.

        Returns:
            Whether anything is left to play.
        """
        self._release_turns()
        self._start_trajectories()
        if self._engine.has_work():
            for generation in self._step_engine():
                self._on_generation(generation)
        elif not self._pool.is_waiting and not self._held:
            assert not self._running, "a trajectory is waiting for neither the engine nor an environment"
            return False
        for answer in self._pool.poll(wait=not self._engine.has_work() and not self.holds_turns):
            self._on_answer(answer)
        return True

    def collect(self) -> RolloutStats:
        """What happened since the last call, with the groups completed since; it is forgotten here."""
        stats = super().collect()
        self._first_observations.forget(stats.settled_ids)
        return stats

    def end(self) -> None:
        """Abandons every trajectory that is still being played."""
        for playing in list(self._running.values()):
            self._stop(playing)

    def _start_trajectories(self) -> None:
        while (slot := self._pool.acquire()) is not None:
            assignment = self._scheduler.next_assignment()
            if assignment is None:
                self._pool.release(slot)
                return
            trajectory = Trajectory(
                assignment,
                slot,
                settings=self._settings,
                run_seed=self._run_seed,
                engine=self._engine,
                renderer_for=self._renderer_for,
                observe=self._observe,
            )
            playing = self._running[assignment] = _Playing(trajectory, trajectory.play())
            self._go_on(playing, None)

    def _on_generation(self, generation: Generation) -> None:
        playing = self._by_request.pop(generation.request_id, None)
        if playing is None:
            return
        playing.request_id = None
        failure = self._counted(generation)
        if failure is not None:
            self._fail(playing, failure)
            return
        self._go_on(playing, generation)

    def _on_answer(self, answer: EnvAnswer) -> None:
        playing = self._by_ticket.pop(answer.ticket, None)
        if playing is None:
            return
        playing.ticket = None
        self._stats.env_s += answer.seconds
        if answer.failure is not None:
            self._fail(playing, answer.failure)
            return
        if self._shows_another_task(playing, answer):
            assignment = playing.trajectory.assignment
            self._stats.mixed_tasks.add((assignment.group_id, assignment.replacement))
        self._go_on(playing, answer)

    def _shows_another_task(self, playing: _Playing, answer: EnvAnswer) -> bool:
        """Whether a trajectory's first answers are not those of the others of its group."""
        assignment, watched = playing.trajectory.assignment, self._first_observations
        if answer.is_reset:
            return watched.differ(assignment, answer.observation)
        reply, playing.first_reply = playing.first_reply, None
        return reply is not None and watched.answers_differ(assignment, reply, answer)

    def _go_on(self, playing: _Playing, answer: EnvAnswer | Generation | None) -> None:
        """Tells a trajectory what it waited for, and asks for what it waits for next."""
        slot, segments = playing.trajectory.slot, playing.trajectory.num_segments
        try:
            wanted = playing.story.send(answer)
        except StopIteration:
            self._finish(playing)
        except TrajectoryFailed as error:
            self._fail(playing, error.failure, retry=False)
        else:
            if isinstance(wanted, GenerationRequest):
                self._request(playing, wanted)
            elif isinstance(wanted, Reset):
                self._await(playing, self._pool.reset(slot, wanted.task_seed, wanted.task_id, wanted.stage))
            else:
                playing.first_reply = None if len(playing.trajectory.episode) else wanted.action
                self._await(playing, self._pool.step(slot, wanted.action))
        self._stats.num_segments += playing.trajectory.num_segments - segments

    def _await(self, playing: _Playing, ticket: int) -> None:
        playing.ticket = ticket
        self._by_ticket[ticket] = playing

    def _request(self, playing: _Playing, request: GenerationRequest) -> None:
        playing.request_id = request.request_id
        self._by_request[request.request_id] = playing
        self._submit_or_hold(request)

    def _finish(self, playing: _Playing) -> None:
        self._stop(playing)
        self._scheduler.finish(playing.trajectory.assignment, playing.trajectory.episode)

    def _fail(self, playing: _Playing, failure: EnvFailure, *, retry: bool = True) -> None:
        self._stats.add_failure(failure)
        self._stop(playing)
        for assignment in self._scheduler.fail(
            playing.trajectory.assignment, retry=retry, lost_process=failure.lost_process
        ):
            self._stop(self._running[assignment])

    def _stop(self, playing: _Playing) -> None:
        playing.story.close()
        del self._running[playing.trajectory.assignment]
        if playing.request_id is not None:
            self._by_request.pop(playing.request_id, None)
            self._withdraw(playing.request_id)
        if playing.ticket is not None:
            self._by_ticket.pop(playing.ticket, None)
        self._pool.release(playing.trajectory.slot)


def _observe_nothing(event: str, episode: SingleAgentEpisode, slot: int) -> None:
    pass

"""The rollout loop: many environments, one engine, nobody waits for the slowest.

Every environment's answer becomes the next request at once, and the engine runs whenever it has a request, so turns of
different trajectories share forward passes without any lock-step. When the engine has nothing to do the loop sleeps
until an environment answers. It knows neither RLlib's config nor its actors.

``Rollout.run`` plays a fixed set of groups to their end. The same loop can be driven piece by piece (``begin``, then
``advance`` over and over, ``collect`` and ``end``), so that groups are added, finished ones taken and weights changed
between two steps; see ``play``.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, get_args

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.engines.protocol import Engine, Generation, GenerationRequest
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.env_worker import EnvAnswer, EnvFailure, EnvPool
from gspo_rllib.env_runners.first_observations import FirstObservations
from gspo_rllib.env_runners.groups import Assignment, GroupScheduler
from gspo_rllib.env_runners.long_context import ContextOverflow, Segments
from gspo_rllib.env_runners.rollout_stats import RolloutStats
from gspo_rllib.env_runners.trajectory import Trajectory, role_of
from gspo_rllib.errors import EngineError, WeightSyncError
from gspo_rllib.types import GROUP, TRUNCATED_BY, TURN, ChatSpec, GroupMember, TruncatedBy, Turn


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """What one rollout is played with.

    Attributes:
        run_seed: Root of the sampling seeds.
        temperature: Of every turn, >= 0.
        max_tokens_per_turn: Most tokens the policy may sample in one turn.
        max_turns: Most turns of a trajectory; None leaves it to the environment.
        context_overflow: What happens when the conversation outgrows the engine's context; see ``long_context``.
        segment_share: Share of the context that a new segment may start with, 0 … 1.
        max_summary_tokens: Most tokens of a summary.
    """

    run_seed: int
    temperature: float
    max_tokens_per_turn: int
    max_turns: int | None = None
    context_overflow: ContextOverflow = "truncate"
    segment_share: float = 0.5
    max_summary_tokens: int = 256


class EpisodeObserver(Protocol):
    """Is told what happens to episodes, e.g. to run RLlib callbacks."""

    def __call__(self, event: str, episode: SingleAgentEpisode, slot: int) -> None:
        """``event`` is ``"on_episode_created"``, ``"…_start"``, ``"…_step"`` or ``"…_end"``."""


class Rollout:
    """Plays groups of trajectories.

    Args:
        engine: Samples the turns; nothing else may use it between ``begin`` and ``end``, but for while turns are held
            and it is idle.
        pool: Plays the environments; as many trajectories run at a time as it has slots.
        renderer_for: The chat renderer for an environment's framing.
        settings: Temperature and budgets.
        observer: Told about every episode; None for nobody.

    Attributes:
        holds_turns: While True no new turn reaches the engine, so that it becomes idle once those that run have ended;
            environments go on answering. What is held is released by the first ``advance`` after it is False.

    Raises:
        WeightSyncError: The engine holds no weights yet.
    """

    def __init__(
        self,
        engine: Engine,
        pool: EnvPool,
        renderer_for: Callable[[ChatSpec | None], ChatRenderer],
        settings: RolloutSettings,
        observer: EpisodeObserver | None = None,
    ) -> None:
        self._engine = engine
        self._pool = pool
        self._renderer_for = renderer_for
        self._settings = settings
        self._observe = observer or _observe_nothing
        if engine.weights_version is None:
            raise WeightSyncError("the engine holds no weights yet: send some before sampling.")
        self._segments = Segments(
            settings.context_overflow,
            budget=int(settings.segment_share * engine.max_model_len),
            max_summary_tokens=settings.max_summary_tokens,
        )
        self.holds_turns = False
        self._held: dict[str, GenerationRequest] = {}
        self._scheduler: GroupScheduler[SingleAgentEpisode]
        self._stats = RolloutStats()
        self._running: dict[Assignment, Trajectory] = {}
        self._by_ticket: dict[int, Trajectory] = {}
        self._by_request: dict[str, Trajectory] = {}
        self._first_observations = FirstObservations()

    def run(self, scheduler: GroupScheduler[SingleAgentEpisode]) -> tuple[list[SingleAgentEpisode], RolloutStats]:
        """Plays until every group is complete or given up.

        Args:
            scheduler: Knows the groups.

        Returns:
            The episodes of the complete groups, group by group and in order of their index; and what it took.
        """
        self.begin(scheduler)
        try:
            while self.advance():
                pass
        finally:
            self.end()
        stats = self.collect()
        return stats.episodes, stats

    def begin(self, scheduler: GroupScheduler[SingleAgentEpisode]) -> None:
        """From now on ``advance`` plays the groups of this scheduler, those added to it later included."""
        self._scheduler = scheduler

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
            started = time.perf_counter()
            generations = self._engine.step()
            self._stats.engine_s += time.perf_counter() - started
            self._stats.engine_steps += 1
            for generation in generations:
                self._on_generation(generation)
        elif not self._pool.is_waiting and not self._held:
            assert not self._running, "a trajectory is waiting for neither the engine nor an environment"
            return False
        for answer in self._pool.poll(wait=not self._engine.has_work() and not self.holds_turns):
            self._on_answer(answer)
        return True

    def collect(self) -> RolloutStats:
        """What happened since the last call, with the episodes of the groups completed since: group by group in the
        order they were asked for, by index within a group. It is forgotten here.
        """
        stats, self._stats = self._stats, RolloutStats()
        settled = self._scheduler.take_settled()
        stats.add_settled(settled)
        self._first_observations.forget([*dict(settled.complete), *settled.given_up])
        return stats

    def end(self) -> None:
        """Abandons every trajectory that is still being played."""
        for trajectory in list(self._running.values()):
            self._stop(trajectory)

    def _start_trajectories(self) -> None:
        while (slot := self._pool.acquire()) is not None:
            assignment = self._scheduler.next_assignment()
            if assignment is None:
                self._pool.release(slot)
                return
            episode = SingleAgentEpisode(id_=f"{assignment.group_id}/{assignment.index}")
            member = GroupMember(assignment.group_id, assignment.index, assignment.task_seed)
            episode.custom_data[GROUP] = member
            trajectory = Trajectory(assignment, slot, episode)
            self._running[assignment] = trajectory
            self._observe("on_episode_created", episode, slot)
            self._await(trajectory, self._pool.reset(slot, assignment.task_seed))

    def _on_generation(self, generation: Generation) -> None:
        trajectory = self._by_request.pop(generation.request_id, None)
        if trajectory is None:
            return
        trajectory.request_id = None
        logp = np.asarray(generation.logp, dtype=np.float32)
        if not len(logp) == len(generation.token_ids) > 0 or not np.isfinite(logp).all():
            message = (
                f"the engine returned {len(generation.token_ids)} tokens with log-probabilities {logp[:8]} for weights "
                f"version {self._engine.weights_version}; every one must be finite. Its weights may hold NaN."
            )
            self._fail(trajectory, EnvFailure("engine", message))
            return
        assert self._engine.weights_version is not None
        trajectory.add_sample(generation, self._engine.weights_version)
        self._stats.num_turns_mixed += generation.token_versions is not None
        self._stats.tokens_sampled += len(generation.token_ids)
        self._stats.tokens_cached += generation.num_cached_tokens
        assert trajectory.renderer is not None
        trajectory.action = trajectory.renderer.decode(generation.token_ids)
        if trajectory.pending is not None:
            self._on_summary(trajectory, trajectory.pending)
            return
        trajectory.num_turns += 1
        self._await(trajectory, self._pool.step(trajectory.slot, trajectory.action))

    def _await(self, trajectory: Trajectory, ticket: int) -> None:
        trajectory.ticket = ticket
        self._by_ticket[ticket] = trajectory

    def _on_answer(self, answer: EnvAnswer) -> None:
        trajectory = self._by_ticket.pop(answer.ticket, None)
        if trajectory is None:
            return
        trajectory.ticket = None
        self._stats.env_s += answer.seconds
        if answer.failure is not None:
            self._fail(trajectory, answer.failure)
        elif answer.is_reset:
            self._on_reset(trajectory, answer)
        else:
            self._on_step(trajectory, answer)

    def _on_reset(self, trajectory: Trajectory, answer: EnvAnswer) -> None:
        if self._first_observations.differ(trajectory.assignment, answer.observation):
            self._stats.mixed_tasks.add((trajectory.assignment.group_id, trajectory.assignment.replacement))
        trajectory.episode.add_env_reset(observation=answer.observation, infos=answer.info)
        # Foreign text, tokenizer and template meet here; what they cannot do together fails this task only.
        try:
            trajectory.renderer = self._renderer_for(answer.chat)
            prompt = trajectory.renderer.first_prompt(answer.observation)
        except Exception as error:  # noqa: BLE001
            self._fail(trajectory, _render_failure(error), retry=False)
            return
        if len(prompt) >= self._room(trajectory):
            message = (
                f"the first prompt has {len(prompt)} tokens, the engine's context {self._engine.max_model_len}, of "
                f"which {self._segments.reserve(trajectory)} are kept for a summary: there is no room for a reply. "
                "Raise max_model_len (if the model allows it) or shorten the observation."
            )
            self._fail(trajectory, EnvFailure("context", message), retry=False)
            return
        self._observe("on_episode_start", trajectory.episode, trajectory.slot)
        self._request_turn(trajectory, prompt)

    def _on_step(self, trajectory: Trajectory, answer: EnvAnswer) -> None:
        prompt: list[int] = []
        truncated_by: TruncatedBy | None = None
        if answer.truncated and not answer.terminated:
            named = answer.info.get("truncated_by")
            truncated_by = named if named in get_args(TruncatedBy) else "env"
        elif not answer.terminated and trajectory.num_turns == self._max_turns(trajectory):
            truncated_by = "turns"
        elif not answer.terminated:
            try:
                assert trajectory.renderer is not None
                prompt = trajectory.renderer.next_prompt(
                    answer.observation, reply_ended=trajectory.reply_ended, role=role_of(answer)
                )
            except Exception as error:  # noqa: BLE001, as in _on_reset
                self._fail(trajectory, _render_failure(error), retry=False)
                return
            if len(prompt) >= self._room(trajectory):
                prompt, truncated_by = self._on_overflow(trajectory, answer)
        self._add_step(trajectory, answer, truncated_by)
        self._go_on(trajectory, prompt, truncated_by)

    def _add_step(self, trajectory: Trajectory, answer: EnvAnswer, truncated_by: TruncatedBy | None) -> None:
        trajectory.episode.add_env_step(
            observation=answer.observation,
            action=trajectory.action,
            reward=answer.reward,
            infos=answer.info,
            terminated=answer.terminated,
            truncated=truncated_by is not None,
            extra_model_outputs={TURN: trajectory.turn},
        )
        self._observe("on_episode_step", trajectory.episode, trajectory.slot)

    def _go_on(self, trajectory: Trajectory, prompt: list[int], truncated_by: TruncatedBy | None) -> None:
        if truncated_by is not None:
            trajectory.episode.custom_data[TRUNCATED_BY] = truncated_by
        if trajectory.episode.is_done:
            self._finish(trajectory)
        else:
            self._request_turn(trajectory, prompt)

    def _on_summary(self, trajectory: Trajectory, answer: EnvAnswer) -> None:
        """Records the summary as a step of which the environment knows nothing, and goes on in a new segment."""
        trajectory.pending = None
        prompt = self._segments.after_summary(trajectory, answer)
        truncated_by = self._start_segment(trajectory, prompt)
        summarized = dataclasses.replace(answer, reward=0.0, info={"obs_role": role_of(answer)})
        self._add_step(trajectory, summarized, truncated_by)
        self._go_on(trajectory, prompt or [], truncated_by)

    def _on_overflow(self, trajectory: Trajectory, answer: EnvAnswer) -> tuple[list[int], TruncatedBy | None]:
        """What the policy is asked instead of a prompt that does not fit."""
        if self._settings.context_overflow == "summarize":
            trajectory.pending = answer
            return self._segments.summary_request(trajectory), None
        prompt = self._segments.window(trajectory, answer)
        return prompt or [], self._start_segment(trajectory, prompt)

    def _start_segment(self, trajectory: Trajectory, prompt: list[int] | None) -> TruncatedBy | None:
        if prompt is None or len(prompt) >= self._engine.max_model_len - self._segments.reserve(trajectory):
            return "context"
        self._stats.num_segments += 1
        trajectory.start_segment()
        return None

    def _room(self, trajectory: Trajectory) -> int:
        """Tokens the context may still grow by, those kept free for a summary left out while none is written."""
        reserved = 0 if trajectory.pending is not None else self._segments.reserve(trajectory)
        return self._engine.max_model_len - len(trajectory.context) - reserved

    def _max_turns(self, trajectory: Trajectory) -> int | None:
        """The smaller of the run's limit and the environment's."""
        assert trajectory.renderer is not None
        limits = (self._settings.max_turns, trajectory.renderer.chat.max_turns)
        return min((limit for limit in limits if limit is not None), default=None)

    def _request_turn(self, trajectory: Trajectory, prompt: list[int]) -> None:
        trajectory.prompt = prompt
        trajectory.context.extend(prompt)
        assert trajectory.renderer is not None
        chat = trajectory.renderer.chat
        is_summary = trajectory.pending is not None
        limits = (self._settings.max_tokens_per_turn, chat.max_tokens_per_turn)
        most = self._settings.max_summary_tokens if is_summary else min(limit for limit in limits if limit is not None)
        request = GenerationRequest(
            request_id=f"{trajectory.assignment.name}/{trajectory.num_requests}",
            prompt_token_ids=trajectory.context.copy(),
            max_tokens=min(most, self._room(trajectory)),
            temperature=self._settings.temperature,
            seed=trajectory.assignment.sampling_seed(self._settings.run_seed, trajectory.num_requests),
            stop=() if is_summary else chat.stop,  # a summary may quote what ends a turn
        )
        trajectory.request_id = request.request_id
        self._by_request[request.request_id] = trajectory
        if self.holds_turns:
            self._held[request.request_id] = request
        else:
            self._submit(request)

    def _submit(self, request: GenerationRequest) -> None:
        try:
            self._engine.submit(request)
        except EngineError as error:
            trajectory = self._by_request.pop(request.request_id)
            trajectory.request_id = None
            self._fail(trajectory, EnvFailure("engine", str(error)), retry=False)

    def _release_turns(self) -> None:
        while self._held and not self.holds_turns:
            request_id = next(iter(self._held))
            self._submit(self._held.pop(request_id))

    def _finish(self, trajectory: Trajectory) -> None:
        self._observe("on_episode_end", trajectory.episode, trajectory.slot)
        recorded = [ids for t in trajectory.episode.get_extra_model_outputs(TURN) for ids in _ids(t)]
        assert np.array_equal(np.concatenate(recorded), trajectory.seen), "turns must add up to the contexts"
        self._stop(trajectory)
        self._scheduler.finish(trajectory.assignment, trajectory.episode)

    def _fail(self, trajectory: Trajectory, failure: EnvFailure, *, retry: bool = True) -> None:
        self._stats.add_failure(failure)
        self._stop(trajectory)
        for assignment in self._scheduler.fail(trajectory.assignment, retry=retry):
            self._stop(self._running[assignment])

    def _stop(self, trajectory: Trajectory) -> None:
        del self._running[trajectory.assignment]
        if trajectory.request_id is not None:
            self._by_request.pop(trajectory.request_id, None)
            if self._held.pop(trajectory.request_id, None) is None:
                self._engine.abort([trajectory.request_id])
        if trajectory.ticket is not None:
            self._by_ticket.pop(trajectory.ticket, None)
        self._pool.release(trajectory.slot)


def _ids(turn: Turn) -> tuple[np.ndarray, np.ndarray]:
    return turn.prompt_token_ids, turn.action_token_ids


def _render_failure(error: Exception) -> EnvFailure:
    return EnvFailure("invalid", f"the observation could not be rendered: {type(error).__name__}: {str(error)[:500]}")


def _observe_nothing(event: str, episode: SingleAgentEpisode, slot: int) -> None:
    pass

"""One trajectory from its first observation to its last, told in the order in which it happens.

``Trajectory.play`` is a generator: it yields what it waits for (a ``Reset`` or a ``Step`` of its environment, or a
``GenerationRequest`` for the engine), is sent the answer, and returns when the episode is over. Whoever runs many of
them at once decides when each one goes on; see ``rollout``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.engines.protocol import Engine, Generation, GenerationRequest
from gspo_rllib.env_pool.calls import EnvAnswer, EnvFailure, FailureKind
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.group_names import stage_of
from gspo_rllib.env_runners.group_scheduler import Assignment
from gspo_rllib.env_runners.long_context import Segments
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.types import GROUP, TRUNCATED_BY, TURN, ChatSpec, GroupMember, TruncatedBy, Turn


@dataclass(frozen=True, slots=True)
class Reset:
    """The trajectory waits for the environment's first observation."""

    task_seed: int
    task_id: str | None
    stage: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """The trajectory waits for the environment's answer to an action."""

    action: str


Wait = Reset | Step | GenerationRequest
"""What a trajectory may wait for; it is sent an ``EnvAnswer`` for the first two, a ``Generation`` for the last."""


class EpisodeObserver(Protocol):
    """Is told what happens to episodes, e.g. to run RLlib callbacks."""

    def __call__(self, event: str, episode: SingleAgentEpisode, slot: int) -> None:
        """``event`` is ``"on_episode_created"``, ``"…_start"``, ``"…_step"`` or ``"…_end"``."""


class TrajectoryFailed(Exception):
    """The trajectory cannot go on, although neither the environment nor the engine failed by itself."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.failure = EnvFailure(kind, message)


class Trajectory:
    """One episode being played, and every token id the engine saw of it.

    Args:
        assignment: Which member of which group the trajectory is.
        slot: The environment slot it is played in.
        settings: Temperature and budgets.
        run_seed: Root of the sampling seeds.
        engine: Samples the turns; only its context length and weights version are read here.
        renderer_for: The chat renderer for an environment's framing.
        observe: Called with every event of the episode.

    Attributes:
        episode: The turns played so far.
        num_segments: Times the conversation went on in a new context.
    """

    def __init__(
        self,
        assignment: Assignment,
        slot: int,
        *,
        settings: GenerationSettings,
        run_seed: int,
        engine: Engine,
        renderer_for: Callable[[ChatSpec | None], ChatRenderer],
        observe: EpisodeObserver,
    ) -> None:
        self.assignment = assignment
        self.slot = slot
        self.num_segments = 0
        self.episode = SingleAgentEpisode(id_=f"{assignment.group_id}/{assignment.index}")
        member = GroupMember(assignment.group_id, assignment.index, assignment.task_seed)
        self.episode.custom_data[GROUP] = member
        self._settings = settings
        self._run_seed = run_seed
        self._engine = engine
        self._max_model_len = engine.max_model_len
        self._renderer_for = renderer_for
        self._observe = observe
        self._renderer: ChatRenderer
        self._segments: Segments
        self._turn_tokens: int
        self._max_turns: int | None
        self._context: list[int] = []
        self._reply: list[int] = []
        self._finished_context: list[int] = []
        self._num_requests = 0
        observe("on_episode_created", self.episode, slot)

    def play(self) -> Generator[Wait, Any, None]:
        """Plays the episode; see the top of this file.

        Raises:
            TrajectoryFailed: An observation cannot be rendered, or the first prompt leaves no room for a reply.
        """
        answer: EnvAnswer = yield Reset(
            self.assignment.task_seed, self.assignment.task_id, stage_of(self.assignment.group_id)
        )
        prompt = self._first_prompt(answer)
        self._observe("on_episode_start", self.episode, self.slot)
        num_turns = 0
        starts_segment = False
        while True:
            turn, action = yield from self._sample(prompt, starts_segment=starts_segment)
            answer = yield Step(action)
            num_turns += 1
            starts_segment = False
            truncated_by = self._truncation(answer, num_turns)
            if answer.terminated or truncated_by:
                self._record(turn, action, answer, truncated_by)
                break
            prompt = self._rendered(self._next_prompt, answer)
            if len(prompt) < self._room:
                self._record(turn, action, answer)
                continue
            if self._settings.asks_for_summaries:
                self._record(turn, action, answer)
                request = self._segments.summary_request(self._reply)
                turn, action = yield from self._sample(request, starts_segment=False, is_summary=True)
                segment = self._segments.after_summary(self.episode, action, answer)
                answer = dataclasses.replace(answer, reward=0.0, info={"obs_role": answer.role})
            else:
                segment = self._segments.window(self.episode, turn, answer)
            truncated_by = self._start_segment(segment)
            self._record(turn, action, answer, truncated_by)
            if truncated_by:
                break
            prompt, starts_segment = segment or [], True
        self._observe("on_episode_end", self.episode, self.slot)
        turns = self.episode.get_extra_model_outputs(TURN)
        recorded = [ids for t in turns for ids in (t.prompt_token_ids, t.action_token_ids)]
        seen = [*self._finished_context, *self._context]
        assert np.array_equal(np.concatenate(recorded), seen), "turns must add up to the contexts"

    def _first_prompt(self, answer: EnvAnswer) -> list[int]:
        self.episode.add_env_reset(observation=answer.observation, infos=answer.info)
        prompt = self._rendered(self._begin_conversation, answer)
        if len(prompt) >= self._room:
            raise TrajectoryFailed(
                "context",
                f"the first prompt has {len(prompt)} tokens, the engine's context {self._max_model_len}, of which "
                f"{self._segments.reserve} are kept for a summary: there is no room for a reply. Raise max_model_len "
                "(if the model allows it) or shorten the observation.",
            )
        return prompt

    def _begin_conversation(self, answer: EnvAnswer) -> list[int]:
        self._renderer = self._renderer_for(answer.chat)
        self._segments = Segments(
            self._renderer, self._settings, budget=int(self._settings.segment_share * self._max_model_len)
        )
        chat = self._renderer.chat
        # The smaller of the run's limit and the environment's, each of which may be none.
        self._max_turns = min(filter(None, (self._settings.max_turns, chat.max_turns)), default=None)
        self._turn_tokens = min(filter(None, (self._settings.max_tokens_per_turn, chat.max_tokens_per_turn)))
        return self._renderer.first_prompt(answer.observation)

    def _next_prompt(self, answer: EnvAnswer) -> list[int]:
        return self._renderer.prompt_after(self._reply, answer.observation, role=answer.role)

    def _rendered(self, render: Callable[[EnvAnswer], list[int]], answer: EnvAnswer) -> list[int]:
        # Foreign text, tokenizer and template meet here; what they cannot do together fails this task only.
        try:
            return render(answer)
        except Exception as error:
            message = f"the observation could not be rendered: {type(error).__name__}: {str(error)[:500]}"
            raise TrajectoryFailed("invalid", message) from error

    def _sample(
        self, prompt: list[int], *, starts_segment: bool, is_summary: bool = False
    ) -> Generator[Wait, Any, tuple[Turn, str]]:
        """Has the engine sample one turn; returns it with its text."""
        self._context.extend(prompt)
        room = self._max_model_len - len(self._context) - (0 if is_summary else self._segments.reserve)
        generation: Generation = yield GenerationRequest(
            request_id=f"{self.assignment.name}/{self._num_requests}",
            prompt_token_ids=self._context.copy(),
            max_tokens=min(self._settings.max_summary_tokens if is_summary else self._turn_tokens, room),
            temperature=self._settings.temperature,
            seed=self.assignment.sampling_seed(self._run_seed, self._num_requests),
            # A summary may quote what the environment ends a turn with.
            stop=self._renderer.own_stop if is_summary else self._renderer.stop,
        )
        self._num_requests += 1
        self._reply = generation.token_ids
        self._context.extend(self._reply)
        versions = generation.token_versions
        version = self._engine.weights_version if versions is None else int(versions.min())
        assert version is not None
        turn = Turn(
            prompt_token_ids=np.asarray(prompt, dtype=np.int32),
            action_token_ids=np.asarray(generation.token_ids, dtype=np.int32),
            action_logp=np.asarray(generation.logp, dtype=np.float32),
            policy_version=version,
            finish_reason=generation.finish_reason,
            starts_segment=starts_segment,
            is_summary=is_summary,
            token_versions=versions,
        )
        return turn, self._renderer.decode(generation.token_ids)

    def _record(self, turn: Turn, action: str, answer: EnvAnswer, truncated_by: TruncatedBy | None = None) -> None:
        self.episode.add_env_step(
            observation=answer.observation,
            action=action,
            reward=answer.reward,
            infos=answer.info,
            terminated=answer.terminated,
            truncated=truncated_by is not None,
            extra_model_outputs={TURN: turn},
        )
        if truncated_by is not None:
            self.episode.custom_data[TRUNCATED_BY] = truncated_by
        self._observe("on_episode_step", self.episode, self.slot)

    def _start_segment(self, prompt: list[int] | None) -> TruncatedBy | None:
        if prompt is None or len(prompt) >= self._max_model_len - self._segments.reserve:
            return "context"
        self.num_segments += 1
        self._finished_context.extend(self._context)
        self._context = []
        return None

    def _truncation(self, answer: EnvAnswer, num_turns: int) -> TruncatedBy | None:
        """Why the episode ends although the environment did not terminate it; None where it does not."""
        if answer.terminated:
            return None
        if answer.truncated:
            named = answer.info.get("truncated_by")
            return named if named in get_args(TruncatedBy) else "env"
        return "turns" if num_turns == self._max_turns else None

    @property
    def _room(self) -> int:
        """Tokens the context may still grow by; what a summary would need is kept free."""
        return self._max_model_len - len(self._context) - self._segments.reserve

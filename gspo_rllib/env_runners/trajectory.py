"""One trajectory while it is being played."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.engines.protocol import Generation
from gspo_rllib.env_runners.chat import ChatRenderer
from gspo_rllib.env_runners.env_worker import EnvAnswer
from gspo_rllib.env_runners.groups import Assignment
from gspo_rllib.types import TURN, Turn


@dataclass(slots=True)
class Trajectory:
    """Its episode, and what the engine saw of it.

    Attributes:
        assignment: Which member of which group it is.
        slot: Where its environment lives.
        episode: What has been played.
        renderer: Of its conversation; None before the first observation.
        context: The ids of the current segment; only ever grows within it.
        finished_context: The ids of all earlier segments.
        prompt: What the turn being sampled appended to the context.
        turn: The latest finished one.
        action: Its text.
        num_turns: Actions taken; a summary is none.
        num_requests: Requests to the engine so far.
        starts_segment: Whether the turn being sampled is the first of its segment.
        pending: An observation that waits for the summary being written.
        ticket: Of the environment call it waits for.
        request_id: Of the engine request it waits for.
    """

    assignment: Assignment
    slot: int
    episode: SingleAgentEpisode
    renderer: ChatRenderer | None = None
    context: list[int] = field(default_factory=list)
    finished_context: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    turn: Turn | None = None
    action: str = ""
    num_turns: int = 0
    num_requests: int = 0
    starts_segment: bool = False
    pending: EnvAnswer | None = None
    ticket: int | None = None
    request_id: str | None = None

    @property
    def reply_ended(self) -> bool:
        """Whether the context ends with an end-of-turn id the policy sampled."""
        assert self.renderer is not None
        return self.context[-1] in self.renderer.stop_token_ids

    @property
    def seen(self) -> list[int]:
        """All ids of all segments."""
        return [*self.finished_context, *self.context]

    def add_sample(self, generation: Generation, weights_version: int) -> None:
        """Takes what the engine sampled as the latest turn.

        Args:
            generation: The answer to the request it waited for.
            weights_version: What the engine holds now.
        """
        versions = generation.token_versions
        self.turn = Turn(
            prompt_token_ids=np.asarray(self.prompt, dtype=np.int32),
            action_token_ids=np.asarray(generation.token_ids, dtype=np.int32),
            action_logp=np.asarray(generation.logp, dtype=np.float32),
            policy_version=weights_version if versions is None else int(versions.min()),
            finish_reason=generation.finish_reason,
            starts_segment=self.starts_segment,
            is_summary=self.pending is not None,
            token_versions=versions,
        )
        self.starts_segment = False
        self.context.extend(generation.token_ids)
        self.num_requests += 1

    def start_segment(self) -> None:
        """The next turn's prompt is a context of its own."""
        self.finished_context.extend(self.context)
        self.context = []
        self.starts_segment = True

    def turns(self) -> list[Turn]:
        """All turns so far, the one the environment has just answered included."""
        assert self.turn is not None
        return [*self.episode.get_extra_model_outputs(TURN), self.turn] if len(self.episode) else [self.turn]


def role_of(answer: EnvAnswer) -> str:
    """The role an observation is shown in."""
    role: str = answer.info.get("obs_role", "user")
    return role

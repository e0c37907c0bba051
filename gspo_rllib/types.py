"""The data that flows between environments, engines and the learner.

A trajectory is a plain RLlib ``SingleAgentEpisode`` whose step is one *turn*: observation and action are ``str``.
What the policy saw and sampled in that turn is one ``Turn``, stored under ``extra_model_outputs["turn"]``; it is one
opaque object on purpose, because RLlib's ``to_numpy()`` broadcasts or rejects ragged per-turn arrays.

This module imports neither torch, ray, transformers nor vllm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

FinishReason = Literal["stop", "length"]
TruncatedBy = Literal["turns", "context", "env"]

TURN = "turn"
"""Key of the ``Turn`` in an episode's ``extra_model_outputs``."""

GROUP = "group"
"""Key of the ``GroupMember`` in an episode's ``custom_data``."""

TRUNCATED_BY = "truncated_by"
"""Key in an episode's ``custom_data``: a ``TruncatedBy``, or absent when the trajectory ended by itself."""

TURN_REWARDS = "turn_rewards"
"""Key in an episode's ``custom_data``: rewards to learn from instead of the environment's; see ``turn_rewards``."""

REWARD_PARTS = "reward_parts"
"""Key in an environment's ``info``: ``{name: float}``, what this turn's reward is made of, if of several parts."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What the policy was shown and sampled in one turn, as token ids.

    Appending ``prompt_token_ids`` and ``action_token_ids`` of every turn of a segment in order gives exactly the ids
    the engine saw: nothing sampled is ever re-tokenised.

    Attributes:
        prompt_token_ids: int32 [P], only the ids this turn *appends* to the context (observation and chat frame); all
            ids of the context where the turn starts a segment.
        action_token_ids: int32 [A], the sampled ids, the end-of-turn token included when it was sampled.
        action_logp: float32 [A], log-probability (nats) of each sampled id under the distribution it was drawn
            from, temperature included.
        policy_version: The weights version the engine had acknowledged when it sampled this turn.
        finish_reason: ``"stop"``: the model ended its turn; ``"length"``: it ran out of tokens.
        starts_segment: Whether the history was edited before this turn, so that it starts a new context; the first
            turn of a trajectory does not say so.
        is_summary: Whether the policy wrote a summary of the conversation instead of an action; the environment was
            not stepped.
    """

    prompt_token_ids: np.ndarray
    action_token_ids: np.ndarray
    action_logp: np.ndarray
    policy_version: int
    finish_reason: FinishReason
    starts_segment: bool = False
    is_summary: bool = False


@dataclass(frozen=True, slots=True)
class GroupMember:
    """Which trajectory of which group an episode is.

    Attributes:
        group_id: Names the group within a run; K trajectories carry the same one.
        index: Position of this trajectory in its group, 0 … K-1.
        task_seed: The ``reset(seed=…)`` that fixed the task; the same for the whole group.
    """

    group_id: str
    index: int
    task_seed: int


@dataclass(frozen=True, slots=True)
class TrajectoryGroup:
    """K complete trajectories of one task: the unit of sampling, sharding, retrying and staleness.

    Attributes:
        group_id: Names the group within a run.
        episodes: K finished episodes, ordered by ``GroupMember.index``.
    """

    group_id: str
    episodes: list[SingleAgentEpisode] = field(repr=False)

    @property
    def num_tokens(self) -> int:
        """Tokens of all trajectories, prompts included."""
        return sum(trajectory_num_tokens(episode) for episode in self.episodes)


@dataclass(frozen=True, slots=True)
class ChatSpec:
    """How an environment wants its conversation framed; optional attribute ``chat`` of an environment.

    Attributes:
        system_prompt: Content of the system message before the first observation, if any.
        template_kwargs: Passed to the tokenizer's chat template, e.g. ``{"enable_thinking": False}``.
    """

    system_prompt: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)


def turns(episode: SingleAgentEpisode) -> Iterator[Turn]:
    """The turns of a trajectory, in order."""
    return iter(episode.get_extra_model_outputs(TURN))


def turn_rewards(episode: SingleAgentEpisode) -> np.ndarray:
    """float64 [N], the reward to learn from in every turn: the environment's, unless something has replaced them."""
    replaced = episode.custom_data.get(TURN_REWARDS)
    return np.asarray(episode.get_rewards() if replaced is None else replaced, dtype=np.float64)


def trajectory_num_tokens(episode: SingleAgentEpisode) -> int:
    """Tokens of one trajectory, prompts included."""
    return sum(len(t.prompt_token_ids) + len(t.action_token_ids) for t in turns(episode))


def group_episodes(episodes: list[SingleAgentEpisode]) -> list[TrajectoryGroup]:
    """Collects episodes into their groups, in the order the groups first appear.

    Args:
        episodes: Finished episodes that carry a ``GroupMember`` in ``custom_data``.

    Returns:
        One group per distinct ``group_id``, members ordered by index.
    """
    members: dict[str, list[SingleAgentEpisode]] = {}
    for episode in episodes:
        members.setdefault(episode.custom_data[GROUP].group_id, []).append(episode)
    return [
        TrajectoryGroup(group_id, sorted(group, key=lambda e: e.custom_data[GROUP].index))
        for group_id, group in members.items()
    ]


@dataclass(frozen=True, slots=True)
class TokenTrajectory:
    """One trajectory as the learner trains it: concatenated token ids and what is known about the sampled ones.

    Attributes:
        group_id: The group it belongs to.
        index: Its position in the group.
        segments: The contiguous contexts it consists of, int32 [T_s] each; one, unless its history was edited.
        loss_masks: bool [T_s] per segment, True on sampled tokens; never True on a segment's first token.
        turn_index: int32 [L], turn of each sampled token, over all segments in order.
        behavior_logp: float32 [L], log-probability (nats) the engine sampled each one with.
        behavior_version: Oldest weights version among its turns.
        turn_rewards: float64 [N], reward of each turn.
        advantages: float32 [L], advantage of each sampled token; equal within a trajectory or a turn where credit is
            given to those.
        value_targets: float32 [L], what a critic is to predict; None without one.
        reference_logp: float32 [L], log-probability (nats) under a frozen reference policy; None without one.
    """

    group_id: str
    index: int
    segments: tuple[np.ndarray, ...]
    loss_masks: tuple[np.ndarray, ...]
    turn_index: np.ndarray
    behavior_logp: np.ndarray
    behavior_version: int
    turn_rewards: np.ndarray
    advantages: np.ndarray
    value_targets: np.ndarray | None = None
    reference_logp: np.ndarray | None = None

    @property
    def num_turns(self) -> int:
        """Its turns."""
        return len(self.turn_rewards)

    @property
    def num_tokens(self) -> int:
        """All its tokens, prompts included."""
        return sum(len(segment) for segment in self.segments)

    @property
    def num_loss_tokens(self) -> int:
        """Its sampled tokens."""
        return len(self.behavior_logp)

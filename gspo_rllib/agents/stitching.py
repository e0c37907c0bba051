"""From a session to an episode: the tree of calls as contexts, each sampled id in exactly one place with loss.

A path from a root to a leaf is one context that only grew, a *segment*. Calls are laid out path by path; where paths
share calls, these are turns of the first path, and the others begin with a turn whose prompt is all of the context so
far. So every segment is what the engine saw, and what was sampled once is trained once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import numpy as np

from gspo_rllib.agents.result import AgentResult
from gspo_rllib.agents.session import Call
from gspo_rllib.types import GROUP, REWARD_PARTS, TASK, TRUNCATED_BY, TURN, GroupMember, Turn

if TYPE_CHECKING:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

Observe = Callable[[str, "SingleAgentEpisode"], None]


class CallNode(Protocol):
    """A call in a tree of calls, live or recorded."""

    @property
    def number(self) -> int:
        """Counts the calls; a child's is higher than its parent's."""

    @property
    def parent(self) -> Self | None:
        """The call this one goes on from; None for a root."""

    @property
    def children(self) -> Sequence[Self]:
        """The calls that go on from this one."""


_Node = TypeVar("_Node", bound=CallNode)


def in_segments(calls: Sequence[_Node]) -> Iterator[tuple[_Node, bool]]:
    """Calls in the order of their turns.

    Args:
        calls: The calls to train on, parents included, by number.

    Yields:
        Each call once, and whether its turn starts a context: a root does, and every child of a call but its first.
    """
    kept = set(calls)
    # Not recursive: a conversation may be longer than Python's stack.
    stack = [(call, True) for call in reversed(calls) if call.parent is None]
    while stack:
        call, starts = stack.pop()
        yield call, starts
        children = sorted((child for child in call.children if child in kept), key=lambda child: child.number)
        stack += [(child, True) for child in reversed(children[1:])]
        stack += [(child, False) for child in children[:1]]


def turn_of(call: Call, *, starts_context: bool, is_first: bool) -> Turn:
    """One call as a turn.

    Args:
        call: The call.
        starts_context: Whether its prompt is all of its context.
        is_first: Whether it is the first turn of the trajectory.
    """
    generation = call.sampled.generation
    return Turn(
        prompt_token_ids=call.prompt() if starts_context else call.appended,
        action_token_ids=call.token_ids,
        action_logp=np.asarray(generation.logp, dtype=np.float32),
        policy_version=call.sampled.version,
        finish_reason=generation.finish_reason,
        starts_segment=starts_context and not is_first,
        token_versions=generation.token_versions,
    )


def episode_of(
    calls: Sequence[Call],
    result: AgentResult,
    member: GroupMember,
    *,
    task: Mapping[str, Any] | None = None,
    observe: Observe | None = None,
) -> SingleAgentEpisode:
    """A finished trajectory.

    Args:
        calls: The calls to train on, by number; at least one.
        result: What the agent returned; as many ``call_rewards`` as calls, or none.
        member: Which trajectory of which group it is.
        task: What the agent was to do; None keeps nothing of it.
        observe: Called with every event of the episode, as it grows.
    """
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    observe = observe or (lambda event, episode: None)
    rewards = dict(zip(calls, result.call_rewards, strict=True)) if result.call_rewards else {}
    ordered = list(in_segments(calls))
    seen = [*(call.new_text for call, _ in ordered), ""]
    episode = SingleAgentEpisode(id_=f"{member.group_id}/{member.index}")
    episode.custom_data[GROUP] = member
    if task is not None:
        episode.custom_data[TASK] = task
    observe("on_episode_created", episode)
    episode.add_env_reset(observation=seen[0], infos={})
    observe("on_episode_start", episode)
    if result.truncated_by is not None:
        episode.custom_data[TRUNCATED_BY] = result.truncated_by
    for place, (call, starts) in enumerate(ordered):
        is_last = place == len(ordered) - 1
        episode.add_env_step(
            observation=seen[place + 1],
            action=call.text,
            reward=rewards.get(call, 0.0) + (result.reward if is_last else 0.0),
            infos=_last_info(result) if is_last else {},
            terminated=is_last and result.truncated_by is None,
            truncated=is_last and result.truncated_by is not None,
            extra_model_outputs={TURN: turn_of(call, starts_context=starts, is_first=place == 0)},
        )
        observe("on_episode_step", episode)
    observe("on_episode_end", episode)
    return episode


def _last_info(result: AgentResult) -> dict[str, object]:
    info: dict[str, object] = {}
    if result.success is not None:
        info["success"] = result.success
    if result.reward_parts is not None:
        info[REWARD_PARTS] = dict(result.reward_parts)
    return info

"""Recorded calls of one trajectory: each with its ids, which of them goes on from which, and the episode they are.

Calls form a tree, as those of a live session do, and become segments in the same way (see ``stitching``). A call may
say which call it goes on from; otherwise that is the call with the longest context that its prompt begins with, id for
id. That is exact whatever made the record: a call is trained in a context that it was sampled in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from gspo_rllib.agents.record_fields import (
    checked_choice,
    checked_fields,
    checked_ids,
    checked_logprobs,
    checked_number,
    checked_text,
    checked_version,
    is_whole,
)
from gspo_rllib.agents.stitching import in_segments
from gspo_rllib.errors import RecordError, shown
from gspo_rllib.types import (
    GROUP,
    ORIGIN,
    REWARD_PARTS,
    TRUNCATED_BY,
    TURN,
    FinishReason,
    GroupMember,
    Origin,
    TruncatedBy,
    Turn,
)

if TYPE_CHECKING:
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

SAMPLED_FIELDS = ("sampled_ids", "logprobs", "version", "finish_reason", "reward")
"""What is known of a reply of the policy."""

CALL_FIELDS = (
    *SAMPLED_FIELDS, "prompt_ids", "appended_ids", "after", "observation", "text", "is_summary",
)  # fmt: skip
"""What a recorded call may hold."""


@dataclass(eq=False, slots=True)
class RecordedCall:
    """One reply of the policy, and what it answered.

    Attributes:
        number: Place among the calls of the trajectory, from 0.
        parent: The call whose context this one goes on from; None for one with a context of its own.
        appended: int32, ids that this call appended to that context; the whole prompt of one without.
        token_ids: int32, the sampled ids.
        logp: float32, their log-probabilities (nats); None where they are unknown.
        version: Oldest weights version that sampled any of them.
        token_versions: int32, the version of each; None where all are ``version``.
        finish_reason: Why sampling ended.
        reward: Reward of this reply.
        observation: What it answers, as text.
        text: The reply as text.
        is_summary: Whether the reply is a summary of the conversation instead of an action.
        end: Length of the context, this reply included.
        children: Calls that go on from this one.
    """

    number: int
    parent: RecordedCall | None
    appended: np.ndarray
    token_ids: np.ndarray
    logp: np.ndarray | None
    version: int
    token_versions: np.ndarray | None
    finish_reason: FinishReason
    reward: float
    observation: str
    text: str
    is_summary: bool
    end: int = field(init=False)
    children: list[RecordedCall] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.end = (self.parent.end if self.parent else 0) + len(self.appended) + len(self.token_ids)
        if self.parent is not None:
            self.parent.children.append(self)

    def prompt(self) -> np.ndarray:
        """int32, all ids that stood before the reply."""
        parts, call = [self.appended], self.parent
        while call is not None:
            parts += [call.token_ids, call.appended]
            call = call.parent
        return np.concatenate(parts[::-1])

    def context(self) -> np.ndarray:
        """int32, the prompt and the reply."""
        return np.concatenate([self.prompt(), self.token_ids])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a recorded trajectory ended.

    Attributes:
        reward: Reward of the trajectory beside those of its calls; it counts for its last turn.
        success: Whether the task was solved; None where there is no such thing.
        truncated_by: What cut it short; None where it ended by itself.
        reward_parts: What the return is made of; None where nothing says so.
        last_observation: What was seen after the last reply.
    """

    reward: float = 0.0
    success: bool | None = None
    truncated_by: TruncatedBy | None = None
    reward_parts: Mapping[str, float] | None = None
    last_observation: str = ""


def linked_calls(rows: Sequence[Any], place: str) -> list[RecordedCall]:
    """The calls of a trajectory, each with the one it goes on from.

    Args:
        rows: What was recorded of each, in the order of the calls.
        place: Where.

    Raises:
        RecordError: One of them is wrong.
    """
    calls: list[RecordedCall] = []
    for number, row in enumerate(rows):
        calls.append(_checked_call(row, calls, f"{place}, call {number}"))
    return calls


def episode_of_calls(
    calls: Sequence[RecordedCall], outcome: Outcome, member: GroupMember, *, group: str = "", trajectory: int = 0
) -> SingleAgentEpisode:
    """A finished trajectory, one importance ratio for all of its segments.

    Args:
        calls: At least one.
        outcome: How it ended.
        member: Which trajectory of which group it is.
        group: Where that was read.
        trajectory: Which of it this one was there.
    """
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    ordered = list(in_segments(calls))
    seen = [*(call.observation for call, _ in ordered), outcome.last_observation]
    episode = SingleAgentEpisode(id_=f"{member.group_id}/{member.index}")
    episode.custom_data[GROUP] = member
    episode.custom_data[ORIGIN] = Origin(group, trajectory, tuple(call.number for call, _ in ordered))
    if outcome.truncated_by is not None:
        episode.custom_data[TRUNCATED_BY] = outcome.truncated_by
    info: dict[str, Any] = {} if outcome.success is None else {"success": outcome.success}
    if outcome.reward_parts is not None:
        info[REWARD_PARTS] = dict(outcome.reward_parts)
    episode.add_env_reset(observation=seen[0], infos={})
    for place, (call, starts_context) in enumerate(ordered):
        is_last = place == len(ordered) - 1
        episode.add_env_step(
            observation=seen[place + 1],
            action=call.text,
            reward=call.reward + (outcome.reward if is_last else 0.0),
            infos=info if is_last else {},
            terminated=is_last and outcome.truncated_by is None,
            truncated=is_last and outcome.truncated_by is not None,
            extra_model_outputs={TURN: _turn(call, starts_context=starts_context, is_first=place == 0)},
        )
    return episode


def _turn(call: RecordedCall, *, starts_context: bool, is_first: bool) -> Turn:
    logp: Any = call.logp  # None is what ``train_on`` refuses or, with behavior="unknown", fills in
    return Turn(
        prompt_token_ids=call.prompt() if starts_context else call.appended,
        action_token_ids=call.token_ids,
        action_logp=logp,
        policy_version=call.version,
        finish_reason=call.finish_reason,
        starts_segment=starts_context and not is_first,
        is_summary=call.is_summary,
        token_versions=call.token_versions,
    )


def _checked_call(row: Any, earlier: Sequence[RecordedCall], place: str) -> RecordedCall:
    checked_fields(row, CALL_FIELDS, place)
    token_ids = checked_ids(row.get("sampled_ids"), f"{place}: sampled_ids")
    if not len(token_ids):
        raise RecordError(f"{place}: sampled_ids is empty; a call needs at least one sampled id.")
    logp = None
    if row.get("logprobs") is not None:
        logp = checked_logprobs(row["logprobs"], len(token_ids), f"{place}: logprobs")
    if logp is not None and row.get("version") is None:
        raise RecordError(
            f"{place} has logprobs and no version; say which weights version sampled it (0 for the first)."
        )
    version, token_versions = checked_version(
        0 if row.get("version") is None else row["version"], len(token_ids), f"{place}: version"
    )
    appended, parent = _placed(row, earlier, place)
    return RecordedCall(
        len(earlier),
        parent,
        appended,
        token_ids,
        logp,
        version,
        token_versions,
        checked_choice(row.get("finish_reason", "stop"), get_args(FinishReason), f"{place}: finish_reason"),
        checked_number(row.get("reward", 0.0), f"{place}: reward"),
        checked_text(row.get("observation", ""), f"{place}: observation"),
        checked_text(row.get("text", ""), f"{place}: text"),
        checked_choice(row.get("is_summary", False), (False, True), f"{place}: is_summary"),
    )


def _placed(
    row: Mapping[str, Any], earlier: Sequence[RecordedCall], place: str
) -> tuple[np.ndarray, RecordedCall | None]:
    """What a call appends, and to which call's context."""
    if ("prompt_ids" in row) == ("appended_ids" in row):
        raise RecordError(
            f"{place} must have either prompt_ids, all ids that stood before the reply, or appended_ids, those since "
            "the context of call `after`."
        )
    after = row.get("after")
    if after is not None and (not is_whole(after) or not 0 <= after < len(earlier)):
        allowed = f"0 to {len(earlier) - 1}" if earlier else "only null for the first call"
        raise RecordError(f"{place}: after is {shown(after)}; it must be the number of an earlier call ({allowed}).")
    parent = None if after is None else earlier[after]
    if "appended_ids" in row:
        if parent is None:
            raise RecordError(f"{place} has appended_ids and does not say after which call; set `after`.")
        return checked_ids(row["appended_ids"], f"{place}: appended_ids"), parent
    prompt = checked_ids(row["prompt_ids"], f"{place}: prompt_ids")
    if not len(prompt):
        raise RecordError(f"{place}: prompt_ids is empty; a context begins with a prompt.")
    if parent is None and "after" not in row:
        parent = _longest_beginning(prompt, earlier)
    elif parent is not None and not _begins_with(prompt, parent):
        raise RecordError(
            f"{place}: prompt_ids do not begin with the prompt and the reply of call {after}, which it is said to go "
            "on from. Without `after` that call is looked for; null stands for a context of its own."
        )
    return prompt[parent.end if parent else 0 :], parent


def _longest_beginning(prompt: np.ndarray, earlier: Sequence[RecordedCall]) -> RecordedCall | None:
    """The call with the longest context that a prompt begins with; among equal ones one that nothing goes on from."""
    candidates = (call for call in earlier if call.end <= len(prompt))
    ordered = sorted(candidates, key=lambda call: (-call.end, len(call.children), call.number))
    return next((call for call in ordered if _begins_with(prompt, call)), None)


def _begins_with(prompt: np.ndarray, call: RecordedCall) -> bool:
    # The reply first: it is at hand, and tells almost all prompts apart.
    return np.array_equal(prompt[call.end - len(call.token_ids) : call.end], call.token_ids) and np.array_equal(
        prompt[: call.end], call.context()
    )

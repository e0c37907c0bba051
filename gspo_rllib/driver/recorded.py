"""Groups that were made elsewhere: checked as a whole, then handed out once in place of sampled ones."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, get_args

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from gspo_rllib import metrics as names
from gspo_rllib.agents.record_fields import is_whole
from gspo_rllib.connectors.episodes_to_tokens import token_trajectory
from gspo_rllib.driver.protocol import GroupSource
from gspo_rllib.errors import RecordError, described, did_you_mean, shown
from gspo_rllib.types import (
    GROUP,
    ORIGIN,
    REWARD_PARTS,
    TURN,
    FinishReason,
    GroupMember,
    Origin,
    TokenTrajectory,
    TrajectoryGroup,
    Turn,
    turn_rewards,
    turns,
)
from gspo_rllib.weight_sync import Weights

Behavior = Literal["recorded", "unknown"]
"""Where the denominator of the importance ratio comes from: log-probabilities in the record, or, for trajectories
without them, the learner as it is before the update."""


class RecordedGroups:
    """A ``GroupSource`` that hands out given groups once, while another one's sampling stays as it is.

    Args:
        groups: Checked groups.
        source: Whose groups in flight, engines and weights these are.
        num_unknown: Trajectories whose log-probabilities are the learner's own.
    """

    def __init__(self, groups: Sequence[TrajectoryGroup], source: GroupSource, *, num_unknown: int = 0) -> None:
        self._groups = list(groups)
        self._source = source
        self._num_unknown = num_unknown

    @property
    def unfinished(self) -> list[str]:
        """See ``GroupSource.unfinished``."""
        return self._source.unfinished

    def start(self, weights: Weights) -> None:
        """See ``GroupSource.start``."""
        self._source.start(weights)

    def take(self, count: int) -> tuple[list[TrajectoryGroup], list[Any]]:
        """All the groups, however many are asked for; none the next time."""
        groups, self._groups = self._groups, []
        return groups, []

    def advance(self, weights: Weights) -> None:
        """See ``GroupSource.overtake``."""
        self._source.overtake(weights)

    def overtake(self, weights: Weights) -> None:
        """See ``GroupSource.overtake``."""
        self._source.overtake(weights)

    def readmit(self) -> None:
        """See ``GroupSource.readmit``."""
        self._source.readmit()

    def paused(self) -> AbstractContextManager[None]:
        """See ``GroupSource.paused``."""
        return self._source.paused()

    def stop(self) -> list[str]:
        """See ``GroupSource.stop``."""
        return self._source.stop()

    def measure(self) -> dict[str, float]:
        """See ``GroupSource.measure``; and how many trajectories' behaviour is unknown."""
        return {**self._source.measure(), names.NUM_TRAJECTORIES_BEHAVIOR_UNKNOWN: self._num_unknown}


def check_recorded(
    groups: Sequence[TrajectoryGroup],
    *,
    version: int,
    vocab_size: int | None,
    longest: int | None = None,
    smallest: int = 2,
    reward_parts: Collection[str] = (),
    behavior: Behavior = "recorded",
) -> None:
    """Refuses groups that cannot be trained on, before anything is changed.

    Args:
        groups: What was given.
        version: The learner's weights version; no token may be newer.
        vocab_size: Ids lie below it; None where the model does not say.
        longest: Most tokens of a context; None where the model does not say.
        smallest: Fewest trajectories of a group.
        reward_parts: Names that ``info["reward_parts"]`` of every trajectory must hold.
        behavior: ``"unknown"`` allows turns without log-probabilities.

    Raises:
        RecordError: One of them is wrong; says which, where, what was got and what is allowed.
    """
    if behavior not in get_args(Behavior):
        raise RecordError(f"behavior={behavior!r} is unknown. {did_you_mean(str(behavior), get_args(Behavior))}")
    if not isinstance(groups, Sequence) or isinstance(groups, str | bytes):
        raise RecordError(f"groups is {shown(groups)}; it must be a list of TrajectoryGroup.")
    if not groups:
        raise RecordError("groups is empty; there must be at least one TrajectoryGroup.")
    seen: set[str] = set()
    for number, group in enumerate(groups):
        if not isinstance(group, TrajectoryGroup):
            raise RecordError(f"groups[{number}] is {shown(group)}; it must be a TrajectoryGroup.")
        if not isinstance(group.group_id, str):
            raise RecordError(f"groups[{number}]: group_id is {shown(group.group_id)}; it must be a text.")
        if not isinstance(group.episodes, list | tuple):
            raise RecordError(f"groups[{number}]: episodes is {shown(group.episodes)}; it must be a list.")
        origins = [_origin(episode) for episode in group.episodes]
        first = next((origin.group for origin in origins if origin), f"groups[{number}]")
        place = f"{first} ({group.group_id!r})"
        places = [
            f"{place}, trajectory {origin.trajectory}" if origin else f"{place}, episode {k}"
            for k, origin in enumerate(origins)
        ]
        if group.group_id in seen:
            raise RecordError(f"{place}: another group has the same group_id; each must have its own.")
        seen.add(group.group_id)
        if len(group.episodes) < smallest:
            raise RecordError(
                f"{place} has {len(group.episodes)} trajectories; a group needs at least {smallest}, since an "
                "advantage is the difference to the others of the group."
            )
        members = [_checked_member(e, group, where) for e, where in zip(group.episodes, places, strict=True)]
        if len(set(members)) < len(members):
            raise RecordError(f"{place}: indices {members} of its members; each must have its own.")
        for episode, where in zip(group.episodes, places, strict=True):
            _check_episode(episode, where, version, vocab_size, behavior)
            _check_lengths(episode, where, longest)
            _check_parts(episode, where, reward_parts)


def with_own_behavior(
    groups: Sequence[TrajectoryGroup],
    *,
    version: int,
    score: Callable[[list[TokenTrajectory]], list[np.ndarray]],
) -> tuple[list[TrajectoryGroup], int]:
    """Groups in which trajectories without log-probabilities have the learner's; the given ones stay as they are.

    Args:
        groups: Checked groups.
        version: The learner's weights version.
        score: Trajectories -> float32 [L] each, the learner's log-probabilities (nats) of their sampled ids.

    Returns:
        The groups, and the number of such trajectories.
    """
    unknown = [
        episode for group in groups for episode in group.episodes if any(not has_logp(turn) for turn in turns(episode))
    ]
    if not unknown:
        return list(groups), 0
    zeros = [_with_logp(e, np.zeros(sum(len(t.action_token_ids) for t in turns(e)), np.float32), 0) for e in unknown]
    scored = score([token_trajectory(episode) for episode in zeros])
    known = {id(episode): _with_logp(episode, logp, version) for episode, logp in zip(unknown, scored, strict=True)}
    filled = [
        dataclasses.replace(g, episodes=[known.get(id(episode), episode) for episode in g.episodes]) for g in groups
    ]
    return filled, len(unknown)


def has_logp(turn: Turn) -> bool:
    """Whether a turn has log-probabilities: it has none where they are None, or NaN every one."""
    if turn.action_logp is None:
        return False
    logp = np.asarray(turn.action_logp, dtype=np.float64)
    return not (logp.size and np.isnan(logp).all())


def _origin(episode: Any) -> Origin | None:
    return episode.custom_data.get(ORIGIN) if isinstance(episode, SingleAgentEpisode) else None


def _turn_place(episode: SingleAgentEpisode, place: str, number: int) -> str:
    origin = _origin(episode)
    return f"{place}, turn {number}" if origin is None else f"{place}, call {origin.calls[number]}"


def _checked_member(episode: Any, group: TrajectoryGroup, place: str) -> int:
    if not isinstance(episode, SingleAgentEpisode):
        raise RecordError(f"{place} is {shown(episode)}; it must be a SingleAgentEpisode.")
    member = episode.custom_data.get(GROUP)
    if not isinstance(member, GroupMember) or member.group_id != group.group_id:
        raise RecordError(
            f"{place}: custom_data[{GROUP!r}] is {shown(member)}; it must be a GroupMember with group_id="
            f"{group.group_id!r}."
        )
    if not is_whole(member.index) or member.index < 0:
        raise RecordError(f"{place}: its index is {shown(member.index)}; it must be a whole number from 0.")
    return member.index


def _check_episode(
    episode: SingleAgentEpisode, place: str, version: int, vocab_size: int | None, behavior: Behavior
) -> None:
    if not len(episode):
        raise RecordError(f"{place} has no turns; it needs at least one.")
    if not episode.is_done:
        raise RecordError(f"{place} is unfinished; its last step must be terminated or truncated.")
    recorded = episode.get_extra_model_outputs(TURN) if TURN in episode.extra_model_outputs else []
    if len(recorded) != len(episode):
        raise RecordError(f"{place} has {len(episode)} steps and {len(recorded)} turns; each step must have its Turn.")
    for number, turn in enumerate(recorded):
        _check_turn(turn, _turn_place(episode, place, number), version, vocab_size, behavior, opens=number == 0)
    try:
        rewards = turn_rewards(episode)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{place}: its rewards are no numbers: {described(error)}.") from error
    if not np.isfinite(rewards).all():
        raise RecordError(f"{place}: rewards {shown(rewards.tolist())}; every one must be finite.")


def _check_lengths(episode: SingleAgentEpisode, place: str, longest: int | None) -> None:
    """Refuses a context that the model was not made for: the learner would fail, or learn from nonsense."""
    length = 0
    for number, turn in enumerate(turns(episode)):
        length = (0 if turn.starts_segment else length) + len(turn.prompt_token_ids) + len(turn.action_token_ids)
        if longest is not None and length > longest:
            raise RecordError(
                f"{_turn_place(episode, place, number)}: its context has {length} tokens, and the model was made for "
                f"at most {longest} (max_position_embeddings)."
            )


def _check_parts(episode: SingleAgentEpisode, place: str, names: Collection[str]) -> None:
    held = {name for info in episode.get_infos() for name in info.get(REWARD_PARTS, {})}
    for name in names:
        if name not in held:
            raise RecordError(
                f"{place} has no reward part {name!r} (but {', '.join(map(repr, sorted(held))) or 'none'}), and "
                "training.reward_part_weights names it."
            )


def _check_turn(
    turn: Any, place: str, version: int, vocab_size: int | None, behavior: Behavior, *, opens: bool
) -> None:
    if not isinstance(turn, Turn):
        raise RecordError(f"{place} is {shown(turn)}; it must be a gspo_rllib.types.Turn.")
    for name in ("prompt_token_ids", "action_token_ids"):
        _check_ids(_array(getattr(turn, name), f"{place}: {name}"), f"{place}: {name}", vocab_size)
    if not len(turn.action_token_ids):
        raise RecordError(f"{place}: action_token_ids is empty; a turn needs at least one sampled id.")
    if not len(turn.prompt_token_ids) and (opens or turn.starts_segment):
        raise RecordError(f"{place}: prompt_token_ids is empty; a context begins with a prompt.")
    if turn.finish_reason not in get_args(FinishReason):
        allowed = ", ".join(map(repr, get_args(FinishReason)))
        raise RecordError(f"{place}: finish_reason is {shown(turn.finish_reason)}; allowed: {allowed}.")
    length = len(turn.action_token_ids)
    _check_versions(turn, place, version, length)
    logp = _array(turn.action_logp, f"{place}: action_logp")
    if turn.action_logp is not None and logp.dtype.kind not in "fiu":
        raise RecordError(f"{place}: action_logp is {shown(turn.action_logp)}; it must be a list of numbers (nats).")
    if not has_logp(turn):
        if behavior != "unknown":
            raise RecordError(
                f"{place} has no log-probabilities (action_logp is None or NaN). Record them where the text is "
                'sampled, or pass behavior="unknown": the learner\'s own then stand for them, and the ratio starts at '
                "1 whatever wrote the text."
            )
        return
    if logp.shape != (length,):
        raise RecordError(
            f"{place}: {length} action_token_ids and action_logp of shape {logp.shape}; there must be one "
            "log-probability for each id."
        )
    if not np.isfinite(logp).all() or (logp > 0).any():
        wrong = next(float(value) for value in logp if not math.isfinite(value) or value > 0)
        raise RecordError(f"{place}: action_logp holds {wrong}; each must be finite and at most 0 (nats).")


def _check_ids(ids: np.ndarray, place: str, vocab_size: int | None) -> None:
    if ids.ndim != 1 or (len(ids) and not np.issubdtype(ids.dtype, np.integer)):
        raise RecordError(f"{place} has shape {ids.shape} and dtype {ids.dtype}; it must be a list of whole numbers.")
    outside = ids[(ids < 0) | (ids >= (vocab_size if vocab_size is not None else np.iinfo(np.int32).max))]
    if len(outside):
        most = "" if vocab_size is None else f" to {vocab_size - 1}"
        raise RecordError(f"{place} holds {int(outside[0])}, which is no id of the model's vocabulary (0{most}).")


def _check_versions(turn: Turn, place: str, version: int, length: int) -> None:
    versions = _array([turn.policy_version], f"{place}: policy_version")
    if turn.token_versions is not None:
        versions = _array(turn.token_versions, f"{place}: token_versions")
        if versions.shape != (length,):
            raise RecordError(
                f"{place}: {length} action_token_ids and {versions.size} token_versions; there must be one "
                "for each id, or None."
            )
    if (
        versions.dtype.kind not in "iu"
        or not is_whole(turn.policy_version)
        or min(int(versions.min()), turn.policy_version) < 0
    ):
        raise RecordError(
            f"{place}: policy_version is {shown(turn.policy_version)} and token_versions {shown(turn.token_versions)}; "
            "versions are whole numbers from 0."
        )
    newest = max(int(versions.max()), turn.policy_version)
    if newest > version:
        raise RecordError(
            f"{place} was sampled with weights version {newest}, but the learner's is {version}. Restore "
            "the checkpoint it was recorded from, or give it the version of the weights it should count as."
        )


def _array(value: Any, place: str) -> np.ndarray:
    """What was given as an array; lists of lists of different lengths are none."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"{place} is {shown(value)}; it must be a list of numbers.") from error


def _with_logp(episode: SingleAgentEpisode, logp: np.ndarray, version: int) -> SingleAgentEpisode:
    """A copy of an episode whose sampled ids have these log-probabilities, under this version."""
    filled, place = [], 0
    for turn in turns(episode):
        end = place + len(turn.action_token_ids)
        filled.append(
            Turn(
                turn.prompt_token_ids, turn.action_token_ids, logp[place:end], version, turn.finish_reason,
                starts_segment=turn.starts_segment, is_summary=turn.is_summary,
            )
        )  # fmt: skip
        place = end
    known = copy.deepcopy(episode)
    known.extra_model_outputs[TURN] = InfiniteLookbackBuffer(filled)
    return known

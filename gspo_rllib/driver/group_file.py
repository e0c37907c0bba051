"""Groups in a file: one JSON object on each line, read one by one, and written so that they are read as they were.

The format is described in docs/agents.md. Ids are exact, and log-probabilities to the last bit of their float32.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from gspo_rllib.agents.record_fields import (
    checked_choice,
    checked_fields,
    checked_list,
    checked_number,
    checked_text,
    is_whole,
)
from gspo_rllib.agents.recorded_calls import Outcome, RecordedCall, episode_of_calls, linked_calls
from gspo_rllib.agents.recorded_messages import calls_of_conversations
from gspo_rllib.agents.rendering import MessageRenderer
from gspo_rllib.driver.recorded import check_recorded, has_logp
from gspo_rllib.env_runners.engine_spec import load_message_renderer
from gspo_rllib.env_runners.settings import GenerationSettings
from gspo_rllib.errors import RecordError, repeated, shown
from gspo_rllib.places import written_whole
from gspo_rllib.types import (
    GROUP,
    REWARD_PARTS,
    TASK,
    TRUNCATED_BY,
    GroupMember,
    TrajectoryGroup,
    TruncatedBy,
    Turn,
    turns,
)

GROUP_FIELDS = ("group_id", "trajectories", "task", "task_seed")
"""What a recorded group may hold."""

TRAJECTORY_FIELDS = (
    "calls", "conversations", "index", "reward", "success", "truncated_by", "reward_parts", "last_observation",
)  # fmt: skip
"""What a recorded trajectory may hold."""

_NEWEST = 2**31 - 1


class _Renderer:
    """The renderer of a run's model, made when the first messages need it."""

    def __init__(self, config: AlgorithmConfig | None) -> None:
        self._config = config
        self._made: MessageRenderer | None = None

    def of(self, place: str) -> MessageRenderer:
        if self._config is None:
            raise RecordError(
                f"{place} holds messages, which only the run's model has ids for: load_groups(..., config)."
            )
        if self._made is None:
            self._made = load_message_renderer(self._config.settings(GenerationSettings), self._config.model_config)
        return self._made


def load_groups(
    source: str | os.PathLike[str] | Iterable[Mapping[str, Any]], config: AlgorithmConfig | None = None
) -> Iterator[TrajectoryGroup]:
    """Groups to train on, one after the other; each is read and checked when it is asked for.

    ``algo.train_on(load_groups("groups.jsonl"))`` trains on all of them, or on none where one is wrong.

    Args:
        source: A JSONL file with a group on each line, or such objects.
        config: The run's config, for trajectories that are given as messages: its model's tokenizer and chat template
            write their ids.

    Raises:
        RecordError: There is no such file (at once), or a group is wrong (when it is reached); says where, what was
            got and what is allowed.

    Example:
        >>> call = {"prompt_ids": [1, 4], "sampled_ids": [6, 3], "logprobs": [-1.5, -0.25], "version": 0}
        >>> won, lost = {"calls": [call], "reward": 1}, {"calls": [call], "reward": 0}
        >>> list(load_groups([{"group_id": "a", "trajectories": [won, lost]}]))
        [TrajectoryGroup(group_id='a')]
        >>> list(load_groups([{"group_id": "a", "trajectories": [won, {"calls": [call]}]}]))
        Traceback (most recent call last):
        gspo_rllib.errors.RecordError: entry 0, trajectory 1 has no reward; give one of the trajectory, or of its calls.
    """
    if not isinstance(source, str | os.PathLike):
        if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
            raise RecordError(
                f"load_groups: got {shown(source)}; it must be a JSONL file or objects, one for each group."
            )
        return _groups(((f"entry {number}", row) for number, row in enumerate(source)), config, "the list")
    path = Path(source).expanduser()
    if not path.is_file():
        raise RecordError(f"{str(path)!r}: no such file; it must be a JSONL file with a group on each line.")
    return _groups(_lines(path), config, str(path))


def save_groups(path: str | os.PathLike[str], groups: Iterable[TrajectoryGroup], *, append: bool = False) -> None:
    """Writes groups as ``load_groups`` reads them; all of them or, where one cannot be written, none.

    Args:
        path: A JSONL file; what it held is replaced.
        groups: Complete groups, such as ``gspo_rllib.types.group_episodes`` makes of sampled episodes.
        append: Add them to what the file holds.

    Raises:
        RecordError: One of them is no complete group, or holds what JSON cannot.
        OSError: The file cannot be written; it holds what it held.
    """
    path = Path(path).expanduser()
    lines = [f"{line}\n" for line in group_lines(list(groups))]
    if append:
        _append(path, "".join(lines).encode("ascii"))
        return
    with written_whole(path) as new, new.open("w", encoding="ascii") as file:
        file.writelines(lines)


def _append(path: Path, content: bytes) -> None:
    """Adds to a file all of it or nothing."""
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(size)
            raise


def drop_groups(path: str | os.PathLike[str], dropped: Callable[[str], bool]) -> None:
    """Takes groups out of a file, and lines that are none: one that was being written when its process ended.

    Args:
        path: As for ``save_groups``; it need not be there.
        dropped: Whether the group of a name is taken out.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        return
    with written_whole(path) as new, path.open("rb") as file, new.open("wb") as kept:
        for line in file:
            name = _name(line)
            if name is not None and not dropped(name):
                kept.write(line)


def _name(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["group_id"]) if line.endswith(b"\n") else None
    except (ValueError, TypeError, LookupError):
        return None


def group_lines(groups: Sequence[TrajectoryGroup]) -> list[str]:
    """Groups as the lines of such a file, without their ends.

    Args:
        groups: Complete groups, at least one.

    Raises:
        RecordError: One of them is no complete group, or holds what JSON cannot.
    """
    check_recorded(groups, version=_NEWEST, vocab_size=None, smallest=1, behavior="unknown")
    return [_line(group) for group in groups]


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and object of each line."""
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    place = f"{path}, line {number}"
                    yield place, json.loads(line, object_pairs_hook=partial(_without_doubles, place))
    except RecordError:
        raise
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}, line {number + 1} or after: not UTF-8 text: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}, line {number}: not JSON: {str(error)[:200]}.") from error


def _without_doubles(place: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        double = next(iter(repeated(name for name, _ in pairs)))
        raise RecordError(f"{place}: {shown(double)} is there twice in one object; leave out one.")
    return row


def _groups(rows: Iterable[tuple[str, Any]], config: AlgorithmConfig | None, whole: str) -> Iterator[TrajectoryGroup]:
    renderer = _Renderer(config)
    places: dict[str, str] = {}
    for place, row in rows:
        group = _group(row, renderer, place)
        if group.group_id in places:
            raise RecordError(
                f"{place}: group_id {group.group_id!r} is that of {places[group.group_id]} too; each must have its own."
            )
        places[group.group_id] = place
        yield group
    if not places:
        raise RecordError(f"{whole} is empty; there must be at least one group.")


def _group(row: Any, renderer: _Renderer, place: str) -> TrajectoryGroup:
    checked_fields(row, GROUP_FIELDS, place)
    group_id = _checked_id(row.get("group_id"), place)
    seed = row.get("task_seed", 0)
    if not is_whole(seed):
        raise RecordError(f"{place}: task_seed is {shown(seed)}; it must be a whole number.")
    trajectories = checked_list(row.get("trajectories"), "trajectory", f"{place}: trajectories")
    episodes: dict[int, SingleAgentEpisode] = {}
    for number, trajectory in enumerate(trajectories):
        where = f"{place}, trajectory {number}"
        checked_fields(trajectory, TRAJECTORY_FIELDS, where)
        index = trajectory.get("index", number)
        if not is_whole(index) or index < 0 or index in episodes:
            raise RecordError(f"{where}: index is {shown(index)}; it must be a number from 0 that no other has.")
        calls, outcome = _played(trajectory, renderer, where)
        member = GroupMember(group_id, index, seed)
        episodes[index] = episode_of_calls(calls, outcome, member, group=place, trajectory=number)
        if "task" in row:
            episodes[index].custom_data[TASK] = row["task"]
    return TrajectoryGroup(group_id, [episodes[index] for index in sorted(episodes)])


def _checked_id(group_id: Any, place: str) -> str:
    if not isinstance(group_id, str) or not group_id:
        raise RecordError(f"{place}: group_id is {shown(group_id)}; it must be a text that names the group.")
    return group_id


def _played(row: Mapping[str, Any], renderer: _Renderer, place: str) -> tuple[list[RecordedCall], Outcome]:
    """The calls of a trajectory, and how it ended."""
    if ("calls" in row) == ("conversations" in row):
        raise RecordError(f"{place} must have either calls, with ids, or conversations, with messages.")
    if "calls" in row:
        rows = checked_list(row["calls"], "call", f"{place}: calls")
    else:
        conversations = checked_list(row["conversations"], "conversation", f"{place}: conversations")
        rows = calls_of_conversations(conversations, renderer.of(place), place)
    calls = linked_calls(rows, place)
    if "reward" not in row and not any("reward" in call for call in rows):
        raise RecordError(f"{place} has no reward; give one of the trajectory, or of its calls.")
    return calls, _outcome(row, place)


def _outcome(row: Mapping[str, Any], place: str) -> Outcome:
    parts = row.get("reward_parts")
    if parts is not None:
        if not isinstance(parts, Mapping):
            raise RecordError(f"{place}: reward_parts is {shown(parts)}; it must be an object of names and numbers.")
        parts = {str(name): checked_number(part, f"{place}: reward_parts[{name!r}]") for name, part in parts.items()}
    return Outcome(
        checked_number(row.get("reward", 0.0), f"{place}: reward"),
        checked_choice(row.get("success"), (True, False, None), f"{place}: success"),
        checked_choice(row.get("truncated_by"), (*get_args(TruncatedBy), None), f"{place}: truncated_by"),
        parts,
        checked_text(row.get("last_observation", ""), f"{place}: last_observation"),
    )


def _line(group: TrajectoryGroup) -> str:
    """A group as one line of JSON."""
    place = f"group {group.group_id!r}"
    _checked_id(group.group_id, place)
    members = [episode.custom_data[GROUP] for episode in group.episodes]
    row: dict[str, Any] = {"group_id": group.group_id}
    seeds = {member.task_seed for member in members}
    if len(seeds) > 1:
        raise RecordError(f"{place}: its trajectories have the task seeds {sorted(seeds)}; a group has one task.")
    row["task_seed"] = int(seeds.pop())
    task = group.episodes[0].custom_data.get(TASK)
    if task is not None:
        row["task"] = task
    row["trajectories"] = [
        _trajectory_row(episode, number, f"{place}, trajectory {number}")
        for number, episode in enumerate(group.episodes)
    ]
    try:
        return json.dumps(row, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise RecordError(f"{place} cannot be written as JSON: {str(error)[:200]}.") from error


def _trajectory_row(episode: SingleAgentEpisode, number: int, place: str) -> dict[str, Any]:
    index, truncated_by = episode.custom_data[GROUP].index, episode.custom_data.get(TRUNCATED_BY)
    if episode.is_truncated and truncated_by is None:
        raise RecordError(f"{place} is truncated, but custom_data[{TRUNCATED_BY!r}] does not say by what.")
    row: dict[str, Any] = {} if index == number else {"index": index}
    info = episode.get_infos(-1)
    if info.get("success") is not None:
        row["success"] = bool(info["success"])
    if truncated_by is not None:
        row["truncated_by"] = truncated_by
    parts: dict[str, float] = {}
    for name, part in [item for one in episode.get_infos() for item in one.get(REWARD_PARTS, {}).items()]:
        parts[name] = parts.get(name, 0.0) + float(part)
    if parts:
        row["reward_parts"] = parts
    observations, texts, rewards = episode.get_observations(), episode.get_actions(), episode.get_rewards()
    for text in [*observations, *texts]:
        checked_text(text, f"{place}: an observation or action")
    row["calls"] = [
        {
            **_turn_row(turn, n, f"{place}, turn {n}"),
            "reward": float(rewards[n]),
            "observation": observations[n],
            "text": texts[n],
        }
        for n, turn in enumerate(turns(episode))
    ]
    if observations[-1]:
        row["last_observation"] = observations[-1]
    return row


def _turn_row(turn: Turn, number: int, place: str) -> dict[str, Any]:
    """A turn as a call; not what was said and rewarded."""
    starts = number == 0 or turn.starts_segment
    row: dict[str, Any] = {
        "after": None if starts else number - 1,
        "prompt_ids" if starts else "appended_ids": np.asarray(turn.prompt_token_ids).tolist(),
        "sampled_ids": np.asarray(turn.action_token_ids).tolist(),
    }
    if has_logp(turn):
        # Nine digits tell every float32 from its neighbours, also by way of a double.
        row["logprobs"] = [float(f"{value:.9g}") for value in np.asarray(turn.action_logp, np.float32).tolist()]
    row["version"] = int(turn.policy_version)
    if turn.token_versions is not None:
        row["version"] = np.asarray(turn.token_versions).tolist()
        if min(row["version"]) != turn.policy_version:
            raise RecordError(
                f"{place}: policy_version is {turn.policy_version}; it must be the oldest of its token_versions, "
                f"{min(row['version'])}."
            )
    row["finish_reason"] = turn.finish_reason
    if turn.is_summary:
        row["is_summary"] = True
    return row

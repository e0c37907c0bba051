"""Recorded groups (``groups.jsonl``) as rows of trajectories."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gspo_rllib.agents.recorded_calls import linked_calls
from gspo_rllib.agents.stitching import in_segments
from gspo_rllib.errors import GSPOError, RecordError, shown
from gspo_rllib.trajectory_table import Row


def read_recorded(file: Path) -> list[Row]:
    """The trajectories of a JSONL file with a group on each line; of what was given as messages, the text.

    Args:
        file: What ``save_groups`` writes, or what ``load_groups`` reads.

    Raises:
        RecordError: A line is no such group; says which.
    """
    rows: list[Row] = []
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows += _rows(_object(line, f"{file}, line {number}"), f"{file}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{str(file)!r} cannot be read: {error}.") from error
    if not rows:
        raise RecordError(f"{str(file)!r} holds no group; each line must be one.")
    return rows


def _object(line: str, place: str) -> Mapping[str, Any]:
    try:
        group = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{place}: not JSON: {str(error)[:200]}.") from error
    if not isinstance(group, Mapping) or not isinstance(group.get("trajectories"), list):
        raise RecordError(f"{place}: {shown(group)} is no group; it must be an object with trajectories.")
    return group


def _rows(group: Mapping[str, Any], place: str) -> Iterator[Row]:
    for number, trajectory in enumerate(group["trajectories"]):
        where = f"{place}, trajectory {number}"
        try:
            played = list(_turns(trajectory, where))
            seed, index = int(group.get("task_seed", 0)), int(trajectory.get("index", number))
            rest = float(trajectory.get("reward", 0.0))
        except GSPOError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RecordError(f"{where} is no recorded trajectory: {shown(str(error))}.") from error
        if not played:
            raise RecordError(f"{where} has no calls.")
        played[-1]["reward"] += rest
        yield {
            "iteration": 0,
            "group_id": str(group.get("group_id", "")),
            "index": index,
            "task_seed": seed,
            "return": sum(turn["reward"] for turn in played),
            "success": _success(trajectory),
            "truncated_by": trajectory.get("truncated_by"),
            "trained": None,
            "last_observation": str(trajectory.get("last_observation", "")),
            "turns": played,
        }


def _success(trajectory: Mapping[str, Any]) -> bool | None:
    """As in training: what was cut short without saying so has failed."""
    said = trajectory.get("success", False if trajectory.get("truncated_by") else None)
    return None if said is None else bool(said)


def _turns(trajectory: Mapping[str, Any], place: str) -> Iterator[dict[str, Any]]:
    if "conversations" in trajectory:
        yield from _said(trajectory["conversations"])
        return
    for turn_number, (call, starts) in enumerate(in_segments(linked_calls(trajectory["calls"], place))):
        yield {
            "observation": call.observation,
            "reply": call.text,
            "reward": call.reward,
            "finish_reason": call.finish_reason,
            "version": call.version,
            "token_versions": None if call.token_versions is None else call.token_versions.tolist(),
            "starts_segment": starts and turn_number > 0,
            "is_summary": call.is_summary,
            "prompt_ids": (call.prompt() if starts else call.appended).tolist(),
            "sampled_ids": call.token_ids.tolist(),
            "logp": None if call.logp is None else call.logp.tolist(),
            "updated_logp": None,
            "advantage": None,
        }


def _said(conversations: Any) -> Iterator[dict[str, Any]]:
    """Turns of conversations without ids: a reply, and what was said since the one before it."""
    for number, conversation in enumerate(conversations):
        before: list[str] = []
        first = True
        for message in conversation["messages"]:
            content = message.get("content")
            text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
            if message.get("role") != "assistant":
                before.append(f"[{message.get('role')}] {text}")
                continue
            yield {
                "observation": "\n".join(before),
                "reply": text,
                "reward": float(message.get("reward", 0.0)),
                "finish_reason": str(message.get("finish_reason", "stop")),
                "version": None,
                "token_versions": None,
                "starts_segment": first and number > 0,
                "is_summary": False,
                "prompt_ids": [],
                "sampled_ids": [],
                "logp": None,
                "updated_logp": None,
                "advantage": None,
            }
            before, first = [], False

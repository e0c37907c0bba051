"""Trajectories as rows that anybody can read: one flat row for each, in a Parquet file, with every id and number of it.

A run keeps a few of every iteration (``reporting(keep_trajectories=...)``), and ``gspo-rllib view`` shows them. Rows
are plain dicts; ``schema`` says what is in one. This module imports neither torch nor ray.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gspo_rllib.errors import RecordError, shown
from gspo_rllib.places import written_whole
from gspo_rllib.types import GROUP, TRUNCATED_BY, succeeded, turns

if TYPE_CHECKING:
    import pyarrow
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

FOLDER = "trajectories"
"""Where a run's folder has its files, one for each iteration."""

Row = dict[str, Any]


@functools.cache
def schema() -> pyarrow.Schema:
    """The columns of a file, the turns of a trajectory nested in one of them."""
    import pyarrow as pa

    ids, numbers = pa.list_(pa.int32()), pa.list_(pa.float32())
    turn = [
        ("observation", pa.large_string()),
        ("reply", pa.large_string()),
        ("reward", pa.float64()),
        ("finish_reason", pa.string()),
        ("version", pa.int64()),  # the oldest, where several sampled the reply
        ("token_versions", pa.list_(pa.int64())),  # null where all are that one
        ("starts_segment", pa.bool_()),
        ("is_summary", pa.bool_()),
        ("prompt_ids", ids),  # those that the turn appends to its context
        ("sampled_ids", ids),
        ("logp", numbers),  # nats, where sampled; null where nobody recorded it
        ("updated_logp", numbers),  # nats, after the update that trained on it; null where there was none
        ("advantage", numbers),  # of each sampled id; null where it was not trained or is not known
    ]
    return pa.schema(
        [
            ("iteration", pa.int32()),
            ("group_id", pa.string()),
            ("index", pa.int32()),
            ("task_seed", pa.int64()),
            ("return", pa.float64()),  # the environment's
            ("success", pa.bool_()),  # null where the environment does not say
            ("truncated_by", pa.string()),
            ("trained", pa.bool_()),  # False where selection left it out
            ("last_observation", pa.large_string()),
            ("turns", pa.list_(pa.struct(turn))),
        ]
    )


def row_of(
    episode: SingleAgentEpisode,
    *,
    iteration: int = 0,
    trained: bool = False,
    advantages: np.ndarray | None = None,
    updated_logp: np.ndarray | None = None,
) -> Row:
    """A finished trajectory as a row.

    Args:
        episode: A finished episode whose steps carry a ``Turn``.
        iteration: The training iteration it was sampled for; 0 for none.
        trained: Whether the update trained on it.
        advantages: float32 [L], of each sampled id in order; None where it is not known.
        updated_logp: float32 [L], nats, of each sampled id after the update; None where there was none.
    """
    member, observations, replies = episode.custom_data[GROUP], episode.get_observations(), episode.get_actions()
    played, place = [], 0
    for number, turn in enumerate(turns(episode)):
        end = place + len(turn.action_token_ids)
        logp: Any = turn.action_logp
        played.append(
            {
                "observation": _writable(observations[number]),
                "reply": _writable(replies[number]),
                "reward": float(episode.get_rewards(number)),
                "finish_reason": turn.finish_reason,
                "version": int(turn.policy_version),
                "token_versions": None if turn.token_versions is None else np.asarray(turn.token_versions).tolist(),
                "starts_segment": bool(turn.starts_segment),
                "is_summary": bool(turn.is_summary),
                "prompt_ids": np.asarray(turn.prompt_token_ids).tolist(),
                "sampled_ids": np.asarray(turn.action_token_ids).tolist(),
                "logp": None if logp is None else np.asarray(logp).tolist(),
                "updated_logp": None if updated_logp is None else updated_logp[place:end].tolist(),
                "advantage": None if advantages is None else advantages[place:end].tolist(),
            }
        )
        place = end
    return {
        "iteration": iteration,
        "group_id": member.group_id,
        "index": int(member.index),
        "task_seed": int(member.task_seed),
        "return": float(episode.get_return()),
        "success": succeeded(episode),
        "truncated_by": episode.custom_data.get(TRUNCATED_BY),
        "trained": trained,
        "last_observation": _writable(observations[-1]),
        "turns": played,
    }


def write_table(file: Path, rows: Sequence[Row]) -> None:
    """Writes a file, whole or not at all; one that is there is replaced.

    Args:
        file: Ends in ``.parquet``; its folder is made where it is missing.
        rows: What ``row_of`` returns.

    Raises:
        OSError: There is no room.
    """
    import pyarrow
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as partial:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema()), partial, compression="zstd")


def read_table(file: Path) -> list[Row]:
    """The rows of a file.

    Args:
        file: What ``write_table`` wrote, or a file with the same columns.

    Raises:
        RecordError: It is no such file.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(file)
        missing = [name for name in schema().names if name not in table.column_names]
        if missing:
            raise RecordError(f"{str(file)!r} has no column {missing[0]!r}; it must be a file of kept trajectories.")
        rows: list[Row] = table.select(schema().names).cast(schema()).to_pylist()
    except (OSError, pyarrow.ArrowException, ValueError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{str(file)!r} is no file of kept trajectories: {shown(str(error))}") from error
    return rows


def files_of(run: Path) -> list[Path]:
    """The files of a run, in the order of its iterations."""
    return sorted((run / FOLDER).glob("iteration_*.parquet"))


def file_of(folder: Path, iteration: int) -> Path:
    """The file of an iteration; one that is trained again after a return replaces it."""
    return folder / f"iteration_{iteration:06d}.parquet"


def _writable(text: str) -> str:
    """A text as UTF-8 has it: half a surrogate pair, which it has not, is written as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()

"""What an agent is to do: the rows of a file, or a seed for an agent that makes its own tasks."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gspo_rllib.errors import SettingError, repeated, shown

Task = dict[str, Any]


class Tasks:
    """The tasks of a run.

    Args:
        source: A JSONL file with an object on each line, a list of such objects, or None: the task is its seed then.

    Raises:
        SettingError: There is no such file, it holds no task, or a line is no JSON object.
    """

    def __init__(self, source: str | Sequence[Task] | None) -> None:
        self._rows = None if source is None else _read(source) if isinstance(source, str) else _checked(source)

    @property
    def count(self) -> int | None:
        """How many tasks there are; None where an agent makes its own."""
        return None if self._rows is None else len(self._rows)

    def digest(self) -> str:
        """Changes where one of the tasks does."""
        state = hashlib.blake2b(digest_size=16)
        for row in self._rows or []:
            state.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
        return state.hexdigest()

    def check_plain(self) -> None:
        """Refuses tasks that would reach an agent elsewhere changed, or not at all: they are sent as JSON.

        Raises:
            SettingError: One is no plain JSON, as a tuple, a number as a key, and NaN are not.
        """
        for number, row in enumerate(self._rows or []):
            if not _is_plain(row):
                raise SettingError(
                    f"agent.tasks: task {number} is {shown(row)}, which is no plain JSON; it must be, to be sent to an "
                    "agent elsewhere: text, finite numbers, true, false, null, lists, and objects with names as keys."
                )

    def task(self, seed: int, task_id: str | None = None) -> Task:
        """The task that a seed means, the same for every trajectory of a group; a copy, which the agent may change.

        Args:
            seed: The seed of the group.
            task_id: Number of the row, where the run goes through them in an order of its own.

        Example:
            >>> Tasks([{"question": "1 + 1"}]).task(7)
            {'question': '1 + 1'}
            >>> Tasks(None).task(7)
            {'seed': 7}
        """
        return copy.deepcopy(self._row(seed, task_id))

    def recorded(self, seed: int, task_id: str | None = None) -> Task | None:
        """The task as it is kept with what was played, whatever the agent made of its own copy.

        Returns:
            A copy; None where the task is no plain JSON, since a file of recorded groups would hold another.
        """
        row = self._row(seed, task_id)
        return copy.deepcopy(row) if _is_plain(row) else None

    def _row(self, seed: int, task_id: str | None) -> Task:
        if self._rows is None:
            return {"seed": seed}
        return self._rows[seed % len(self._rows) if task_id is None else int(task_id)]


def _is_plain(row: Task) -> bool:
    """Whether a task comes out of JSON as it went in."""
    try:
        return bool(json.loads(json.dumps(row, allow_nan=False)) == row)
    except (TypeError, ValueError, RecursionError):
        return False


def _read(path: str) -> list[Task]:
    file = Path(path).expanduser()
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no such file"
        raise SettingError(f"agent.tasks={path!r}: {what}; it must be a JSONL file with one task on each line.")
    rows = []
    try:
        # Not splitlines(): text of a task may hold what Python takes for the end of a line, such as U+2028.
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
            if line.strip():
                row = json.loads(line, object_pairs_hook=_without_doubles, parse_constant=_no_number)
                rows.append(_row(row, f"{path!r}, line {number}"))
    except UnicodeDecodeError as error:
        raise SettingError(f"agent.tasks={path!r} is not UTF-8 text: {error}.") from error
    except OSError as error:
        raise SettingError(f"agent.tasks={path!r} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"agent.tasks={path!r}, line {number}: not JSON: {str(error)[:200]}.") from error
    if not rows:
        raise SettingError(f"agent.tasks={path!r} is empty; it must hold one task, a JSON object, on each line.")
    return rows


def _without_doubles(pairs: list[tuple[str, Any]]) -> Task:
    row = dict(pairs)
    if len(row) < len(pairs):
        double = next(iter(repeated(name for name, _ in pairs)))
        raise ValueError(f"{shown(double)} is there twice in one object")
    return row


def _no_number(name: str) -> Any:
    # What writes it here mostly had a missing value, and no answer is equal to NaN.
    raise ValueError(f"{name} is no number of JSON; write null, or leave the field out")


def _checked(rows: Sequence[Task]) -> list[Task]:
    if not rows:
        raise SettingError("agent.tasks is an empty list; it must hold one task, a dict, at least.")
    return [_row(row, f"entry {number}") for number, row in enumerate(rows)]


def _row(row: Any, place: str) -> Task:
    if not isinstance(row, dict):
        raise SettingError(f"agent.tasks={place}: {shown(row)} is no task; it must be an object with named values.")
    return row

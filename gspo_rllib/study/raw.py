"""Raw results of a study: one small JSON file per trial, which the tables and pictures are made from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gspo_rllib.errors import SettingError
from gspo_rllib.places import written_whole
from gspo_rllib.study.design import Trial

Row = dict[str, Any]
"""One iteration's numbers; iteration 0 is the start model's evaluation."""

FOLDER = "raw"

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True, slots=True)
class Result:
    """What a trial measured.

    Attributes:
        cell: Name of its cell.
        objective: Name of its objective.
        seed: The seed it was run with.
        rows: One per iteration, the start first.
    """

    cell: str
    objective: str
    seed: int
    rows: Sequence[Row]

    @property
    def start(self) -> float:
        """Score of the start model."""
        return float(self.rows[0]["score"])

    @property
    def scores(self) -> list[float]:
        """Score after each iteration."""
        return [float(row["score"]) for row in self.rows[1:]]

    def mean(self, key: str) -> float | None:
        """Mean of a number over the iterations that have it; None where none has."""
        values = [row[key] for row in self.rows[1:] if row.get(key) is not None and not math.isnan(row[key])]
        return sum(values) / len(values) if values else None


def write_result(folder: Path, trial: Trial, rows: Sequence[Row], record: Mapping[str, Any]) -> None:
    """Writes a finished trial; the file is there whole or not at all.

    Args:
        folder: The study's.
        trial: What was run.
        rows: What was measured.
        record: Versions and machine, for the reader.
    """
    document = {
        "cell": trial.cell,
        "objective": trial.objective,
        "seed": trial.seed,
        "config": trial.config,
        "settings": trial.settings,
        "start": None if trial.start is None else {"name": trial.start.name, **trial.start.options},
        **record,
    }
    write_rows(_path(folder, trial), rows, trial.digest, **document)


def read_result(folder: Path, trial: Trial) -> Result | None:
    """A finished trial's result; None where it has not been run.

    Raises:
        SettingError: The file is another trial's: the study has changed since, or it is not one of ours.
    """

    def parsed(rows: list[Row]) -> Result:
        result = Result(trial.cell, trial.objective, trial.seed, rows)
        if not result.scores or math.isnan(result.start):
            raise ValueError("no iteration")
        return result

    return read_rows(_path(folder, trial), trial.digest, parsed)


def write_rows(path: Path, rows: Sequence[Row], digest: str, **more: Any) -> None:
    """Writes what was measured; the file is there whole or not at all.

    Args:
        path: The file, in a folder that need not be there yet.
        rows: What was measured.
        digest: Digest of all that the rows depend on.
        more: What else the file says, for the reader.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(
            json.dumps({**more, "digest": digest, "rows": list(rows)}, indent=1, default=str) + "\n", "utf-8"
        )


def read_rows(path: Path, digest: str, parsed: Callable[[list[Row]], _Parsed]) -> _Parsed | None:
    """What ``write_rows`` has written; None where nothing has.

    Args:
        path: The file.
        digest: Digest of all that the rows are to depend on.
        parsed: Makes of the rows what is returned; raises what a mapping or a list does where they are none.

    Raises:
        SettingError: It holds something else, or rows of another digest.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        measured_as, result = document["digest"], parsed(list(document["rows"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
        raise SettingError(f"study: {path} holds no result ({error}); delete it to run that trial again.") from error
    if measured_as != digest:
        raise SettingError(
            f"study: {path} was measured with other settings than the study has now; give another folder with --out, "
            "or delete that file to run the trial again."
        )
    return result


def _path(folder: Path, trial: Trial) -> Path:
    return folder / FOLDER / f"{trial.name}.json"

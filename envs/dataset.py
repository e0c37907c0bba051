"""Dataset: questions from a file, answered in one reply or a few, and checked by a verifier.

Observation  str, the question of a row; after a wrong answer, if there are attempts left, "wrong; try again"
Action       str, the reply; see ``verifiers`` for what of it counts as the answer
Reward       what the verifier gives the reply that ends the episode, 0 to 1
Ends         terminated by a reply with the full score, or after the last attempt
Info         {"task_id": str, "answer": str} from reset; from step {"valid_action": True, "obs_role": "user"}, and at
             the end {"success": bool}
Settings     path: a .jsonl, .json, .csv or .parquet file, a folder saved by the package `datasets`, or
             "hub:NAME", with split; question, answer: columns; verifier: "exact", "numeric", "math_verify",
             "module:function" or a function; prompt: text around the question, with {question}; system_prompt;
             attempts: 1 to 100
Versions     v0

GSM8K's own file is a dataset as it is: its answers end in "#### 42", which "numeric" reads.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gspo_rllib.envs.tasks import checked_integer, numbered_task
from gspo_rllib.envs.text_task import TextTaskEnv
from gspo_rllib.envs.verifiers import Verifier, final_answer, find_verifier, score
from gspo_rllib.errors import EnvError, SettingError, did_you_mean
from gspo_rllib.types import ChatSpec

Row = dict[str, Any]

HUB = "hub:"


class DatasetEnv(TextTaskEnv):
    """See the card at the top of this file.

    Args:
        path: Where the rows are; or give ``rows``.
        rows: The rows themselves, each a mapping.
        split: Which split to read where the dataset has several.
        question: Column of the question.
        answer: Column of the gold answer; an expert replies with what it states.
        verifier: Scores a reply.
        prompt: Text around a question; ``{question}`` stands for it.
        system_prompt: What the policy is told before the question; None for nothing.
        attempts: Replies per question.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: A setting is illegal, or the rows lack a column.
        EnvError: The rows cannot be read, or a package for that is missing.

    Example:
        >>> env = DatasetEnv(rows=[{"question": "6 * 7?", "answer": "so it is #### 42"}], verifier="numeric")
        >>> env.reset(seed=0)[0], env.step("It must be 42.")[1:3]
        ('6 * 7?', (1.0, True))
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        rows: Sequence[Row] | None = None,
        split: str | None = None,
        question: str = "question",
        answer: str = "answer",
        verifier: str | Verifier = "exact",
        prompt: str = "{question}",
        system_prompt: str | None = None,
        attempts: int = 1,
        render_mode: str | None = None,
    ) -> None:
        if (path is None) == (rows is None):
            raise SettingError(f"path={path!r} and rows={'given' if rows else rows}: give exactly one of the two.")
        self._rows = list(rows) if rows is not None else load_rows(str(path), split)
        if not self._rows:
            raise SettingError(f"{path or 'rows'}: holds no row.")
        for column in (question, answer):
            if column not in self._rows[0]:
                raise SettingError(f"the rows have no column {column!r}. {did_you_mean(column, self._rows[0])}")
        if "{question}" not in prompt:
            raise SettingError(f"prompt={prompt!r}: must contain {{question}}, which stands for the question.")
        self._question, self._answer, self._prompt = question, answer, prompt
        self._verifier = find_verifier(verifier)
        super().__init__(max_turns=checked_integer("attempts", attempts, 1, 100), render_mode=render_mode)
        self.chat = ChatSpec(system_prompt=system_prompt)
        self._row = self._rows[0]

    def num_tasks(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Asks the question of a row: the one whose number is the task's id, else a random one."""
        super().reset(seed=seed)
        number = numbered_task(options, self.np_random, len(self._rows))
        self._row = self._rows[number]
        asked = self._prompt.replace("{question}", str(self._row[self._question]))
        return self._begin_task(asked, {"task_id": str(number), "answer": final_answer(str(self._row[self._answer]))})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Scores a reply.

        Raises:
            EnvError: The verifier is broken.
        """
        earned = score(self._verifier, action, str(self._row[self._answer]), self._row)
        success = earned == 1.0
        if not success and self._turns + 1 < self.max_turns:
            return self._go_on("wrong; try again")
        return self._finish("right" if success else "wrong", earned, success)

    def render(self) -> str | None:
        """The question."""
        return str(self._row[self._question]) if self.render_mode == "ansi" else None

    def expert(self) -> Callable[[str], str]:
        """A policy that looks the answer up: it reads the row, not the question."""
        return lambda _: final_answer(str(self._row[self._answer]))


def load_rows(path: str, split: str | None = None) -> list[Row]:
    """The rows of a dataset; read once per process, as every environment of a pool asks for them.

    Args:
        path: A file, a folder or ``"hub:NAME"``, as the card says.
        split: Which split to read where the dataset has several.

    Raises:
        EnvError: There is nothing to read, or it cannot be read.
    """
    changed = os.stat(path).st_mtime_ns if os.path.exists(path) else 0
    return _load_rows(path, split, changed)


@functools.lru_cache(maxsize=8)
def _load_rows(path: str, split: str | None, changed: int) -> list[Row]:
    del changed  # only there so that a file that was replaced is read again
    if path.startswith(HUB):
        return _as_rows(_datasets(path).load_dataset(path.removeprefix(HUB), split=split), path, split)
    place = Path(path).expanduser()
    if place.is_dir():
        return _as_rows(_datasets(path).load_from_disk(str(place)), path, split)
    if not place.is_file():
        raise EnvError(f"path={path!r}: there is no such file or folder; write 'hub:{path}' for a dataset of the hub.")
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(place.suffix)
    if reader is None:
        raise EnvError(f"path={path!r}: cannot tell its format; allowed: {', '.join(readers)}, or a folder.")
    try:
        return reader(place)
    except (ValueError, OSError, TypeError) as error:
        raise EnvError(f"path={path!r} could not be read: {str(error)[:300]}") from error


def _read_jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                rows.append(_mapping(json.loads(line)))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return rows


def _read_json(path: Path) -> list[Row]:
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, list):
        raise ValueError(f"holds a {type(document).__name__}; it must hold a list of objects")
    return [_mapping(row) for row in document]


def _read_csv(path: Path) -> list[Row]:
    import csv

    with path.open(newline="", encoding="utf-8") as file:
        return [dict(row) for row in csv.DictReader(file)]


def _read_parquet(path: Path) -> list[Row]:
    parquet = importlib.import_module("pyarrow.parquet")
    rows: list[Row] = parquet.read_table(path).to_pylist()
    return rows


def _mapping(row: Any) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"a row is a {type(row).__name__}; it must be an object")
    return row


def _as_rows(dataset: Any, path: str, split: str | None) -> list[Row]:
    if hasattr(dataset, "column_names") and isinstance(dataset.column_names, list):
        return [dict(row) for row in dataset]
    if split not in dataset:
        raise EnvError(f"path={path!r}: split={split!r}; allowed: {', '.join(map(repr, dataset))}.")
    return [dict(row) for row in dataset[split]]


def _datasets(path: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise EnvError(f"path={path!r} needs the package datasets: pip install 'gspo-rllib[datasets]'.") from error

"""Rows of a dataset, read from a file, a folder or the hub.

Files of text are read at once; Parquet files and datasets of the package ``datasets`` stay as they are, and a row is
made when it is asked for. What is wrong with a row is said with its source, its number and the column.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import functools
import hashlib
import importlib
import itertools
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from gspo_rllib.envs.dataset_cells import agree, gold_of_any_form, question_of
from gspo_rllib.envs.dataset_hub import HUB, load_from_hub
from gspo_rllib.envs.dataset_text import PACKED, NumberedRows, read_csv, read_json, read_jsonl
from gspo_rllib.envs.dataset_text import Row as Row
from gspo_rllib.errors import EnvError, SettingError, described, did_you_mean, shown

logger = logging.getLogger("gspo_rllib")

_SCANNED = 1000  # rows that are looked at together
_COMPARED = 100_000  # rows whose questions are kept for a while, to be compared with each other
_FORMATS = (".jsonl", ".json", ".csv", ".parquet")
_SAID = 3  # contradictions that are told


class LazyRows(Sequence[Row]):
    """Rows that are made when they are asked for.

    Args:
        columns: Their names.
        count: How many rows there are.
        read: Makes the row of a number.
        scan: Goes through some columns of all rows, in order, a few rows at a time.
    """

    def __init__(
        self,
        columns: Sequence[str],
        count: int,
        read: Callable[[int], Row],
        scan: Callable[[list[str]], Iterator[list[Row]]],
    ) -> None:
        self.columns = list(columns)
        self._count = count
        self._read = read
        self.scan = scan

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._read(number) for number in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(index)
        return self._read(index % self._count)

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_same, self, other))

    __hash__ = None  # type: ignore[assignment]


def _same(one: Row, other: object) -> bool:
    return one == other


def load_rows(path: str, split: str | None = None) -> Sequence[Row]:
    """The rows of a dataset; read once per process, as every environment of a pool asks for them.

    Args:
        path: A ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, a folder or ``"hub:NAME"``.
        split: Which split to read where the dataset has several.

    Raises:
        EnvError: There is nothing to read, or it cannot be read.
    """
    return _load_rows(path, split, _changed(path))


def load_checked_rows(
    path: str, split: str | None, question: str, answer: str, read_gold: Callable[[Any], str]
) -> Sequence[Row]:
    """The same rows, every one of which has been looked at: once per process.

    Args:
        path: As for ``load_rows``.
        split: As for ``load_rows``.
        question: Column of the question.
        answer: Column of the gold answer.
        read_gold: How a gold answer is read; see ``gold_reader``.

    Raises:
        SettingError: The rows have no such column.
        EnvError: There is nothing to read, or it cannot be read, or a row cannot be used.
    """
    return _load_checked_rows(path, split, _changed(path), question, answer, read_gold)


@functools.lru_cache(maxsize=8)
def _load_checked_rows(
    path: str, split: str | None, changed: int, question: str, answer: str, read_gold: Callable[[Any], str]
) -> Sequence[Row]:
    rows = _load_rows(path, split, changed)
    check_rows(rows, f"path={path!r}", question, answer, read_gold)
    return rows


def _changed(path: str) -> int:
    place = os.path.expanduser(path)
    return os.stat(place).st_mtime_ns if os.path.exists(place) else 0


def check_rows(rows: Sequence[Any], source: str, question: str, answer: str, read_gold: Callable[[Any], str]) -> None:
    """Looks at every row; of those that are made when asked for, none is kept.

    Args:
        rows: The rows.
        source: Where they are from.
        question: Column of the question.
        answer: Column of the gold answer.
        read_gold: How a gold answer is read; see ``gold_reader``.

    Raises:
        SettingError: There is no row, or the first one lacks a column.
        EnvError: A row lacks a column, or holds there what cannot be used.
    """
    for name, column in (("question", question), ("answer", answer)):
        if not isinstance(column, str):
            raise SettingError(f"{name}={column!r}: must be the name of a column, a str.")
    if question == answer:
        raise SettingError(f"question={question!r} and answer={answer!r}: one column, so that each is its own answer.")
    if not rows:
        raise SettingError(f"{source}: holds no row.")
    first = rows[0]
    for column in (question, answer):
        if isinstance(first, Mapping) and not any(column in row for row in rows if isinstance(row, Mapping)):
            raise SettingError(f"the rows have no column {column!r}. {did_you_mean(column, map(str, first))}")
    checks: dict[str, Callable[[Any], Any]] = {question: question_of, answer: read_gold}
    few = rows.scan(list(checks)) if isinstance(rows, LazyRows) else [rows]
    answers: dict[Any, tuple[str, str]] = {}
    compared = read_gold is not gold_of_any_form  # a verifier of the user's own may look at other columns, too
    for index, row in enumerate(itertools.chain.from_iterable(few)):
        place = f"line {rows.lines[index]}" if isinstance(rows, NumberedRows) else f"row {index + 1}"
        if not isinstance(row, Mapping):
            raise EnvError(f"{source}, {place}: is a {type(row).__name__}; it must be a mapping.")
        read = []
        for column, check in checks.items():
            if column not in row:
                raise EnvError(f"{source}, {place}: has no column {column!r}. {did_you_mean(column, map(str, row))}")
            try:
                read.append(check(row[column]))
            except ValueError as error:
                remedy = "Correct the row, or leave it out."
                raise EnvError(f"{source}, {place}, column {column!r}: {error}. {remedy}") from error
        asked, gold = read
        if compared and index < _COMPARED:
            other, _ = answers.setdefault(asked, (gold, place))
            if other != gold and not agree(other, gold):
                _say_contradiction(source, shown(asked.text, 100), answers[asked], (gold, place))


@functools.lru_cache(maxsize=64)
def _say_contradiction(source: str, question: str, one: tuple[str, str], other: tuple[str, str]) -> None:
    """Says it once: every environment of a pool looks at rows that were given to it."""
    if _say_contradiction.cache_info().misses <= _SAID:
        logger.warning(
            "%s: %s and %s ask the same, %s, and have the gold answers %s and %s: whatever is replied, one of them "
            "pays nothing for it. Correct one of the rows, or leave it out.",
            source,
            one[1],
            other[1],
            question,
            shown(one[0], 60),
            shown(other[0], 60),
        )


def rows_digest(rows: Sequence[Row], columns: Sequence[str] | None, count: int) -> str:
    """A digest of the first rows, the same in every process and on every machine, whatever kind of file they are in.

    Args:
        rows: The rows.
        columns: Which of their columns count; None for all.
        count: How many rows count.
    """
    state = hashlib.blake2b(digest_size=16)
    few: Iterable[Sequence[Row]] = [rows]
    if isinstance(rows, LazyRows):
        few = rows.scan(list(rows.columns if columns is None else columns))
    for row in itertools.islice(itertools.chain.from_iterable(few), count):
        names = sorted(row, key=str) if columns is None else columns
        told = [str(name) for name in names if columns is None] + [row[name] for name in names]
        state.update(json.dumps(told, default=_plain, skipkeys=True).encode() + b"\n")
    return state.hexdigest()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


@functools.lru_cache(maxsize=8)
def _load_rows(path: str, split: str | None, changed: int) -> Sequence[Row]:
    del changed  # only there so that a file that was replaced is read again
    if path.startswith(HUB):
        return _of_datasets(load_from_hub(_datasets(path), path, split), path, split)
    place = Path(path).expanduser()
    if place.is_dir():
        try:
            saved = _datasets(path).load_from_disk(str(place))
        except (OSError, ValueError) as error:
            raise EnvError(
                f"path={path!r} is a folder, but none that the package datasets has saved ({described(error, 200)}). "
                "Give the path of a file in it."
            ) from error
        # On its own, it may know of which split it is.
        if split is not None and isinstance(saved.column_names, list) and str(saved.split) != split:
            raise _no_splits(path, split)
        return _of_datasets(saved, path, split)
    if not place.is_file():
        raise EnvError(f"path={path!r}: there is no such file or folder. {_elsewhere(path)}")
    readers: dict[str, Callable[[Path], Sequence[Row]]]
    readers = dict(zip(_FORMATS, (read_jsonl, read_json, read_csv, _read_parquet), strict=True))
    packed = place.suffix.lower() == PACKED
    reader = readers.get(place.with_suffix("").suffix.lower() if packed else place.suffix.lower())
    if reader is None or (packed and reader is _read_parquet):
        raise EnvError(
            f"path={path!r}: cannot tell its format; allowed: {', '.join(readers)}, or a folder; files of text may be "
            f"packed with gzip, as {PACKED} behind that says."
        )
    if split is not None:
        raise _no_splits(path, split)
    try:
        return reader(place)
    # What reads a file raises a dozen kinds of errors for its content; RecursionError is one of JSON's.
    except (ValueError, OSError, TypeError, EOFError, zlib.error, csv.Error, RecursionError) as error:
        said = str(error)[:300] if type(error) is ValueError else described(error, 300)
        raise EnvError(f"path={path!r} could not be read: {said}") from error


def _elsewhere(path: str) -> str:
    if "://" in path:
        return "It is read from this machine: download it first."
    place = Path(path).expanduser()
    beside: list[str] = []
    with contextlib.suppress(OSError):  # there is no such folder, or it may not be read
        beside = [other.name for other in place.parent.iterdir() if other != place]
    if near := difflib.get_close_matches(place.name, beside, n=1, cutoff=0.8):
        return f"Did you mean {str(Path(path).with_name(near[0]))!r}?"
    if place.is_absolute() or {suffix.lower() for suffix in place.suffixes} & set(_FORMATS):
        return "Correct the path." if place.is_absolute() else f"It is looked for in {os.getcwd()}."
    return f"Write 'hub:{path}' for a dataset of the hub."


def _no_splits(path: str, split: str) -> EnvError:
    return EnvError(
        f"path={path!r}: split={split!r}, but there are no splits to choose from. Leave split out, or give the path of "
        "that split."
    )


def _read_parquet(path: Path) -> LazyRows:
    parquet = importlib.import_module("pyarrow.parquet")
    return _of_table(parquet.read_table(path, memory_map=True))


def _of_table(table: Any) -> LazyRows:
    def scan(columns: list[str]) -> Iterator[list[Row]]:
        return (few.to_pylist() for few in table.select(columns).to_batches(max_chunksize=_SCANNED))

    return LazyRows(table.column_names, table.num_rows, lambda number: table.slice(number, 1).to_pylist()[0], scan)


def _of_datasets(dataset: Any, path: str, split: str | None) -> LazyRows:
    if not (hasattr(dataset, "column_names") and isinstance(dataset.column_names, list)):
        if split not in dataset:
            raise EnvError(f"path={path!r}: split={split!r}; allowed: {', '.join(map(repr, dataset))}.")
        dataset = dataset[split]

    def scan(columns: list[str]) -> Iterator[list[Row]]:
        for few in dataset.select_columns(columns).iter(batch_size=_SCANNED):
            yield [dict(zip(columns, values, strict=True)) for values in zip(*map(few.get, columns), strict=True)]

    return LazyRows(dataset.column_names, len(dataset), lambda number: dict(dataset[number]), scan)


def _datasets(path: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise EnvError(f"path={path!r} needs the package datasets: pip install 'gspo-rllib[datasets]'.") from error

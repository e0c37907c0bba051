"""Rows of a dataset, read from a file, a folder or the hub.

Files of text are read at once; Parquet files and datasets of the package ``datasets`` stay as they are, and a row is
made when it is asked for. What is wrong with a row is said with its source, its number and the column.
"""

from __future__ import annotations

import codecs
import csv
import functools
import hashlib
import importlib
import io
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from gspo_rllib.envs.dataset_cells import question_of
from gspo_rllib.envs.dataset_hub import HUB, load_from_hub
from gspo_rllib.errors import EnvError, SettingError, described, did_you_mean, shown

Row = dict[str, Any]

_CSV_FIELD = 2**31 - 1
_SCANNED = 1000  # rows that are looked at together
_csv_lock = threading.Lock()  # the longest field is a setting of the whole process


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


class NumberedRows(list[Row]):
    """Rows of a text file, and the line each starts in."""

    def __init__(self, rows: Sequence[Row] = (), lines: Sequence[int] = ()) -> None:
        super().__init__(rows)
        self.lines = list(lines)


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
        read_gold: Of ``gold_reader``.

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
    return os.stat(path).st_mtime_ns if os.path.exists(path) else 0


def check_rows(rows: Sequence[Any], source: str, question: str, answer: str, read_gold: Callable[[Any], str]) -> None:
    """Looks at every row; of those that are made when asked for, none is kept.

    Args:
        rows: The rows.
        source: Where they are from.
        question: Column of the question.
        answer: Column of the gold answer.
        read_gold: Of ``gold_reader``.

    Raises:
        SettingError: There is no row, or the first one lacks a column.
        EnvError: A row lacks a column, or holds there what cannot be used.
    """
    if not rows:
        raise SettingError(f"{source}: holds no row.")
    first = rows[0]
    for column in (question, answer):
        if isinstance(first, Mapping) and column not in first:
            raise SettingError(f"the rows have no column {column!r}. {did_you_mean(column, map(str, first))}")
    checks: dict[str, Callable[[Any], Any]] = {question: question_of, answer: read_gold}
    few = rows.scan(list(checks)) if isinstance(rows, LazyRows) else [rows]
    for index, row in enumerate(itertools.chain.from_iterable(few)):
        place = f"line {rows.lines[index]}" if isinstance(rows, NumberedRows) else f"row {index + 1}"
        if not isinstance(row, Mapping):
            raise EnvError(f"{source}, {place}: is a {type(row).__name__}; it must be a mapping.")
        for column, check in checks.items():
            if column not in row:
                raise EnvError(f"{source}, {place}: has no column {column!r}. {did_you_mean(column, map(str, row))}")
            try:
                check(row[column])
            except ValueError as error:
                remedy = "Correct the row, or leave it out."
                raise EnvError(f"{source}, {place}, column {column!r}: {error}. {remedy}") from error


def rows_digest(rows: Sequence[Row], columns: Sequence[str] | None, count: int) -> str:
    """A digest of the first rows, the same in every process and on every machine, whatever kind of file they are in.

    Args:
        rows: The rows.
        columns: Which of their columns count; None for all.
        count: How many rows count.
    """
    state = hashlib.blake2b(digest_size=16)
    if isinstance(rows, LazyRows):
        names = list(rows.columns if columns is None else columns)
        rows_of = itertools.chain.from_iterable(rows.scan(names))
    else:
        rows_of = iter(rows)
    for row in itertools.islice(rows_of, count):
        told = row if columns is None else [row[name] for name in columns]
        state.update(json.dumps(told, default=_plain, sort_keys=columns is None).encode() + b"\n")
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
        saved = _datasets(path).load_from_disk(str(place))
        # On its own, it may know of which split it is.
        if split is not None and isinstance(saved.column_names, list) and str(saved.split) != split:
            raise _no_splits(path, split)
        return _of_datasets(saved, path, split)
    if not place.is_file():
        raise EnvError(f"path={path!r}: there is no such file or folder; write 'hub:{path}' for a dataset of the hub.")
    readers: dict[str, Callable[[Path], Sequence[Row]]]
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(place.suffix.lower())
    if reader is None:
        raise EnvError(f"path={path!r}: cannot tell its format; allowed: {', '.join(readers)}, or a folder.")
    if split is not None:
        raise _no_splits(path, split)
    try:
        return reader(place)
    # What reads a file raises a dozen kinds of errors for its content; RecursionError is one of JSON's.
    except (ValueError, OSError, TypeError, csv.Error, RecursionError) as error:
        said = str(error)[:300] if type(error) is ValueError else described(error, 300)
        raise EnvError(f"path={path!r} could not be read: {said}") from error


def _no_splits(path: str, split: str) -> EnvError:
    return EnvError(
        f"path={path!r}: split={split!r}, but there are no splits to choose from. Leave split out, or give the path of "
        "that split."
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text: they end with a line feed, and with nothing else that Unicode calls a line break."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"line {number} is not in UTF-8 ({error.reason}); save the file as UTF-8") from error
            yield number, text


def _read_jsonl(path: Path) -> NumberedRows:
    rows = NumberedRows()
    for number, line in _lines(path):
        if line.strip():
            try:
                rows.append(_mapping(json.loads(line, object_pairs_hook=_without_doubles)))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from error
            rows.lines.append(number)
    return rows


def _read_json(path: Path) -> Sequence[Row]:
    text = "".join(line for _, line in _lines(path))
    try:
        document = json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one document per line, under the name of JSON
            return _read_jsonl(path)
        raise ValueError(str(error)) from error
    if not isinstance(document, list):
        raise ValueError(f"holds a {type(document).__name__}; it must hold a list of objects")
    for number, row in enumerate(document, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is a {type(row).__name__}; it must be an object")
    return document


def _read_csv(path: Path) -> NumberedRows:
    text = "".join(line for _, line in _lines(path))
    rows = NumberedRows()
    with _csv_lock:
        before = csv.field_size_limit(_CSV_FIELD)
        try:
            reader = csv.reader(io.StringIO(text, newline=""), strict=True)
            header: list[str] | None = None
            while True:
                line = reader.line_num + 1
                try:
                    fields = next(reader, None)
                except csv.Error as error:
                    raise ValueError(f"line {line}: {error}") from error
                if fields is None:
                    return rows
                if not fields:
                    continue
                if header is None:
                    header = fields
                    _check_once([name for name in fields if name.strip()], "in the header")
                    continue
                if any(field.strip() for field in fields[len(header) :]):
                    raise ValueError(
                        f"line {line} has {len(fields)} fields for the {len(header)} columns of the header; put quotes "
                        "around a field that holds a comma"
                    )
                rows.append(dict(zip(header, fields, strict=False)))
                rows.lines.append(line)
        finally:
            csv.field_size_limit(before)


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


def _without_doubles(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        _check_once([name for name, _ in pairs], "in one object")
    return row


def _check_once(names: Sequence[str], where: str) -> None:
    """Refuses a name that is there twice, of which readers take the last."""
    double = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if double is not None:
        raise ValueError(f"{shown(double)} is there twice {where}; give each column one name")


def _mapping(row: Any) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"a row is a {type(row).__name__}; it must be an object")
    return row


def _datasets(path: str) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise EnvError(f"path={path!r} needs the package datasets: pip install 'gspo-rllib[datasets]'.") from error

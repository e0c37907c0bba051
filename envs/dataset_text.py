"""Rows of text files: JSON, one object per line or a list of them, and CSV; each as it is or packed with gzip.

What is wrong with a file is a ``ValueError`` that says where.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gspo_rllib.errors import repeated, shown

Row = dict[str, Any]

PACKED = ".gz"
"""What the name of a packed file ends in. Whether one is packed is seen by its first bytes."""

_CSV_FIELD = 2**31 - 1
_GZIP = b"\x1f\x8b"
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_csv_lock = threading.Lock()  # the longest field is a setting of the whole process


class NumberedRows(list[Row]):
    """Rows of a text file, and the line each starts in."""

    def __init__(self, rows: Sequence[Row] = (), lines: Sequence[int] = ()) -> None:
        super().__init__(rows)
        self.lines = list(lines)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text: they end with a line feed, and with nothing else that Unicode calls a line break."""
    with path.open("rb") as plain:
        is_packed = plain.peek(2)[:2] == _GZIP
    with gzip.open(path) if is_packed else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                text = (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"line {number} is not in UTF-8 ({error.reason}); save the file as UTF-8") from error
            yield number, text


def read_jsonl(path: Path) -> NumberedRows:
    """Rows of a file with one JSON object on each line; empty lines are none."""
    rows = NumberedRows()
    for number, line in _lines(path):
        if line.strip():
            if not rows and line.lstrip().startswith("["):
                raise ValueError("begins with a list; if it is one list of rows, name the file .json")
            try:
                rows.append(_mapping(json.loads(line, object_pairs_hook=_without_doubles)))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from error
            rows.lines.append(number)
    return rows


def read_json(path: Path) -> Sequence[Row]:
    """Rows of a file that holds a list of JSON objects, or one on each line."""
    text = "".join(line for _, line in _lines(path))
    try:
        document = json.loads(text, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one document per line, under the name of JSON
            return read_jsonl(path)
        raise ValueError(str(error)) from error
    if not isinstance(document, list):
        raise ValueError(f"holds a {type(document).__name__}; it must hold a list of objects")
    for number, row in enumerate(document, start=1):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} is of type {type(row).__name__}; it must be an object")
    return document


def read_csv(path: Path) -> NumberedRows:
    """Rows of a file of values that commas separate, under a header; all of them are texts."""
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
                    _check_separated(header)
                    _check_once((name for name in fields if name.strip()), "in the header")
                    continue
                if any(field.strip() for field in fields[len(header) :]):
                    raise ValueError(
                        f"line {line} has {len(fields)} fields for the {len(header)} columns of the header; put quotes "
                        "around a field that holds a comma"
                    )
                missing = [None] * (len(header) - len(fields))  # a line that ends early holds nothing there
                rows.append(dict(zip(header, [*fields, *missing], strict=False)))
                rows.lines.append(line)
        finally:
            csv.field_size_limit(before)


def _check_separated(header: Sequence[str]) -> None:
    other = next((name for sign, name in _SEPARATORS.items() if len(header) == 1 and sign in header[0]), None)
    if other is not None:
        raise ValueError(f"its columns are separated by {other}; save it with commas between them")


def _without_doubles(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        _check_once((name for name, _ in pairs), "in one object")
    return row


def _check_once(names: Iterable[str], where: str) -> None:
    for double in repeated(names):
        raise ValueError(f"{shown(double)} is there twice {where}; give each column one name")


def _mapping(row: Any) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"a row is of type {type(row).__name__}; it must be an object")
    return row

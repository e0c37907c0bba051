"""``--json``: what a command found, as rows that a program reads: a file of them, or lines on standard output."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gspo_rllib.places import file_to_write

STDOUT = "-"
"""What ``--json`` has without a file: rows go to standard output, and what people read to standard error."""


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds the option.

    Args:
        parser: The sub-command's parser.
        what: What a row is, e.g. "task".
    """
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help=f"one row per {what}: to FILE (.jsonl or .parquet), or as lines on standard output instead of the text",
    )


def rows_file(path: str) -> Path | None:
    """The file to write rows to, checked before anything is played; None for standard output.

    Raises:
        SettingError: Its ending says no known format, or its folder does not exist.
    """
    if path == STDOUT:
        return None
    return file_to_write(path, "--json", ".jsonl or .parquet", ", which says how rows are written")


def write_rows(rows: Sequence[Mapping[str, Any]], file: Path | None) -> None:
    """Writes the rows.

    Args:
        rows: Plain values only.
        file: Ends in ``.jsonl`` or ``.parquet``; None for standard output.
    """
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    if file is None:
        print(lines, end="")
    elif file.suffix == ".jsonl":
        file.write_text(lines, encoding="utf-8")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist([_as_utf8(dict(row)) for row in rows]), file)


def _as_utf8(value: Any) -> Any:
    """The same with half a surrogate pair, which UTF-8 has not, as its escape."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _as_utf8(item) for key, item in value.items()}
    return [_as_utf8(item) for item in value] if isinstance(value, list) else value

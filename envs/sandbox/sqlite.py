"""Running SQL that a model wrote: an in-memory SQLite database that answers SELECT and nothing else.

Everything not listed is refused when a query is prepared: other statements, other tables, recursion, and every function
but a few. The list of functions matters most: no limit interrupts the inside of a call such as ``printf('%.*c', …)``.
What is left is bounded by a count of the database's own instructions, which is the same on every machine.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FUNCTIONS = frozenset(
    {"abs", "avg", "coalesce", "count", "ifnull", "iif", "length", "lower", "max", "min", "nullif", "round", "substr"}
    | {"sum", "total", "trim", "upper"}
)
SCHEMA_QUERY = "select sql from sqlite_master"
MAX_INSTRUCTIONS = 500_000
MAX_SECONDS = 1.0
"""A second net, for a machine so slow that the instructions take longer."""

_INSTRUCTIONS_PER_CHECK = 1_000
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 16,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 40,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 4,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 8,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 0,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 0,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_SCHEMA_TABLES = {"sqlite_master", "sqlite_schema"}


@dataclass(frozen=True, slots=True)
class QueryResult:
    """What a query gave.

    Attributes:
        text: The rows, ``a|b``, one per line, cut to the limits; or ``"no rows"``; or ``"error: …"``.
        error: Whether it was refused, or failed.
    """

    text: str
    error: bool = False


class GuardedDatabase:
    """A database to ask, and only to ask.

    Args:
        fill: Creates and fills the tables, before any guard is up.
        max_rows: Rows that are shown.
        max_chars: Characters that are shown.

    Example:
        >>> database = GuardedDatabase(lambda c: c.executescript("create table t(a); insert into t values (1);"))
        >>> database.query("select * from t").text
        '1'
        >>> database.query("drop table t")
        QueryResult(text='error: only SELECT is allowed', error=True)
        >>> database.query("select printf('%d', a) from t").text
        'error: not authorized to use function: printf'
    """

    def __init__(self, fill: Callable[[sqlite3.Connection], Any], max_rows: int = 20, max_chars: int = 500) -> None:
        self._max_rows = max_rows
        self._max_chars = max_chars
        # One thread at a time uses it, not always the same one.
        self._connection = sqlite3.connect(
            ":memory:", isolation_level=None, check_same_thread=False, cached_statements=0
        )
        fill(self._connection)
        tables = _SCHEMA_TABLES | {name for (name,) in self._connection.execute("select name from sqlite_master")}
        for limit, value in _LIMITS.items():
            self._connection.setlimit(limit, value)
        self._connection.set_authorizer(_authorizer(tables))

    def query(self, sql: str) -> QueryResult:
        """Runs one SELECT; whatever the text is, this returns, and within the limits."""
        self._connection.set_progress_handler(_budget(), _INSTRUCTIONS_PER_CHECK)
        try:
            cursor = self._connection.execute(sql)
            if cursor.description is None:
                return QueryResult("error: no query", error=True)
            rows = cursor.fetchmany(self._max_rows + 1)
            cursor.close()
        except (sqlite3.Error, sqlite3.Warning, UnicodeError, ValueError, OverflowError) as error:
            return QueryResult(f"error: {_explain(error)}", error=True)
        return QueryResult(self._show(rows))

    def close(self) -> None:
        """Frees the database; a second call is harmless."""
        self._connection.close()

    def _show(self, rows: list[tuple[Any, ...]]) -> str:
        if not rows:
            return "no rows"
        lines = ["|".join("" if value is None else str(value) for value in row) for row in rows[: self._max_rows]]
        if len(rows) > self._max_rows:
            lines.append("…")
        text = "\n".join(lines)
        return text if len(text) <= self._max_chars else f"{text[: self._max_chars - 1]}…"


def _authorizer(tables: set[str]) -> Callable[..., int]:
    def authorize(action: int, first: str | None, second: str | None, database: str | None, source: str | None) -> int:
        allowed = (
            action == sqlite3.SQLITE_SELECT
            or (action == sqlite3.SQLITE_READ and first in tables)
            or (action == sqlite3.SQLITE_FUNCTION and second in FUNCTIONS)
        )
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    return authorize


def _budget() -> Callable[[], int]:
    checks = 0
    deadline = time.monotonic() + MAX_SECONDS

    def over() -> int:
        nonlocal checks
        checks += 1
        return int(checks * _INSTRUCTIONS_PER_CHECK >= MAX_INSTRUCTIONS or time.monotonic() > deadline)

    return over


def _explain(error: Exception) -> str:
    message = " ".join(str(error).split())
    if message == "not authorized":
        return "only SELECT is allowed"
    if message == "interrupted":
        return "the query takes too long"
    return message if len(message) <= 120 else f"{message[:119]}…"

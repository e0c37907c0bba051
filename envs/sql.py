"""SQL: answer questions about tables one has to discover, by querying an in-memory SQLite database.

The names of tables and columns change from task to task, so the schema comes first. Every question needs a join and an
aggregate; several questions in a row make the episode longer.

Observation  str, a question at first, e.g. "sum of price over sales with town=kobo and kind=tea?"; then the rows of a
             query ("a|b", one per line, at most 20 of them and 500 characters), "no rows" or "error: …", and after a
             right answer the next question
Action       str, one SELECT ("select sql from sqlite_master" shows the schema), or "answer 12"
Reward       1.0 for the right answer to the last question, else 0.0
Ends         terminated by a wrong answer, or by the right one to the last question; truncated after 4 * questions + 6
             turns
Info         {"task_id": str, "answers": [int]} from reset; from step {"valid_action": bool (the query ran), "obs_role":
             "tool"}, and at the end {"success": bool}, with {"truncated_by": "turns"} when truncated
Settings     questions: 1 to 50; tables: 2 or 3, joined by a question; rows: 10 to 200, of the table that is summed up
Expert       looks the schema up, then one query and one answer per question
Ladder       questions/tables/rows   expert: return, turns   random valid   random text
             1/2/10                  1.00, 3                 0.01           0.00
             1/3/40 (default)        1.00, 3                 0.00           0.00
             10/3/40                 1.00, 21                0.00           0.00
             50/3/40                 1.00, 101               0.00           0.00
Versions     v0
"""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gspo_rllib.envs.sandbox.sqlite import SCHEMA_QUERY, GuardedDatabase
from gspo_rllib.envs.tasks import checked_integer, numbered_task
from gspo_rllib.envs.text_task import TextTaskEnv
from gspo_rllib.types import ChatSpec

# Every plural loses its "s" in the columns that refer to it: shop_id.
_PLACES = (("shops", "stores", "stalls", "markets"), ("town", "region", "street"))
_GOODS = (("goods", "items", "wares", "products"), ("kind", "colour", "brand"))
_DEALS = (("sales", "orders", "trades"), ("price", "cost", "weight", "amount"))
_AGGREGATES: dict[str, Callable[[list[int]], int]] = {"sum": sum, "max": max, "min": min}
_REFERRED_ROWS = 8
_VALUES = 4
_LARGEST = 99

_ANSWER = re.compile(r"\s*answer\s+([0-9]{1,9})\s*")
_QUESTION = re.compile(r"(sum|max|min) of (\w+) over (\w+) with ([\w=]+(?: and [\w=]+)*)\?")
_TABLE = re.compile(r"CREATE TABLE (\w+)\(([\w,]+)\)")


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a task.

    Attributes:
        columns: Names of the columns; ``shop_id`` refers to the column ``id`` of ``shops``.
        rows: The rows, each with a value per column.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[int | str, ...], ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of the tables.

    Attributes:
        aggregate: ``"sum"``, ``"max"`` or ``"min"``.
        column: The column that is summed up.
        over: The table that holds it.
        conditions: Pairs of a column, of a table that ``over`` refers to, and the value it must have.
    """

    aggregate: str
    column: str
    over: str
    conditions: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        conditions = " and ".join(f"{column}={value}" for column, value in self.conditions)
        return f"{self.aggregate} of {self.column} over {self.over} with {conditions}?"


def solve(tables: dict[str, Table], question: Question) -> int:
    """The answer, found without SQL.

    Raises:
        ValueError: No row fulfils the conditions, and the aggregate of nothing does not exist.

    Example:
        >>> tables = {"shops": Table(("id", "town"), ((1, "kobo"), (2, "lima"))),
        ...           "sales": Table(("shop_id", "price"), ((1, 5), (2, 7), (1, 6)))}
        >>> solve(tables, Question("sum", "price", "sales", (("town", "kobo"),)))
        11
    """
    deals = tables[question.over]
    rows = list(deals.rows)
    for attribute, value in question.conditions:
        ((name, referred),) = [(name, table) for name, table in tables.items() if attribute in table.columns]
        position, key = referred.columns.index(attribute), deals.columns.index(f"{name.removesuffix('s')}_id")
        wanted = {row[0] for row in referred.rows if row[position] == value}
        rows = [row for row in rows if row[key] in wanted]
    found = [int(row[deals.columns.index(question.column)]) for row in rows]
    if not found:
        raise ValueError(f"no row for: {question}")
    return _AGGREGATES[question.aggregate](found)


def build_task(task: int, questions: int, tables: int, rows: int) -> tuple[dict[str, Table], list[Question]]:
    """The tables and the questions of a task.

    Args:
        task: The task's number.
        questions: How many questions there are.
        tables: How many tables a question joins, 2 or 3.
        rows: How many rows the table has that is summed up.

    Example:
        >>> database, asked = build_task(task=1, questions=2, tables=3, rows=10)
        >>> [len(table.rows) for table in database.values()], len(asked)
        ([8, 8, 10], 2)
        >>> solve(database, asked[0]) > 0
        True
    """
    draw = random.Random(task)
    database: dict[str, Table] = {}
    attributes = []
    for names, columns in (_PLACES, _GOODS)[: tables - 1]:
        words = ["".join(draw.choice("bdfgklmnprst") + draw.choice("aiou") for _ in range(2)) for _ in range(_VALUES)]
        values = [*words, *draw.choices(words, k=_REFERRED_ROWS - _VALUES)]
        attributes.append(draw.choice(columns))
        database[draw.choice(names)] = Table(("id", attributes[-1]), tuple(enumerate(values, 1)))
    over, column = draw.choice(_DEALS[0]), draw.choice(_DEALS[1])
    keys = [f"{name.removesuffix('s')}_id" for name in database]
    deals = tuple((*(draw.randint(1, _REFERRED_ROWS) for _ in keys), draw.randint(1, _LARGEST)) for _ in range(rows))
    referred = list(database.values())
    database[over] = Table((*keys, column), deals)
    asked = []
    for _ in range(questions):
        # The conditions are taken from some row, so that at least one row fulfils them.
        row = draw.choice(deals)
        wanted = [str(table.rows[row[index] - 1][1]) for index, table in enumerate(referred)]
        conditions = tuple(zip(attributes, wanted, strict=True))
        asked.append(Question(draw.choice(list(_AGGREGATES)), column, over, conditions))
    return database, asked


def _open(tables: dict[str, Table]) -> GuardedDatabase:
    def fill(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")
        for name, table in tables.items():
            connection.execute(f"CREATE TABLE {name}({','.join(table.columns)})")
            connection.executemany(f"INSERT INTO {name} VALUES ({','.join('?' * len(table.columns))})", table.rows)
        connection.execute("COMMIT")

    return GuardedDatabase(fill)


class SQLEnv(TextTaskEnv):
    """See the card at the top of this file.

    Args:
        questions: How many questions are asked, one after the other; 1 to 50.
        tables: How many tables a question joins, 2 or 3.
        rows: How many rows the table has that is summed up, 10 to 200.
        render_mode: None or ``"ansi"``.

    Raises:
        SettingError: A setting is out of range.
    """

    obs_role = "tool"
    chat = ChatSpec(
        system_prompt="Answer the question with the help of an SQLite database. Reply with one SELECT statement alone, "
        "or, once you know, with the answer alone, such as answer 12. select sql from sqlite_master shows the tables."
    )

    def __init__(self, questions: int = 1, tables: int = 3, rows: int = 40, render_mode: str | None = None) -> None:
        self.questions = checked_integer("questions", questions, 1, 50)
        self.tables = checked_integer("tables", tables, 2, 3)
        self.rows = checked_integer("rows", rows, 10, 200)
        super().__init__(max_turns=4 * questions + 6, render_mode=render_mode)
        self._tables: dict[str, Table] = {}
        self._questions: list[Question] = []
        self._answers: list[int] = []
        self._database: GuardedDatabase | None = None
        self._asked = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Fills the tables; the same seed or ``options["task_id"]`` (a number) fills them the same.

        Raises:
            EnvError: ``options["task_id"]`` is no number of a task.
        """
        super().reset(seed=seed)
        task = numbered_task(options, self.np_random)
        self.close()
        self._tables, self._questions = build_task(task, self.questions, self.tables, self.rows)
        self._answers = [solve(self._tables, question) for question in self._questions]
        self._asked = 0
        return self._begin_task(str(self._questions[0]), {"task_id": str(task), "answers": list(self._answers)})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Runs a query or takes an answer; what fails costs the turn."""
        if answer := _ANSWER.fullmatch(action):
            if int(answer[1]) != self._answers[self._asked]:
                return self._finish("wrong", 0.0, success=False)
            self._asked += 1
            if self._asked == self.questions:
                return self._finish("right", 1.0, success=True)
            return self._go_on(str(self._questions[self._asked]))
        if self._database is None:
            self._database = _open(self._tables)
        result = self._database.query(action)
        return self._go_on(result.text, valid=not result.error)

    def close(self) -> None:
        """Frees the database."""
        if self._database is not None:
            self._database.close()
        self._database = None

    def expert(self) -> Callable[[str], str]:
        """A policy that looks the schema up and sees only observations; ask for a new one per episode."""
        return _Analyst()

    def random_action(self, rng: np.random.Generator) -> str:
        """Looks at the schema or at any table, or answers with any number."""
        actions = [SCHEMA_QUERY, *(f"select * from {table}" for table in self._tables)]
        return [*actions, f"answer {rng.integers(1, _LARGEST + 1)}"][rng.integers(len(actions) + 1)]

    def __getstate__(self) -> dict[str, Any]:
        # No query changes the database: it is filled again from the tables when it is next asked.
        return self.__dict__ | {"_database": None}


class _Analyst:
    """What it knows about the tables is what the database has told it."""

    def __init__(self) -> None:
        self._columns: dict[str, list[str]] = {}
        self._question = ""

    def __call__(self, observation: str) -> str:
        if _QUESTION.fullmatch(observation):
            self._question = observation
            return self._query() if self._columns else SCHEMA_QUERY
        if schema := _TABLE.findall(observation):
            self._columns = {name: columns.split(",") for name, columns in schema}
            return self._query()
        return f"answer {observation}" if observation.isdigit() else self._query() if self._columns else SCHEMA_QUERY

    def _query(self) -> str:
        asked = _QUESTION.fullmatch(self._question)
        if asked is None:
            return SCHEMA_QUERY
        aggregate, column, over, conditions = asked.groups()
        pairs: Sequence[list[str]] = [condition.split("=") for condition in conditions.split(" and ")]
        joins = ""
        for attribute, _ in pairs:
            (table,) = [name for name, columns in self._columns.items() if attribute in columns]
            joins += f" join {table} on {table}.id={table.removesuffix('s')}_id"
        where = " and ".join(f"{attribute}='{value}'" for attribute, value in pairs)
        return f"select {aggregate}({column}) from {over}{joins} where {where}"

"""The guard around a database: attacks are refused, and none takes long."""

from __future__ import annotations

import doctest
import resource
import time
from pathlib import Path
from typing import Any

import pytest

import gspo_rllib.envs.sandbox.sqlite as guard
from gspo_rllib.envs.sandbox.sqlite import GuardedDatabase

ROWS = 200


def fill(connection: Any) -> None:
    connection.execute("create table t(a, b)")
    connection.executemany("insert into t values (?, ?)", [(number, f"x{number % 7}") for number in range(ROWS)])


@pytest.fixture
def database() -> GuardedDatabase:
    return GuardedDatabase(fill)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("select count(*), sum(a), min(a), max(a) from t", "200|19900|0|199"),
        ("SELECT a FROM t WHERE b = 'x3' AND a < 12 ORDER BY a DESC", "10\n3"),
        ("select b, count(*) from t group by b having count(*) > 28 order by b", "x0|29\nx1|29\nx2|29\nx3|29"),
        ("select t1.a from t t1 join t t2 on t1.a = t2.a + 198", "198\n199"),
        ("with small as (select a from t where a < 3) select sum(a) from small", "3"),
        ("select a from t where a in (select a + 1 from t where a < 1)", "1"),
        ("select upper(substr(b, 1, 1)), coalesce(null, 4), round(2.51, 1), length(b) from t limit 1", "X|4|2.5|2"),
        ("select case when a = 0 then 'zero' end from t limit 2", "zero\n"),
        ("select a from t where a > 500", "no rows"),
        ("select 1;", "1"),
        ("select sql from sqlite_master", "CREATE TABLE t(a, b)"),
    ],
)
def test_questions_are_answered(database, query, text) -> None:
    result = database.query(query)
    assert (result.text, result.error) == (text, False)


@pytest.mark.parametrize(
    "query",
    [
        "select printf('%.*c', 900000000, 'x')",
        "select format('%.*c', 900000000, 'x')",
        "select length(zeroblob(900000000))",
        "select length(randomblob(900000000))",
        "select length(hex(zeroblob(900000000)))",
        "select replace(printf('%9999d', 1), ' ', '          ')",
        "select group_concat(b) from t",
        "select 'aaaaaaaaaaaaaaaaaaaaaaaaaaaab' like '%a%a%a%a%a%a%a%a%a%ac'",
        "select 'aaaaaaaaaaaaaaaaaaaaaaaaaaaab' glob '*a*a*a*a*a*a*a*a*a*ac'",
        "select random()",
        "select load_extension('x')",
        "select readfile('/etc/passwd')",
        "with recursive c(x) as (select 1 union all select x + 1 from c) select count(*) from c",
        "attach '{folder}/made.db' as made",
        "vacuum into '{folder}/made.db'",
        "vacuum",
        "pragma table_info(t)",
        "pragma writable_schema = 1",
        "pragma hard_heap_limit = 1",
        "select * from pragma_table_info('t')",
        "select * from json_each('[1]')",
        "insert into t values (1, 'x')",
        "update t set a = 0",
        "delete from t",
        "replace into t values (1, 'x')",
        "drop table t",
        "alter table t add column c",
        "create table made(a)",
        "create temp table made(a)",
        "create view made as select 1",
        "create trigger made after insert on t begin select 1; end",
        "create virtual table made using fts5(x)",
        "delete from sqlite_master",
        "begin",
        "savepoint made",
        "analyze",
        "detach main",
        "select 1; drop table t",
        "select 1; select 2",
        "select ?",
        "select missing from t",
        "select * from missing",
        "selec 1",
        "",
        ";",
        "-- nothing",
        "\0",
        "\ud800",
        "x" * 100_000,
        "select " + "(" * 900 + "1" + ")" * 900,
        "select " + "+".join("1" * 400),
        "select " + " union all select ".join("1" * 50),
        "select sum(9223372036854775807) from t",
        "select b||b||b||b||b||b||b||b||b||b from (select b||b||b||b||b||b||b||b||b||b||b||b||b||b||b as b from "
        "(select b||b||b||b||b||b||b||b||b||b as b from t))",
    ],
)
def test_what_is_no_question_is_refused_at_once_and_changes_nothing(database, query, tmp_path) -> None:
    begin = time.thread_time()
    result = database.query(query.replace("{folder}", str(tmp_path)))
    assert time.thread_time() - begin < 0.5
    assert result.error
    assert result.text.startswith("error: ")
    assert len(result.text) < 150
    assert "\n" not in result.text
    assert list(tmp_path.iterdir()) == []
    assert database.query("select count(*), sum(a) from t").text == "200|19900"
    assert database.query("select count(*) from sqlite_master").text == "1"


@pytest.mark.parametrize(
    "query",
    [
        "select count(*) from t a, t b, t c, t d, t e",
        "select max(a.a + b.a + c.a) from t a, t b, t c, t d",
        "select a.b || b.b || c.b as x from t a, t b, t c, t d order by x",
        "select distinct a.a, b.a, c.a from t a, t b, t c order by 1",
        "select (select count(*) from t a, t b, t c where a.a <> t.a) from t",
        f"select {', '.join(['x.b'] * 16)} from (select '{'q' * 50}' as b, a.a from t a, t b, t c) x order by x.a",
    ],
)
def test_a_query_without_end_is_stopped_within_its_budget_of_time_and_memory(database, query) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.thread_time()
    result = database.query(query)
    assert time.thread_time() - begin < guard.MAX_SECONDS + 1.0
    assert result.text == "error: the query takes too long"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
    assert database.query("select 1").text == "1"


def test_the_budget_is_counted_so_that_it_ends_alike_on_every_machine(database, monkeypatch) -> None:
    query = "select count(*) from t a, t b where a.a < b.a"
    assert not database.query(query).error
    monkeypatch.setattr(guard, "MAX_INSTRUCTIONS", 50_000)
    assert {database.query(query).error for _ in range(5)} == {True}
    monkeypatch.undo()
    monkeypatch.setattr(guard, "MAX_SECONDS", -1.0)
    assert database.query(query).error, "the clock is the second net"


def test_what_is_shown_is_cut(database) -> None:
    lines = database.query("select a from t").text.splitlines()
    assert lines == [*(str(number) for number in range(20)), "…"]
    wide = database.query(f"select '{'x' * 900}'").text
    assert len(wide) == 500
    assert wide.endswith("…")


def test_the_guard_s_examples_are_true() -> None:
    results = doctest.testmod(guard)
    assert results.attempted > 0
    assert results.failed == 0
    assert "exec(" not in Path(guard.__file__).read_text()

"""Prepared statements see the rows of the moment, whatever was planned before."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from piper.prepared import STATEMENTS_MAX, Prepared


@pytest.mark.parametrize(
    "question",
    [
        "SELECT count(*) FROM numbers WHERE x > 5",
        "SELECT count(y) FROM numbers",
        "SELECT count(*) FROM numbers WHERE y IS NOT NULL",
        "SELECT count(*), min(x), max(x) FROM numbers",
        "SELECT count(*) FROM numbers ANTI JOIN known USING (x)",
    ],
)
def test_a_plan_made_before_the_rows_came_counts_them(tmp_path: Path, question: str) -> None:
    with duckdb.connect(str(tmp_path / "numbers.duckdb")) as con:
        con.execute("CREATE TABLE numbers AS SELECT i % 4 AS x, NULL::VARCHAR AS y FROM range(3000) r (i)")
        con.execute("CREATE TABLE known (x BIGINT)")
        con.execute("CHECKPOINT")
        prepared = Prepared(con)
        prepared.execute(question).fetchall()
        con.execute("INSERT INTO numbers SELECT 10, 'text' FROM range(10)")
        con.execute("INSERT INTO known VALUES (1)")
        assert prepared.execute(question).fetchall() == con.execute(question).fetchall()


def test_a_given_table_is_the_one_of_this_call() -> None:
    with duckdb.connect() as con:
        prepared = Prepared(con)
        for rows in ([1, 2], [], [3]):
            with prepared.given("few", pa.table({"x": pa.array(rows, pa.int64())})):
                assert prepared.execute("SELECT x FROM few ORDER BY x").fetchall() == [(row,) for row in rows]
        assert prepared.execute("SELECT x FROM few ORDER BY x").fetchall() == []


def test_values_arrive_as_they_are() -> None:
    now, day = datetime(2026, 11, 23, 4, 5, 6, 7, tzinfo=UTC).replace(tzinfo=None), date(2026, 11, 23)
    with duckdb.connect() as con:
        found = Prepared(con).execute(
            "SELECT $at::TIMESTAMP, $text::VARCHAR, $n::BIGINT, $days::DATE[], $empty::BIGINT[]",
            at=now, text="it's", n=-(2**63) + 1, days=[day, day], empty=[],
        ).fetchall()  # fmt: skip
    assert found == [(now, "it's", -(2**63) + 1, [day, day], [])]


def test_more_statements_than_are_kept_still_run() -> None:
    with duckdb.connect() as con:
        prepared = Prepared(con)
        for _ in range(2):
            for number in range(STATEMENTS_MAX + 1):
                assert prepared.execute(f"SELECT {number}").fetchall() == [(number,)]
        kept = con.execute("SELECT count(*) FROM duckdb_prepared_statements()").fetchone()
    assert kept == (STATEMENTS_MAX,)

"""The queries of a dashboard as Grafana sends them, run by DuckDB of the readers' version in a process of its own.

`run` starts this very file with that DuckDB first on its path; as a child it imports nothing but the standard library
and that DuckDB.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHILD_SECONDS = 120.0
ZONES = ("UTC", "Pacific/Auckland")
"""Session time zones that must give the same answer."""


def run(site: Path, catalog: Path, queries: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What each query gives: `error`, or `columns` (pairs of name and type), `rows` and `seconds`.

    `zones_differ` tells that the answer depends on the session's time zone.
    """
    from tests.support.reader_engine import reader_environment

    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps({"catalog": str(catalog), "queries": dict(queries)}),
        env=reader_environment(site),
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return answers


def _answer(con: Any, sql: str) -> dict[str, Any]:
    import duckdb

    try:
        seconds = min(_seconds(con, sql), _seconds(con, sql))
        # One transaction: now() is its start, so that the answers can be compared.
        con.execute("BEGIN")
        try:
            answers = [_rows_in(con, zone, sql) for zone in ZONES]
        finally:
            con.execute("ROLLBACK")
        con.execute(sql)
    except duckdb.Error as error:
        return {"error": str(error)}
    columns = [[column[0], str(column[1])] for column in con.description]
    rows = [[value if isinstance(value, (int, float)) else _text(value) for value in row] for row in answers[0]]
    return {"columns": columns, "rows": rows, "seconds": seconds, "zones_differ": answers[0] != answers[1]}


def _seconds(con: Any, sql: str) -> float:
    begin = time.perf_counter()
    con.execute(sql).fetchall()
    return time.perf_counter() - begin


def _rows_in(con: Any, zone: str, sql: str) -> list[tuple[Any, ...]]:
    con.execute(f"SET TimeZone = '{zone}'")
    rows: list[tuple[Any, ...]] = con.execute(sql).fetchall()
    return rows


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _child() -> None:
    import duckdb

    asked = json.load(sys.stdin)
    with duckdb.connect(asked["catalog"], read_only=True) as con:
        json.dump({name: _answer(con, sql) for name, sql in asked["queries"].items()}, sys.stdout)


if __name__ == "__main__":
    _child()

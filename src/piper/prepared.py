"""Prepared statements: planned once, run for every batch. To plan the SQL of a small batch costs more than to run it.

DuckDB keeps a plan until the catalog of a database that it touches changes, so what runs for every batch must not make
or drop tables or views there: work tables are truncated and filled, and Arrow data comes in by `given`.

DuckDB 1.5 also keeps what it concluded from a table's statistics (`x > 5` is never true, so no rows) when the table
has got other rows since; so an instance with prepared statements draws no such conclusions (bench/batch.py says what
all of this saves).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any

import duckdb
import pyarrow as pa

from piper.files import sql_literal

STATEMENTS_MAX = 64
"""Plans that one connection keeps: some SQL names what is found in a batch, and would pile up."""

Value = int | str | date | datetime

_numbers = itertools.count()


class Prepared:
    """The prepared statements of one connection, by their SQL. Belongs to the thread that has the connection."""

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self.con = con
        """The connection itself, for what is not run for every batch."""
        self._names: OrderedDict[str, str] = OrderedDict()
        self._slots: dict[str, _Slot] = {}
        con.execute("SET disabled_optimizers = 'statistics_propagation'")

    def execute(self, sql: str, **values: Value | Sequence[Value]) -> duckdb.DuckDBPyConnection:
        """Run `sql`, one statement, whose parameters `$name` are `values`; the same text is planned once."""
        name = self._names.get(sql)
        if name is None:
            if len(self._names) >= STATEMENTS_MAX:
                self.con.execute(f"DEALLOCATE {self._names.popitem(last=False)[1]}")
            name = f"piper_{next(_numbers)}"
            self.con.execute(f"PREPARE {name} AS {sql}")
            self._names[sql] = name
        self._names.move_to_end(sql)
        given = ", ".join(f"{key} := {_literal(value)}" for key, value in values.items())
        return self.con.execute(f"EXECUTE {name}({given})" if given else f"EXECUTE {name}")

    @contextmanager
    def given(self, name: str, table: pa.Table) -> Iterator[None]:
        """Have the relation `name` in statements hold the rows of `table`, whose columns are the same every time."""
        slot = self._slots.get(name)
        if slot is None:
            slot = self._slots[name] = _Slot(table)
            self.con.register(name, slot)
        slot.table = table
        try:
            yield
        finally:
            slot.table = table.schema.empty_table()


def _literal(value: Value | Sequence[Value]) -> str:
    match value:
        case datetime():
            return f"TIMESTAMP '{value.isoformat(sep=' ')}'"
        case date():
            return f"DATE '{value.isoformat()}'"
        case str():
            return f"'{sql_literal(value)}'"
        case int():
            return f"{value:d}::BIGINT"
        case _:
            return f"[{', '.join(map(_literal, value))}]"


class _Slot:
    """What a name stands for: the Arrow table that is in it. DuckDB asks for its rows whenever a statement runs."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        table: Any = self.table  # typed by some versions of pyarrow only
        return table.__arrow_c_stream__(requested_schema)

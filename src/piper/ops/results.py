"""Results of queries: a table for people, CSV, JSON and Parquet for programs. Rows are fetched as they are written."""

from __future__ import annotations

import csv
import datetime as dt
import enum
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice
from typing import Any

import duckdb
from rich.console import Console
from rich.table import Table
from rich.text import Text

from piper.exits import UsageError
from piper.ops.terminal import one_line, printable, spelled_json

TABLE_ROWS = 200
"""More than a screen; who wants all takes another format."""
FETCH_ROWS = 10_000
SPOOL_BYTES = 16 * 1024 * 1024
_NUMBERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE"}
_INTEGER_MAX = 2**53
"""Beyond it a reader of JSON may lose digits, so it gets text."""


class Format(enum.StrEnum):
    """How a result is written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


def write_result(con: duckdb.DuckDBPyConnection, form: Format, out: Console) -> int:
    """Write what `con` has just been asked; returns how many rows. Raises UsageError for Parquet on a terminal."""
    match form:
        case Format.TABLE:
            return _write_table(con, out)
        case Format.CSV:
            return _write_csv(con)
        case Format.JSON:
            return _write_json(con)
        case Format.PARQUET:
            return _write_parquet(con)


def _columns(con: duckdb.DuckDBPyConnection) -> list[tuple[str, str]]:
    """(name, type) of each column; a name that comes again gets a number."""
    found: dict[str, str] = {}
    for name, kind, *_ in con.description or []:
        unique, number = str(name), 1
        while unique in found:
            number += 1
            unique = f"{name}_{number}"
        found[unique] = str(kind)
    return list(found.items())


def _rows(con: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    """By way of Arrow: DuckDB's own conversion of times with a zone needs another package."""
    for batch in con.to_arrow_reader(FETCH_ROWS):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _write_table(con: duckdb.DuckDBPyConnection, out: Console) -> int:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name, kind in _columns(con):
        is_number = kind in _NUMBERS or kind.startswith("DECIMAL")
        table.add_column(Text(name), justify="right" if is_number else "left", overflow="fold")
    rows = list(islice(_rows(con), TABLE_ROWS + 1))
    for row in rows[:TABLE_ROWS]:
        table.add_row(*(_cell(value) for value in row))
    out.print(table)
    if len(rows) > TABLE_ROWS:
        out.print(Text(f"… and more rows; --format csv or json gives all, LIMIT fewer than {TABLE_ROWS}.", "dim"))
    return min(len(rows), TABLE_ROWS)


def _cell(value: Any) -> Text:
    if value is None:
        return Text("NULL", "dim")
    return Text("\n".join(shown(line) for line in _text(value).split("\n")))


def _write_csv(con: duckdb.DuckDBPyConnection) -> int:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    spelled = printable if sys.stdout.isatty() else str
    writer.writerow([name for name, _ in _columns(con)])
    count = 0
    for row in _rows(con):
        writer.writerow(["" if value is None else spelled(_text(value)) for value in row])
        count += 1
    sys.stdout.flush()
    return count


def _write_json(con: duckdb.DuckDBPyConnection) -> int:
    """One object, and only if there is no error on the way: it is written when the last row is there."""
    columns = _columns(con)
    described = [{"name": name, "type": kind} for name, kind in columns]
    count = 0
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES, "w+", encoding="utf-8") as spool:
        for row in _rows(con):
            record = {name: plain(value) for (name, _), value in zip(columns, row, strict=True)}
            spool.write(("," if count else "") + "\n" + spelled_json(json.dumps(record, ensure_ascii=False)))
            count += 1
        spool.seek(0)
        sys.stdout.write(f'{{"columns": {json.dumps(described)}, "rows": [')
        shutil.copyfileobj(spool, sys.stdout)
        sys.stdout.write("\n]}\n")
    sys.stdout.flush()
    return count


def _write_parquet(con: duckdb.DuckDBPyConnection) -> int:
    if sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal", hint="Send it to a file: --format parquet > result.parquet")
    from pyarrow import parquet

    count = 0
    reader = con.to_arrow_reader(FETCH_ROWS)
    with parquet.ParquetWriter(sys.stdout.buffer, reader.schema, compression="zstd") as writer:
        for batch in reader:
            writer.write_batch(batch)
            count += batch.num_rows
    sys.stdout.buffer.flush()
    return count


def plain(value: Any) -> Any:
    """A value of DuckDB as JSON has it: times in ISO 8601, NaN and infinity as null, long integers as text."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) <= _INTEGER_MAX else str(value)
        case float():
            return value if math.isfinite(value) else None
        case Decimal():  # a HUGEINT, as sums are, comes as one too
            return plain(int(value)) if value.as_tuple().exponent == 0 else float(value)
        case dict():
            return {str(key): plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case _:
            return _text(value)


def shown(value: Any) -> str:
    """A value on a terminal: on one line, and nothing in it that would steer the terminal."""
    return one_line(_text(value))


def _text(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case dt.datetime():  # without a zone it is UTC, as all times of the warehouse are
            return value.isoformat() if value.utcoffset() else f"{value.replace(tzinfo=None).isoformat()}Z"
        case dt.date() | dt.time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case dict() | list():
            return json.dumps(plain(value), ensure_ascii=False)
        case _:
            return str(value)

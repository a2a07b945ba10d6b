"""Scrub: gold after a change of masking. Its text gets the new form, and its file keeps nothing of the old one.

Gold holds no user column, but a folder or the code of a scope can be somebody's name. What can be computed again is,
from silver; rows of dates that silver has no more are only here, so all are translated in place. Deleted rows linger in
the free blocks of a DuckDB file, and readers get a copy of the file; so it is written anew.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb

from piper.files import FILE_MODE, fsync_path, sql_literal, swap_in
from piper.gold.store import ALIAS, NEW_FILE, WATERMARK_TABLE, attach, transaction

KEPT = frozenset({"event_type", "event_group"})
"""Closed vocabularies."""
_COPY = "scrubbed"


def text_columns(con: duckdb.DuckDBPyConnection) -> dict[str, list[str]]:
    """The columns of free text of every gold table that has any."""
    rows = con.execute(
        "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = ? AND data_type = 'VARCHAR'",
        [ALIAS],
    ).fetchall()
    found: dict[str, list[str]] = {}
    for table, column in rows:
        if column not in KEPT and not WATERMARK_TABLE.endswith(f".{table}"):
            found.setdefault(table, []).append(column)
    return found


def copy_scrubbed(
    con: duckdb.DuckDBPyConnection,
    path: Path,
    translate: Callable[[duckdb.DuckDBPyConnection, str, list[str]], Callable[[str], str]],
) -> None:
    """Translate all text of the attached gold database, and write it to a file beside `path`, durably.

    `translate(con, table, columns)` gives what makes SQL of a value that of its translation. No refresh may be under
    way from now until `put_in_place`.
    """
    with transaction(con):
        for table, columns in text_columns(con).items():
            qualified = f"{ALIAS}.main.{table}"
            translated = translate(con, qualified, columns)
            changes = ", ".join(f'"{column}" = {translated(f"{chr(34)}{column}{chr(34)}")}' for column in columns)
            con.execute(f"UPDATE {qualified} SET {changes}")
    copy = _copy_of(path)
    con.execute(f"DETACH DATABASE IF EXISTS {_COPY}")  # of one that failed half way
    for leftover in (copy, copy.with_name(f"{copy.name}.wal")):
        leftover.unlink(missing_ok=True)
    con.execute(f"ATTACH '{sql_literal(copy)}' AS {_COPY}{NEW_FILE}")
    try:
        con.execute(f"COPY FROM DATABASE {ALIAS} TO {_COPY}")
    finally:
        con.execute(f"DETACH {_COPY}")  # checkpoints, and says so when the disk is full
    copy.chmod(FILE_MODE)
    fsync_path(copy)


def put_in_place(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Have the copy take the place of the gold file. If we die in between, either file is whole and complete."""
    con.execute(f"CHECKPOINT {ALIAS}")  # its log must not be found beside the other file
    con.execute(f"DETACH {ALIAS}")
    try:
        swap_in(_copy_of(path), path)
    finally:
        attach(con, path)


def _copy_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.scrubbed")

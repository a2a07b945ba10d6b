"""The gold database file: attaching it, its tables, its watermarks.

Gold is derived, so its file is never worth saving: what is missing is made, what is damaged is set aside, and
the refresh fills it again from silver. Whatever is committed here survives a crash together with its
watermark; a death at any other moment costs one recomputation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import duckdb
import structlog

from piper.errors import DataRootError
from piper.files import FILE_MODE
from piper.gold.models import GoldModel

ALIAS = "gold"
"""The name under which the file is attached to the writer's DuckDB instance."""

NEW_FILE = " (BLOCK_SIZE 16384)"
"""Every column of a small table takes a block, and each refresh copies the file: the smallest block there is."""
WATERMARK_TABLE = f"{ALIAS}.main.gold_watermark"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Watermark:
    """Up to which silver commit a table is complete, when (naive UTC) and by which definition it was computed."""

    through_seq: int
    refreshed_at: datetime
    definition: str


def table_of(model: GoldModel) -> str:
    """Give the qualified name of the model's table."""
    return f"{ALIAS}.main.{model.name}"


def attach(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Attach the gold file as `gold` (a no-op when it is), made new if missing, set aside and made new if
    damaged.

    Raises `DataRootError` when the file can be neither read nor made, or another process holds it: that is no
    damage.
    """
    if _is_attached(con):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if damage := _damage_of(path):
        _set_aside(path, damage)
    quoted = str(path).replace("'", "''")
    try:
        con.execute(f"ATTACH '{quoted}' AS {ALIAS}{'' if path.exists() else NEW_FILE}")
        path.chmod(FILE_MODE)
    except duckdb.IOException as error:
        raise _unusable(path, error) from error


def create_tables(con: duckdb.DuckDBPyConnection, models: Sequence[GoldModel]) -> None:
    """Create what is missing, empty and typed, so that every gold table can be read from the start.

    A table of another definition is left alone: the next refresh replaces it together with its rows.
    """
    with transaction(con):
        con.execute(
            f"CREATE TABLE IF NOT EXISTS {WATERMARK_TABLE} "
            "(model VARCHAR, through_seq BIGINT, refreshed_at_utc TIMESTAMP, definition VARCHAR)"
        )
        for model in models:
            con.execute(f"CREATE TABLE IF NOT EXISTS {table_of(model)} ({_column_list(model)})")


def recreate_table(con: duckdb.DuckDBPyConnection, model: GoldModel) -> None:
    """Replace the model's table by an empty one of its present columns, inside the caller's transaction."""
    con.execute(f"CREATE OR REPLACE TABLE {table_of(model)} ({_column_list(model)})")


def read_watermarks(con: duckdb.DuckDBPyConnection) -> dict[str, Watermark]:
    """Give the watermark of every model that was ever computed."""
    rows = con.execute(f"SELECT model, through_seq, refreshed_at_utc, definition FROM {WATERMARK_TABLE}").fetchall()
    return {model: Watermark(*mark) for model, *mark in rows}


def write_watermark(con: duckdb.DuckDBPyConnection, name: str, mark: Watermark) -> None:
    """Record how far the model's table is complete, inside the caller's transaction."""
    con.execute(f"DELETE FROM {WATERMARK_TABLE} WHERE model = ?", [name])
    con.execute(
        f"INSERT INTO {WATERMARK_TABLE} VALUES (?, ?, ?, ?)",
        [name, mark.through_seq, mark.refreshed_at, mark.definition],
    )


@contextmanager
def transaction(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Commit at the end, roll back on whatever is raised."""
    con.execute("BEGIN TRANSACTION")
    try:
        yield
        con.execute("COMMIT")
    except BaseException:
        # A failed COMMIT has already ended the transaction, and a dead database cannot roll back.
        with suppress(duckdb.Error):
            con.execute("ROLLBACK")
        raise


def _column_list(model: GoldModel) -> str:
    return ", ".join(f'"{column.name}" {column.type}' for column in model.columns)


def _is_attached(con: duckdb.DuckDBPyConnection) -> bool:
    query = "SELECT 1 FROM duckdb_databases() WHERE database_name = ?"
    return con.execute(query, [ALIAS]).fetchone() is not None


def _damage_of(path: Path) -> str | None:
    """Read the whole file through a DuckDB of its own and say what is wrong with it, if anything.

    The writer's instance never sees a broken file: an error while it is attached there could stop the
    manifest as well. Gold is small, so that reading it all (blocks carry checksums) takes well under a
    second.
    """
    if not path.exists():
        return "its log is there without it" if _log_of(path).exists() else None
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise _unusable(path, error) from error
    quoted = str(path).replace("'", "''")
    try:
        with duckdb.connect() as probe:
            probe.execute(f"ATTACH '{quoted}' AS probed (READ_ONLY)")
            names = probe.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'probed'").fetchall()
            for (name,) in names:
                probe.execute(f'SELECT bit_xor(hash(COLUMNS(*))) FROM probed.main."{name}"').fetchall()
    except duckdb.Error as error:
        # A file that someone else has open, here or in another process, is not a damaged one.
        if isinstance(error, duckdb.BinderException) or "Could not set lock" in str(error):
            raise _unusable(path, error) from error
        return str(error)
    return None


def _set_aside(path: Path, damage: str) -> None:
    """Rename the log and the file.

    If we die between, the file alone is either still damaged and renamed next time, or an older state whose
    watermarks fit its rows.
    """
    aside = next(
        candidate
        for number in range(1, 10_000)
        if not (candidate := path.with_name(f"{path.name}.damaged-{number}")).exists()
    )
    try:
        # The log first: a log without its database would be replayed into the new one.
        for source, target in ((_log_of(path), _log_of(aside)), (path, aside)):
            if source.exists():
                source.replace(target)
    except OSError as error:
        raise _unusable(path, error) from error
    _log.error("gold_set_aside", path=str(path), renamed_to=str(aside), damage=damage)


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.wal")


def _unusable(path: Path, error: Exception) -> DataRootError:
    return DataRootError(
        f"the gold database {path} cannot be opened: {error}",
        hint="Check owner, mode and disk; close programs that have it open, they should read warehouse/.",
    )

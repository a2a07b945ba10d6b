"""The gold database file: attaching it, its tables, its watermarks.

Gold is derived, so its file is never worth saving: what is missing is made, what is damaged is set aside, and
the refresh fills it again from silver. Whatever is committed here survives a crash together with its
watermark; a death at any other moment costs one recomputation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import structlog

from piper.errors import DataRootError
from piper.files import FILE_MODE
from piper.gold.models import GoldModel

ALIAS = "gold"
"""The name under which the file is attached to the writer's DuckDB instance."""

NEW_FILE = " (BLOCK_SIZE 16384)"
"""Every column of a small table takes a block, and each refresh copies the file: the smallest block there is."""
WATERMARK_TABLE = f"{ALIAS}.main.gold_watermark"
KEPT_TABLE = f"{ALIAS}.main.gold_kept"
"""One row once silver was pruned: rows of periods that reach back before its date can never be computed again."""

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
        con.execute(f"CREATE TABLE IF NOT EXISTS {KEPT_TABLE} (before DATE)")
        for model in models:
            con.execute(f"CREATE TABLE IF NOT EXISTS {table_of(model)} ({_column_list(model)})")


def recreate_table(con: duckdb.DuckDBPyConnection, model: GoldModel, keep_before: date | None) -> None:
    """Replace the model's table by one of its present columns, inside the caller's transaction.

    It is empty but for the rows of periods before `keep_before`, in the columns that they have in common.
    """
    kept = None
    if keep_before is not None:
        where = f'"{model.period_column}" < ?'
        kept = con.execute(f"SELECT * FROM {table_of(model)} WHERE {where}", [keep_before]).to_arrow_table()
    con.execute(f"CREATE OR REPLACE TABLE {table_of(model)} ({_column_list(model)})")
    if kept is not None:
        _insert_kept(con, model, kept)


def _insert_kept(con: duckdb.DuckDBPyConnection, model: GoldModel, kept: pa.Table) -> None:
    common = [column.name for column in model.columns if column.name in kept.column_names]
    con.register("kept_rows", kept.select(common))
    try:
        con.execute(f"INSERT INTO {table_of(model)} BY NAME SELECT * FROM kept_rows")
    finally:
        con.unregister("kept_rows")


def read_kept_before(con: duckdb.DuckDBPyConnection) -> date | None:
    """Give the first date that silver still holds whole; None when it was never pruned."""
    row = con.execute(f"SELECT max(before) FROM {KEPT_TABLE}").fetchone()
    return row[0] if row else None


def write_kept_before(con: duckdb.DuckDBPyConnection, before: date) -> None:
    """Record, inside the caller's transaction, that silver gives up what is before this date. It never goes back."""
    con.execute(f"INSERT INTO {KEPT_TABLE} VALUES (?)", [before])
    con.execute(f"DELETE FROM {KEPT_TABLE} WHERE before < (SELECT max(before) FROM {KEPT_TABLE})")


FirstPeriod = Callable[[GoldModel, date], date | None]
"""Gives the first period of a model that is computed, where silver is whole from a date on; None: it keeps none."""


def adopt_kept(
    con: duckdb.DuckDBPyConnection, models: Sequence[GoldModel], published: Path, first_period: FirstPeriod
) -> None:
    """Fetch the rows that silver can no longer give from the published copy, when the gold database was lost.

    Does nothing when this database knows of them, or there is no readable copy that does.
    """
    if read_kept_before(con) is not None or not published.exists():
        return
    try:
        found = _read_kept(published, models, first_period)
    except duckdb.Error as error:
        _log.warning("kept_gold_not_readable", path=str(published), error=str(error))
        return
    if found is None:
        return
    before, tables = found
    with transaction(con):
        write_kept_before(con, before)
        for model in models:
            if model.name in tables:
                where = f'"{model.period_column}" < ?'
                con.execute(f"DELETE FROM {table_of(model)} WHERE {where}", [first_period(model, before)])
                _insert_kept(con, model, tables[model.name])
    _log.warning("kept_gold_adopted", path=str(published), before=before.isoformat())


def _read_kept(
    published: Path, models: Sequence[GoldModel], first_period: FirstPeriod
) -> tuple[date, dict[str, pa.Table]] | None:
    """Read them by a DuckDB of its own, which may fail. None: silver was never pruned, as far as this file knows."""
    quoted = str(published).replace("'", "''")
    with duckdb.connect() as probe:
        probe.execute(f"ATTACH '{quoted}' AS published (READ_ONLY)")
        rows = probe.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'published'").fetchall()
        names = {name for (name,) in rows}
        if "gold_kept" not in names:
            return None
        row = probe.execute("SELECT max(before) FROM published.main.gold_kept").fetchone()
        if row is None or row[0] is None:
            return None
        before: date = row[0]
        tables = {}
        for model in models:
            if model.name in names and first_period(model, before) is not None:
                select = f"""SELECT * FROM published.main.{model.name} WHERE "{model.period_column}" < ?"""
                tables[model.name] = probe.execute(select, [first_period(model, before)]).to_arrow_table()
        return before, tables


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

"""Does the manifest belong to its data root? One that is lost, or came back from a backup, knows less than the data.

To go on with it would be worse than to stop: events would be in silver twice, and chunks would be overwritten by others
of the same name. `piper rebuild` is the way out of both.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from piper.errors import DataRootError, ManifestDamagedError
from piper.files import sql_literal
from piper.layout import Layout
from piper.silver.datasets import EMPTY_CHUNK
from piper.silver.segments import highest, segments_in


def log_of(manifest: Path) -> Path:
    """DuckDB's write-ahead log of a database file."""
    return manifest.with_name(f"{manifest.name}.wal")


def check_not_lost(layout: Layout) -> None:
    """Refuse to make a new manifest beside data that only the lost one could explain; raises ManifestDamagedError."""
    path = layout.manifest
    try:
        is_empty = path.stat().st_size == 0
    except FileNotFoundError:
        is_empty = True
    if is_empty and log_of(path).exists():
        raise ManifestDamagedError(path, "its log is there without it")
    if is_empty and holds_data(layout):
        raise ManifestDamagedError(path, f"it is missing or empty, and {layout.data_root} holds ingested data")


def holds_data(layout: Layout) -> bool:
    """Whether a manifest has ever worked here: it published a tail, or sealed a chunk."""
    if segments_in(layout.tail):
        return True
    if not layout.silver.is_dir():
        return False
    return any(path.name != EMPTY_CHUNK for path in layout.silver.rglob("*.parquet"))


def check_is_there(con: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    """Refuse a data root that lacks what the open manifest has put there: it is not mounted, or it was lost.

    To go on would write below a bare mount point, where nobody finds it later. Raises DataRootError.
    """
    if (
        layout.silver.is_dir()
        or not con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'chunks'").fetchone()
    ):
        return
    row = con.execute("SELECT count(*) FROM chunks").fetchone()
    if row and row[0]:
        raise DataRootError(
            f"{layout.silver} is missing, and the manifest has {row[0]:,} chunks in it",
            hint="Is the data root mounted? If it was lost, restore it from a backup and run `piper rebuild`.",
        )


def check_not_older(layout: Layout, commit_seq: int) -> None:
    """Refuse a manifest that stands before what was published from it; raises ManifestDamagedError.

    A tail that is missing or cannot be read proves nothing: the next publish replaces it.
    """
    segments = segments_in(layout.tail)
    if not segments:
        return
    try:
        published = max(highest(segments[-1], "published_through"), default=0)
    except duckdb.Error:
        return
    if published > commit_seq:
        raise ManifestDamagedError(
            layout.manifest,
            f"it stands at commit {commit_seq}, readers have seen commit {published}: is it from a backup?",
        )


def database_sequences(path: Path) -> list[int]:
    """The highest commits that a manifest speaks of, read by an instance of its own."""
    return _highest(path, "commit_seq", "sealed_through") or [0]


def last_rewrite(path: Path) -> int:
    """The last rewrite that a manifest speaks of; 0 for one from before there were any."""
    return max(_highest(path, "rewritten_through"), default=0)


def _highest(path: Path, *columns: str) -> list[int]:
    """Highest values of those of `columns` that the file has."""
    with duckdb.connect() as probe:
        probe.execute(f"ATTACH '{sql_literal(path)}' AS old (READ_ONLY)")
        known = {
            (table, column)
            for table, column in probe.execute(
                "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = 'old'"
            ).fetchall()
        }
        wanted = ", ".join(f"max({column})" for column in columns if ("progress", column) in known)
        row = probe.execute(f"SELECT {wanted} FROM old.main.progress").fetchone() if wanted else None
    return [int(value) for value in row or () if value is not None]

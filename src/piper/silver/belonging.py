"""Does the manifest belong to its data root? One that is lost, or came back from a backup, knows less than the data.

To go on with it would be worse than to stop: events would be in silver twice, and chunks would be overwritten by others
of the same name. `piper rebuild` is the way out of both.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from piper.errors import ManifestDamagedError
from piper.files import sql_literal
from piper.layout import Layout
from piper.silver.datasets import EMPTY_CHUNK


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
    if layout.tail.exists():
        return True
    if not layout.silver.is_dir():
        return False
    return any(path.name != EMPTY_CHUNK for path in layout.silver.rglob("*.parquet"))


def check_not_older(layout: Layout, commit_seq: int) -> None:
    """Refuse a manifest that stands before what was published from it; raises ManifestDamagedError.

    A tail that is missing or cannot be read proves nothing: the next publish replaces it.
    """
    if not layout.tail.exists():
        return
    try:
        published = max(database_sequences(layout.tail))
    except duckdb.Error:
        return
    if published > commit_seq:
        raise ManifestDamagedError(
            layout.manifest,
            f"it stands at commit {commit_seq}, readers have seen commit {published}: is it from a backup?",
        )


def database_sequences(path: Path) -> list[int]:
    """The highest commits that a published tail or a manifest speaks of, read by an instance of its own."""
    with duckdb.connect() as probe:
        probe.execute(f"ATTACH '{sql_literal(path)}' AS old (READ_ONLY)")
        is_manifest = probe.execute(
            "SELECT 1 FROM duckdb_tables() WHERE database_name = 'old' AND table_name = 'progress'"
        ).fetchone()
        table = "progress" if is_manifest else "events_tail"
        row = probe.execute(f"SELECT max(commit_seq), max(sealed_through) FROM old.main.{table}").fetchone()
    return [int(value) for value in row or () if value is not None] or [0]

"""What takes how much room, as the manifest knows it; the tree is never walked."""

from __future__ import annotations

from pathlib import Path

import duckdb

from piper.silver.datasets import DATASETS
from piper.silver.segments import segments_in
from piper.silver.store import Store


def storage_bytes(store: Store) -> dict[str, int]:
    """Bytes on disk by kind, from the manifest and a few `stat` calls. In the writer's thread."""
    layout, con = store.layout, store.con
    return {
        "state": sum(entry.stat().st_size for entry in layout.state.iterdir() if entry.is_file())
        + store.keys.size_bytes(con),
        "tail": sum(map(_size, segments_in(layout.tail))),
        "gold": _size(layout.gold),
        "silver": _number(con, "SELECT coalesce(sum(size_bytes), 0)::BIGINT FROM chunks"),
        "quarantine": _number(con, "SELECT coalesce(sum(size_bytes), 0)::BIGINT FROM quarantine_files"),
    }


def chunk_counts(con: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Sealed chunks by dataset. `con`: the manifest's connection, or another thread's cursor."""
    rows = con.execute("SELECT dataset, count(*) FROM ingest_manifest.main.chunks GROUP BY dataset").fetchall()
    return dict.fromkeys(DATASETS, 0) | dict(rows)


def hidden_chunks(con: duckdb.DuckDBPyConnection) -> int:
    """Chunks that are hidden from readers and not deleted yet. `con`: as above."""
    return _number(con, "SELECT count(*) FROM ingest_manifest.main.hidden_chunks")


def _number(con: duckdb.DuckDBPyConnection, query: str) -> int:
    row = con.execute(query).fetchone()
    return int(row[0]) if row else 0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

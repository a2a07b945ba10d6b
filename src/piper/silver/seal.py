"""Seal: rows become immutable Parquet chunks, one a partition and commit, under names that are never used again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb

from piper.failpoints import failpoint
from piper.files import fsync_path, make_directory
from piper.silver.datasets import DATASETS, UNKNOWN_PARTITION, Dataset, projection_sql


@dataclass(frozen=True, slots=True)
class StagedChunk:
    """A chunk that is written and fsynced, and not yet in its place. `path` is relative to silver/."""

    dataset: str
    event_date: date
    path: str
    rows: int
    size_bytes: int


def stage_chunks(con: duckdb.DuckDBPyConnection, staged: Path, *, with_fresh: bool) -> list[StagedChunk]:
    """Write all tail rows, and those of `fresh`, as chunks below `staged`, durably. DuckDB's COPY itself never fsyncs."""
    make_directory(staged)
    chunks: list[StagedChunk] = []
    for dataset in DATASETS.values():
        rows = f"SELECT {dataset.column_list} FROM {dataset.tail_table}"
        if with_fresh:
            rows += f" UNION ALL SELECT {dataset.column_list} FROM ({projection_sql(dataset.name)})"
        chunks += _copy(con, dataset, rows, staged)
        failpoint("seal.copied")
    for directory in {staged.parent, staged, *((staged / chunk.path).parent for chunk in chunks)}:
        fsync_path(directory)
    return chunks


def _copy(con: duckdb.DuckDBPyConnection, dataset: Dataset, rows: str, staged: Path) -> list[StagedChunk]:
    partitions = ["event_date"]
    if dataset.has_type_partition:
        partitions.append("event_type")
        known = f"CASE WHEN is_known_type THEN event_type ELSE '{UNKNOWN_PARTITION}' END"
        rows = f"SELECT * REPLACE ({known} AS event_type), event_type AS event_type_name FROM ({rows})"
    target = staged / dataset.name
    written = con.execute(
        f"""COPY ({rows}) TO '{_literal(target)}' (
            FORMAT parquet, PARTITION_BY ({", ".join(partitions)}), COMPRESSION zstd,
            FILENAME_PATTERN '{staged.name}-{{i}}', RETURN_STATS)"""
    ).fetchall()
    chunks: list[StagedChunk] = []
    for name, count, size_bytes, _footer, _statistics, keys in written:
        path = Path(name)
        fsync_path(path)
        relative = str(path.relative_to(staged))
        chunks.append(StagedChunk(dataset.name, date.fromisoformat(keys["event_date"]), relative, count, size_bytes))
    return chunks


def _literal(path: Path) -> str:
    return str(path).replace("'", "''")

"""Seal: rows become immutable Parquet chunks, one a partition and commit, under names that are never used again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import duckdb
import pyarrow as pa

from piper.failpoints import failpoint
from piper.files import FILE_MODE, fsync_path, make_directory, sql_literal
from piper.silver.datasets import DATASETS, UNKNOWN_PARTITION, Dataset
from piper.silver.staging import staged_name

PARTITIONS_AT_ONCE = 100
"""Partitions that one COPY writes: DuckDB holds buffers for each column of each of them, so that a first run over many
weeks of a spool would take more memory than duckdb.memory_limit allows."""


@dataclass(frozen=True, slots=True)
class StagedChunk:
    """A chunk that is written and fsynced, and not yet in its place. `path` is relative to silver/."""

    dataset: str
    event_date: date
    path: str
    rows: int
    size_bytes: int


def stage_chunks(
    con: duckdb.DuckDBPyConnection,
    others_con: duckdb.DuckDBPyConnection,
    staged: Path,
    fresh: Callable[[str], str] | None,
    progress: Callable[[], None] = lambda: None,
) -> list[StagedChunk]:
    """Write all tail rows, and new ones, as chunks in `staged`, durably. DuckDB's COPY itself never fsyncs.

    `fresh`: gives the SELECT of a dataset's new rows, by its name; None: there are none. `progress` is called for each
    chunk, by two threads: events of ten thousand dates, which anybody can write, take minutes.

    `staged` is one flat directory: the place of each chunk is spelled in its name, so one directory has to be synced
    and removed and not one a partition (bench/choices.py, rmdir).
    """
    make_directory(staged)
    copied = staged.with_suffix(".copy")
    shutil.rmtree(copied, ignore_errors=True)  # of an attempt that failed: COPY refuses a directory with files
    all_events, *others = DATASETS.values()
    with ThreadPoolExecutor(1) as beside:  # one scan of up to a row group uses one core, so two copies run side by side
        pending = beside.submit(
            lambda: [c for d in others for c in _copy(others_con, d, copied, staged, fresh, progress)]
        )
        chunks = _copy(con, all_events, copied, staged, fresh, progress)
        chunks += pending.result()
    shutil.rmtree(copied, ignore_errors=True)
    fsync_path(staged)
    fsync_path(staged.parent)
    return chunks


def _copy(
    con: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    root: Path,
    staged: Path,
    fresh: Callable[[str], str] | None,
    progress: Callable[[], None],
) -> list[StagedChunk]:
    rows = f"SELECT {dataset.column_list} FROM {dataset.tail_table}"
    if fresh is not None:
        rows += f" UNION ALL SELECT {dataset.column_list} FROM ({fresh(dataset.name)})"
    partitions = ["event_date"]
    if dataset.has_type_partition:
        partitions.append("event_type")
        known = f"CASE WHEN is_known_type THEN event_type ELSE '{UNKNOWN_PARTITION}' END"
        rows = f"SELECT * REPLACE ({known} AS event_type), event_type AS event_type_name FROM ({rows})"
    chunks: list[StagedChunk] = []
    for number, (first, last) in enumerate(_spans(con, rows, partitions)):
        into = root / str(number) / dataset.name
        make_directory(into)
        chunks += _copy_span(con, dataset, f"FROM ({rows}) WHERE event_date BETWEEN DATE '{first}' AND DATE '{last}'",
                             partitions, into, staged, progress)  # fmt: skip
    failpoint("seal.copied")
    return chunks


def _spans(con: duckdb.DuckDBPyConnection, rows: str, partitions: Sequence[str]) -> list[tuple[date, date]]:
    """Runs of dates, oldest first, of at most PARTITIONS_AT_ONCE partitions (or one date) each."""
    counts = con.execute(
        f"""SELECT event_date, count(*) FROM (SELECT DISTINCT {", ".join(partitions)} FROM ({rows}))
        GROUP BY event_date ORDER BY event_date"""
    ).fetchall()
    spans: list[tuple[date, date]] = []
    room = 0
    for day, count in counts:
        if count > room:
            spans.append((day, day))
            room = PARTITIONS_AT_ONCE
        spans[-1] = (spans[-1][0], day)
        room -= count
    return spans


def _copy_span(
    con: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    rows: str,
    partitions: Sequence[str],
    copied: Path,
    staged: Path,
    progress: Callable[[], None],
) -> list[StagedChunk]:
    written = con.execute(
        f"""COPY ({rows}) TO '{sql_literal(copied)}' (
            FORMAT parquet, PARTITION_BY ({", ".join(partitions)}), COMPRESSION zstd, COMPRESSION_LEVEL 1,
            FILENAME_PATTERN '{staged.name}-{{i}}', RETURN_FILES)"""
    ).fetchone()
    files = [Path(name) for name in written[1]] if written else []
    rows_of = _row_counts(con, files)
    chunks: list[StagedChunk] = []
    for file in files:
        progress()
        file.chmod(FILE_MODE)
        fsync_path(file)
        path = str(file.relative_to(copied.parent))
        day = file.relative_to(copied).parts[0].removeprefix("event_date=")
        chunks.append(StagedChunk(dataset.name, date.fromisoformat(day), path, rows_of[str(file)], file.stat().st_size))
        file.rename(staged / staged_name(path))
        failpoint("seal.staged")
    return chunks


def insert_chunks(con: duckdb.DuckDBPyConnection, chunks: Sequence[StagedChunk], commit_seq: int) -> None:
    """Enter chunks in the manifest, inside the caller's transaction."""
    if not chunks:
        return
    table = pa.table(
        {
            "dataset": [chunk.dataset for chunk in chunks],
            "event_date": pa.array([chunk.event_date for chunk in chunks], pa.date32()),
            "path": [chunk.path for chunk in chunks],
            "row_count": [chunk.rows for chunk in chunks],
            "size_bytes": [chunk.size_bytes for chunk in chunks],
        }
    )
    con.register("new_chunks", table)
    try:
        con.execute("INSERT INTO chunks SELECT *, ? FROM new_chunks", [commit_seq])
    finally:
        con.unregister("new_chunks")


def _row_counts(con: duckdb.DuckDBPyConnection, files: list[Path]) -> dict[str, int]:
    if not files:
        return {}
    names = ", ".join(f"'{sql_literal(file)}'" for file in files)
    return dict(con.execute(f"SELECT file_name, num_rows FROM parquet_file_metadata([{names}])").fetchall())

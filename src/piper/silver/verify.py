"""Verify: is every chunk that the manifest knows in its place and whole, and is there no other?

Looking at existence and size costs one `stat` a chunk, and finds what disks, mounts and people do to files. Reading
every value (`deep`) finds the rest, at the cost of reading silver once.

Readers fail on one broken file, whatever day they ask for. So what is there and is no whole chunk of the manifest is
set aside: renamed to `….parquet.damaged`, which no view matches, and never deleted. Its rows are missing then, as with
a deleted chunk, until it is put back or `piper repair` has made them again.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import duckdb

from piper.files import fsync_path, sql_literal
from piper.layout import Layout
from piper.silver.datasets import DATASETS
from piper.silver.diagnosis import unusable
from piper.silver.salvage import DAMAGED, chunk_paths, stop_if_machine
from piper.silver.staging import staged_name


class Fault(enum.StrEnum):
    """What is wrong with a chunk."""

    MISSING = "missing"
    SIZE = "size"
    """It has another size than it was sealed with, such as none; or it is no regular file."""
    CONTENT = "content"
    """It cannot be read, or holds another number of rows."""
    FOREIGN = "foreign"
    """The manifest does not know it: its rows would count twice, or not fit."""


@dataclass(frozen=True, slots=True)
class BrokenChunk:
    """A chunk with a fault. `path` is relative to silver/; `rows`: what the manifest has, 0 for a foreign one."""

    dataset: str
    event_date: date | None
    path: str
    rows: int
    fault: Fault
    detail: str

    def as_json(self) -> dict[str, Any]:
        """For people and programs."""
        return {
            "path": self.path,
            "dataset": self.dataset,
            "event_date": self.event_date.isoformat() if self.event_date else None,
            "rows": self.rows,
            "fault": self.fault.value,
            "detail": self.detail,
        }


@dataclass(frozen=True, slots=True)
class _Known:
    dataset: str
    event_date: date
    path: str
    rows: int
    size: int


def find_broken(
    con: duckdb.DuckDBPyConnection,
    layout: Layout,
    *,
    reveal_lock: AbstractContextManager[object] | None = None,
    engine: Callable[[], duckdb.DuckDBPyConnection] | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> tuple[int, list[BrokenChunk]]:
    """(how many chunks the manifest knows, those with a fault). Changes nothing.

    `con`: any connection to the manifest, outside a transaction. `reveal_lock`: that of the open store, if others write
    meanwhile. `engine`: what gives a DuckDB to read every value with; None: only names and sizes are looked at.
    Raises DataRootError when it is the machine that fails and not a file.
    """
    there = _present(layout)  # before the manifest is asked: what is there by now is in it by then
    with reveal_lock or nullcontext():
        known = _known(con)
        hidden = {path for (path,) in con.execute("SELECT path FROM ingest_manifest.main.hidden_chunks").fetchall()}
    found: list[BrokenChunk] = []
    for done, chunk in enumerate(known, 1):
        fault = _fault(layout, chunk)
        if fault is None and engine is not None:
            fault = _content_fault(engine(), layout, chunk)
        if fault is not None:
            found.append(BrokenChunk(chunk.dataset, chunk.event_date, chunk.path, chunk.rows, *fault))
        on_progress(done, len(known))
    if found:
        still = {chunk.path for chunk in _known(con)}  # a rewrite may have replaced them meanwhile
        found = [chunk for chunk in found if chunk.path in still]
    ours = hidden.union(chunk.path for chunk in known)
    return len(known), found + _foreign(layout, there, ours)


def set_aside(layout: Layout, broken: Iterable[BrokenChunk]) -> list[str]:
    """Take what is there of these chunks out of every reader's sight; returns their paths. Raises OSError."""
    moved = []
    for chunk in broken:
        path = layout.silver / chunk.path
        try:
            path.rename(path.with_name(path.name + DAMAGED))
        except FileNotFoundError:
            continue
        fsync_path(path.parent)
        moved.append(chunk.path)
    return moved


def _known(con: duckdb.DuckDBPyConnection) -> list[_Known]:
    rows = con.execute(
        """SELECT dataset, event_date, path, row_count, size_bytes FROM ingest_manifest.main.chunks
        ORDER BY event_date, path"""
    ).fetchall()
    return [_Known(*row) for row in rows]


def _present(layout: Layout) -> list[tuple[str, str]]:
    """(dataset, path below silver/) of every chunk that is there; a link stands for one that is hidden."""
    return [
        (name, str(path.relative_to(layout.silver)))
        for name in DATASETS
        for path in chunk_paths(layout.silver / name)
        if not path.is_symlink()
    ]


def _fault(layout: Layout, chunk: _Known) -> tuple[Fault, str] | None:
    path = layout.silver / chunk.path
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        if _is_staged(layout, chunk.path):  # the next open reveals it
            return None
        aside = path.with_name(path.name + DAMAGED)
        return Fault.MISSING, f"set aside as {aside.name}" if aside.exists() else "it is not there"
    except OSError as error:
        raise unusable(error) from error
    if not stat.S_ISREG(status.st_mode):
        return Fault.SIZE, "it is no regular file"
    if status.st_size != chunk.size:
        return Fault.SIZE, f"it has {status.st_size:,} bytes, {chunk.size:,} were sealed"
    return None


def _is_staged(layout: Layout, path: str) -> bool:
    return any(layout.staging.glob(f"*/{_no_pattern(staged_name(path))}"))


def _no_pattern(name: str) -> str:
    return name.replace("[", "[[]")


def _content_fault(con: duckdb.DuckDBPyConnection, layout: Layout, chunk: _Known) -> tuple[Fault, str] | None:
    dataset, path = DATASETS[chunk.dataset], layout.silver / chunk.path
    rows = dataset.chunk_rows_sql(f"['{sql_literal(path)}']")
    try:
        found = con.execute(f"SELECT count(*), bit_xor(hash({dataset.column_list})) FROM ({rows})").fetchone()
    except duckdb.InterruptException:
        raise
    except duckdb.Error as error:
        stop_if_machine(error, path)
        return Fault.CONTENT, str(error).strip().splitlines()[0]
    count = found[0] if found else 0
    if count != chunk.rows:
        return Fault.CONTENT, f"it has {count:,} rows, {chunk.rows:,} were sealed"
    return None


def _foreign(layout: Layout, there: Sequence[tuple[str, str]], ours: set[str]) -> list[BrokenChunk]:
    def is_there(path: Path) -> bool:
        return path.is_file() and not path.is_symlink()

    return [
        BrokenChunk(dataset, None, path, 0, Fault.FOREIGN, "the manifest does not know it")
        for dataset, path in there
        if path not in ours and is_there(layout.silver / path)
    ]

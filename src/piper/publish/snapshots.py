"""Snapshots: the files below the catalog's views, each swapped in whole by one rename.

A reader that has bound the old file keeps it until its query ends; the next query binds the new one. Nobody waits. The
earlier files stay linked under other names for GENERATION_SECONDS, because a reader on another NFS client would get
ESTALE when the file under it loses its last name.

If we die before the rename, readers keep the old snapshot, which is consistent; the next publish makes a new one.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

import duckdb

from piper.failpoints import failpoint
from piper.files import FILE_MODE, fsync_path, make_directory, sql_literal, swap_in
from piper.layout import Layout
from piper.silver.datasets import DATASETS

GENERATION_SECONDS = 60.0
"""How long a replaced snapshot keeps a name."""
TEMPORARY = ".tmp"
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS}
"""What a file system without hard links says; it is none that readers on other clients mount by NFS."""


def publish_tail(con: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    """Swap in one state of all datasets: the rows that are committed and not sealed, and which chunks count."""
    temporary = _temporary(layout.tail)
    con.execute("DETACH DATABASE IF EXISTS snapshot")  # of a publish that failed half way
    try:
        con.execute(f"ATTACH '{sql_literal(temporary)}' AS snapshot (BLOCK_SIZE 16384)")
        try:
            _copy_tail(con, layout)
            failpoint("publish.tail.copied")
        finally:
            con.execute("DETACH snapshot")  # checkpoints, and says so when the disk is full
        _swap(temporary, layout.tail, layout)
    except BaseException:
        _temporary(layout.tail)  # a full disk needs the room
        raise


def _copy_tail(con: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    con.execute("BEGIN")
    try:
        for dataset in DATASETS.values():
            # One row of NULLs carries sealed_through and its like, also when the tail is empty.
            con.execute(
                f"""CREATE TABLE snapshot.{dataset.tail_table} AS
                SELECT *, NULL::BIGINT AS sealed_through, NULL::BIGINT AS rewritten_through, NULL::VARCHAR[] AS hidden
                FROM {dataset.tail_table}
                UNION ALL BY NAME
                SELECT sealed_through, rewritten_through,
                    (SELECT list('{sql_literal(layout.silver)}/' || path) FROM hidden_chunks
                     WHERE dataset = '{dataset.name}') AS hidden
                FROM progress"""
            )
        con.execute("COMMIT")
    except BaseException:
        with suppress(duckdb.Error):  # a failed COMMIT has ended the transaction already
            con.execute("ROLLBACK")
        raise


def publish_gold(con: duckdb.DuckDBPyConnection, layout: Layout, *, database: str = "gold") -> None:
    """Swap in a copy of the gold database, which is attached as `database` and has no transaction under way.

    It is copied as a file: its cost is its bytes, not its rows. (Closing the copy's descriptor drops this process's
    fcntl lock on state/gold.duckdb; the manifest's lock is the one that keeps others out.)
    """
    con.execute(f"CHECKPOINT {database}")
    temporary = _temporary(layout.gold)
    try:
        shutil.copyfile(layout.gold_state, temporary)
        failpoint("publish.gold.copied")
        _swap(temporary, layout.gold, layout)
    except BaseException:
        _temporary(layout.gold)
        raise


def _temporary(path: Path) -> Path:
    """The name under which the next `path` is made; what lies there is removed."""
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    for leftover in (temporary, temporary.with_name(temporary.name + ".wal")):
        leftover.unlink(missing_ok=True)
    return temporary


def _swap(temporary: Path, path: Path, layout: Layout) -> None:
    temporary.chmod(FILE_MODE)
    fsync_path(temporary)
    failpoint(f"publish.{path.stem}.written")
    _keep_generation(path, layout)
    failpoint(f"publish.{path.stem}.linked")
    swap_in(temporary, path)
    failpoint(f"publish.{path.stem}.swapped")


def _keep_generation(path: Path, layout: Layout) -> None:
    """Give the file that is about to be replaced another name, and drop the names that are old enough."""
    make_directory(layout.generations)
    if path.exists():
        try:
            os.link(path, layout.generations / f"{path.name}.{time.time_ns()}")
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
    drop_generations(layout)


def drop_generations(layout: Layout, *, older_than: float = GENERATION_SECONDS) -> None:
    """Delete the snapshots that were replaced longer than so many seconds ago. Any thread."""
    now = time.time()
    for earlier in layout.generations.iterdir() if layout.generations.is_dir() else ():
        stamp = earlier.suffix[1:]
        age = now - int(stamp) / 1e9 if stamp.isdigit() else 0.0
        if abs(age) > older_than:  # a clock that was set back must not keep them for ever
            earlier.unlink(missing_ok=True)

"""The store: the manifest database, who holds it, and what a crash left half done.

The manifest's DuckDB lock makes the writer unique: it goes with the process, so nobody ever deletes a lock file by
hand. Opening finishes what the last process began: chunks that a durable commit had prepared are revealed, others are
removed.
"""

from __future__ import annotations

import errno
import threading
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb

from piper.errors import DataRootError, ManifestDamagedError, ManifestNewerError, WriterLockedError
from piper.files import ensure_writable, make_directory
from piper.layout import Layout
from piper.prepared import Prepared
from piper.settings import Settings
from piper.silver import schema
from piper.silver.belonging import check_is_there, check_not_lost, check_not_older, holds_data
from piper.silver.datasets import DATASETS, MACROS
from piper.silver.diagnosis import as_piper_error
from piper.silver.holder import write_holder
from piper.silver.keys import Keys
from piper.silver.owner import check_owner, own
from piper.silver.staging import REWRITE, SEAL, recover_staging

CHECKPOINT_THRESHOLD = "1GB"
"""Of the log since the last checkpoint: more than a batch or a full tail ever is."""
ROWS_OF_PARTITIONS = 20_480
"""Rows that a COPY into partitions gathers before it hands them to the files' writers. The files become the same."""
NAMELESS_HOLDER_SECONDS = 2.0
"""How long opening waits for a process that holds the lock and has not written that it is a writer."""


def utc_now() -> datetime:
    """Now, as the naive UTC timestamp that DuckDB columns hold."""
    return datetime.now(UTC).replace(tzinfo=None)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the warehouse stands after the last commit."""

    commit_seq: int
    sealed_through: int
    committed_at_utc: datetime | None
    sealed_at_utc: datetime | None
    accepted: int
    duplicates: int
    quarantined: int
    rewritten_through: int


def _connect_patiently(layout: Layout, settings: Settings) -> duckdb.DuckDBPyConnection:
    """Connect; wait a moment for a holder without a name: `piper status` reads a manifest at rest and is soon gone."""
    deadline = time.monotonic() + NAMELESS_HOLDER_SECONDS
    while True:
        try:
            return connect(layout, settings)
        except WriterLockedError as error:
            if error.is_writer or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


class Store:
    """An open manifest. One at a time and one process; `con` belongs to the writer's thread, `cursor()` to others."""

    def __init__(self, layout: Layout, con: duckdb.DuckDBPyConnection) -> None:
        self.layout = layout
        self.con = con
        self.prepared = Prepared(con)
        """What runs for every batch, on `con`."""
        self.second_con = self.cursor()
        """For the writer's helper thread."""
        self.keys = Keys(layout)
        self.reveal_lock = threading.Lock()
        """Held from the COMMIT of a seal or rewrite until its chunks are in their places."""
        self.rewrite_lock = threading.Lock()
        """Held while a rewrite is under way: there is one at a time."""
        self._ground = _ground(layout)

    @classmethod
    def open(cls, settings: Settings, *, command: str, again: bool = False) -> Store:
        """Lock and open the manifest, creating directories and tables that are missing.

        `again`: this process has had it open, so one that is missing now is not made: its disk is not mounted.

        Raises DataRootError (cannot be written), WriterLockedError (says who holds it), ManifestNewerError,
        ManifestDamagedError (also when it is lost, or older than its data root). Nothing is made when the manifest
        cannot be had.
        """
        layout = Layout.of(settings)
        if again and not layout.manifest.exists():
            raise DataRootError(
                f"the ingest manifest {layout.manifest}, which was open, is not there any more",
                hint="Is its disk mounted? piperd waits for it. If it was lost, stop piperd and run `piper rebuild`.",
            )
        ensure_writable(layout.data_root, "data root")
        ensure_writable(layout.state, "state directory")
        check_not_lost(layout)
        con = _connect_patiently(layout, settings)
        store: Store | None = None
        try:
            _check_version(con, layout)
            as_piper_error(lambda: check_is_there(con, layout), layout.manifest)
            as_piper_error(lambda: check_owner(con, layout), layout.manifest)
            for directory in (layout.silver, layout.staging, layout.warehouse, layout.quarantine, layout.run_logs):
                ensure_writable(directory, "directory")
            _prepare(con, layout)
            as_piper_error(lambda: own(con, layout), layout.manifest)
            store = opened = cls(layout, con)
            check_not_older(layout, store.progress().commit_seq)
            as_piper_error(lambda: recover_staging(layout, durable_through(store.progress())), layout.manifest)
            as_piper_error(lambda: opened.keys.recover(con), layout.manifest)
            as_piper_error(lambda: write_holder(layout, command), layout.manifest)
        except BaseException:
            if store is not None:
                store.second_con.close()
            con.close()
            raise
        return store

    def close(self) -> None:
        """Checkpoint and release the manifest: also where raising OSError, as on a disk that has become read-only."""
        try:
            self.layout.writer_file.unlink(missing_ok=True)  # first: once the lock is gone it may be the next holder's
        finally:
            self.second_con.close()  # the lock lasts as long as any connection
            self.con.close()

    def check_ground(self) -> None:
        """Raise OSError if manifest or data root are not those that were opened: unmounted, moved or replaced.

        A few `stat`; without it, what is written next would go where nobody finds it later.
        """
        for path, opened in self._ground.items():
            if _identity(path) != opened:
                raise OSError(errno.ESTALE, "it is not what was opened: moved, replaced or unmounted", str(path))

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """Another connection to the same database, for another thread."""
        cursor = self.con.cursor()
        _use(cursor)
        return cursor

    def progress(self, con: duckdb.DuckDBPyConnection | None = None) -> Progress:
        """Where the warehouse stands."""
        row = (con or self.prepared).execute("FROM progress").fetchone()
        if row is None:
            raise ManifestDamagedError(self.layout.manifest, "it has no progress row")
        return Progress(*row)

    def tail_rows(self) -> int:
        """Events that are committed and not sealed yet."""
        row = self.con.execute("SELECT count(*) FROM events_tail").fetchone()
        return int(row[0]) if row else 0

    def tail_bytes(self) -> int:
        """About the bytes of the lines that these events came from."""
        row = self.con.execute(
            "SELECT coalesce(sum(strlen(coalesce(payload, '')) + strlen(coalesce(metrics, ''))), 0)::BIGINT"
            " FROM events_tail"
        ).fetchone()
        return int(row[0]) if row else 0

    def forget_quarantine_files(self, before: date) -> None:
        """Drop what is known of the quarantine files of days before this one; they are deleted."""
        self.con.execute("DELETE FROM quarantine_files WHERE quarantine_date < ?", [before])


def _ground(layout: Layout) -> dict[Path, tuple[int, int]]:
    return {path: _identity(path) for path in (layout.manifest, layout.owner_file, layout.silver)}


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def durable_through(progress: Progress) -> dict[str, int]:
    """The last durable number of each kind of directory in staging."""
    return {SEAL: progress.sealed_through, REWRITE: progress.rewritten_through}


def connect(layout: Layout, settings: Settings) -> duckdb.DuckDBPyConnection:
    """Lock and open the manifest's file, whatever is in it; raises PiperError."""
    make_directory(layout.state)
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": settings.duckdb.memory_limit,
        # Cores are used by statements side by side (slices, copies, gold), each on one: a COPY into many partitions
        # costs less CPU on one thread than on two, and half the buffers (bench/choices.py, one_core).
        "threads": 1,
        "temp_directory": str(layout.state / "tmp"),
        "preserve_insertion_order": False,
        "enable_external_file_cache": False,
        # What this process writes as DuckDB files is small or soon replaced: the cheap
        # encodings only (bench/choices.py, snapshot).
        "disabled_compression_methods": "fsst,zstd,dict_fsst,alp,alprd,chimp,patas,roaring",
        # Of a new manifest. Each of the hundreds of columns of the tail tables holds a block in memory, however few its
        # rows; DuckDB's own are of 256 KiB.
        "default_block_size": "16384",
        # A COPY into partitions otherwise holds all its rows once more before it begins to write them
        # (bench/choices.py, flush).
        "partitioned_write_flush_threshold": ROWS_OF_PARTITIONS,
        # Commits make one when the log is so long, of `work` in memory as well, where it only rewrites the rows of the
        # batch under way. Every seal makes one of the manifest (silver/commit.py), and the tail is never so large.
        "checkpoint_threshold": CHECKPOINT_THRESHOLD,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    con = as_piper_error(lambda: duckdb.connect(str(layout.manifest), config=config), layout.manifest)
    layout.manifest.chmod(0o640)
    con.execute("ATTACH ':memory:' AS work")
    _use(con)
    return con


def _use(con: duckdb.DuckDBPyConnection) -> None:
    """Session settings of every connection: UTC, and `work`, the batch under way, found after the manifest's tables."""
    con.execute("SET TimeZone = 'UTC'")
    con.execute("SET search_path = 'ingest_manifest,work'")


def _check_version(con: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    path = layout.manifest
    found = as_piper_error(lambda: schema.stored_version(con), path)
    if as_piper_error(lambda: schema.is_unfinished(con), path):
        raise ManifestDamagedError(path, "a rebuild of it was not finished")
    if found == 0 and holds_data(layout):
        raise ManifestDamagedError(path, f"it has no tables, and {layout.data_root} holds ingested data")
    check_version(found, path)


def check_version(found: int, path: Path) -> None:
    """Refuse a manifest of a newer schema; raises ManifestNewerError."""
    if found > schema.VERSION:
        raise ManifestNewerError(
            f"the ingest manifest {path} has schema version {found}, this piper knows up to {schema.VERSION}",
            hint="Install the piper that wrote it, or a newer one; an older one must not touch it.",
        )


def _prepare(con: duckdb.DuckDBPyConnection, layout: Layout) -> None:
    def prepare() -> None:
        schema.upgrade(con)
        for macro in MACROS:
            con.execute(macro)
        for table in (
            "sources",
            "event_keys",
            "key_runs",
            "forgotten_keys",
            "chunks",
            "hidden_chunks",
            "dates",
            "rejections",
            *(d.tail_table for d in DATASETS.values()),
        ):
            con.execute(f"SELECT count(*) FROM {table}").fetchall()

    as_piper_error(prepare, layout.manifest)

"""Rewrite: chunks give way to others, and every reader sees either all the old ones or all the new ones.

Compaction, masking, backfill and retention differ only in what they write; how it takes effect is here. Chunks are
immutable, so nothing is changed in place:

1. stage    new chunks are written and fsynced below silver/.staging/r<k>; the rows of rewrite k have commit_seq -k.
            Any thread, for as long as it takes; ingest goes on. Died here: the next open removes them.
2. commit   one transaction in the writer's thread: the new chunks take the place of the old ones in the manifest,
            `rewritten_through` is k, the old ones are entered as hidden.
            Died here: durable. The next open goes on with step 3 before anything else.
3. reveal   the new chunks are renamed into place. No reader counts them yet: the published tail says k - 1.
            Died here: nothing to do.
4. publish  the next tail says k, and which chunks are hidden: one rename switches every reader.
5. forget   the old files go away, without any query missing one: silver/hidden.py.

A chunk also carries in its own metadata which chunks it replaces, so that `piper rebuild` can tell without a manifest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path, PurePosixPath

import duckdb

from piper.errors import PiperError
from piper.failpoints import failpoint
from piper.files import FILE_MODE, fsync_path, make_directory, sql_literal
from piper.silver.commit import note_changed
from piper.silver.datasets import DATASETS
from piper.silver.seal import StagedChunk, insert_chunks
from piper.silver.staging import METADATA_KEY, REWRITE, numbered, reveal, staged_name
from piper.silver.store import Store

ROW_GROUP_MB = 32
"""Megabytes of a row group before compression, which is in memory while it is written."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One leaf directory of silver and its sealed chunks, as the manifest knows them."""

    dataset: str
    event_date: date
    directory: str
    """Relative to silver/: <dataset>/event_date=…[/event_type=…]."""
    paths: tuple[str, ...]
    """Its chunks, relative to silver/."""
    rows: int
    size_bytes: int


def partitions(
    con: duckdb.DuckDBPyConnection, *, start: date | None = None, end: date | None = None
) -> list[Partition]:
    """Every partition with sealed chunks from `start` to `end` (both included), oldest first."""
    rows = con.execute(
        """SELECT dataset, event_date, regexp_extract(path, '^(.*)/[^/]*$', 1) AS directory, list(path ORDER BY path),
            sum(row_count)::BIGINT, sum(size_bytes)::BIGINT
        FROM ingest_manifest.main.chunks WHERE event_date BETWEEN ? AND ?
        GROUP BY ALL ORDER BY event_date, directory""",
        [start or date.min, end or date.max],
    ).fetchall()
    return [Partition(name, day, where, tuple(paths), count, size) for name, day, where, paths, count, size in rows]


@dataclass(slots=True)
class Rewrite:
    """A rewrite under way. `begin`, then `replace` and `drop` from one thread, then `commit` or `abandon`."""

    store: Store
    number: int
    through: int
    staged: Path
    chunks: list[StagedChunk] = field(default_factory=list)
    """What it has written."""
    replaced: list[tuple[str, str]] = field(default_factory=list)
    """(dataset, path) of the chunks that give way."""

    @classmethod
    def begin(cls, store: Store, con: duckdb.DuckDBPyConnection) -> Rewrite:
        """Start one; raises PiperError while another is under way. `con`: the calling thread's cursor."""
        if not store.rewrite_lock.acquire(blocking=False):
            raise PiperError("silver is being rewritten already", hint="Wait for it: `piper status` shows what runs.")
        try:
            progress = store.progress(con)
            staged = store.layout.staging / numbered(REWRITE, progress.rewritten_through + 1)
            # What a failed attempt staged must not be there when the rewrite is durable: opening would reveal it.
            shutil.rmtree(staged, ignore_errors=True)
            make_directory(staged)
        except BaseException:
            store.rewrite_lock.release()
            raise
        return cls(store, progress.rewritten_through + 1, progress.commit_seq, staged)

    def replace(
        self,
        con: duckdb.DuckDBPyConnection,
        partition: Partition,
        paths: Sequence[str] | None = None,
        *,
        select: Callable[[str], str] = str,
    ) -> StagedChunk | None:
        """Write the rows of `paths` (default: all chunks of the partition) as one new chunk, sorted by time.

        Rows that are too large to be sorted in the memory of `con` stay in the order of their chunks. `select` turns
        the SELECT of the old rows, all stored columns, into that of the new ones, same columns and same partition.
        Returns None when no row is left.
        """
        old = list(partition.paths if paths is None else paths)
        files = ", ".join(f"'{sql_literal(self.store.layout.silver / path)}'" for path in old)
        rows = select(DATASETS[partition.dataset].chunk_rows_sql(f"[{files}]"))
        chunk = self._stage(con, partition, rows, old)
        self.replaced += [(partition.dataset, name) for name in old]
        return chunk

    def add(self, con: duckdb.DuckDBPyConnection, partition: Partition, rows: str) -> StagedChunk | None:
        """Write `rows` (a SELECT of all stored columns) as a chunk that takes no other's place. None: no row."""
        return self._stage(con, partition, rows, [])

    def _stage(
        self, con: duckdb.DuckDBPyConnection, partition: Partition, rows: str, old: list[str]
    ) -> StagedChunk | None:
        dataset = DATASETS[partition.dataset]
        stored = ", ".join(
            f"{-self.number}::BIGINT AS commit_seq" if name == "commit_seq"
            else 'event_type AS "event_type_name"' if name == "event_type" and dataset.has_type_partition
            else f'"{name}"'
            for name, _ in dataset.stored if name != "event_date"
        )  # fmt: skip
        path = str(PurePosixPath(partition.directory, f"{self.staged.name}-{len(self.chunks)}.parquet"))
        file = self.staged / staged_name(path)
        about = json.dumps({"number": self.number, "through": self.through, "replaces": old})
        query = f"SELECT {stored} FROM ({rows})"
        try:
            count = self._write(con, f"{query} ORDER BY occurred_at_utc", file, about)
        except duckdb.OutOfMemoryException:  # sorting rows of many kilobytes fails where others are spilled
            count = self._write(con, query, file, about)
        if not count:
            file.unlink()
            return None
        chunk = StagedChunk(partition.dataset, partition.event_date, path, count, file.stat().st_size)
        self.chunks.append(chunk)
        failpoint("rewrite.staged")
        return chunk

    def _write(self, con: duckdb.DuckDBPyConnection, query: str, file: Path, about: str) -> int:
        """COPY it and sync the file; returns the number of rows. After an error nothing of it is left."""
        try:
            count = con.execute(
                f"""COPY ({query}) TO '{sql_literal(file)}' (FORMAT parquet, COMPRESSION zstd,
                    ROW_GROUP_SIZE_BYTES '{ROW_GROUP_MB}MB',
                    KV_METADATA {{{METADATA_KEY}: '{about.replace("'", "''")}'}})"""
            ).fetchone()
        except BaseException:
            for leftover in self.staged.glob(f"*{file.name}"):  # COPY begins under another name; nothing may reveal it
                leftover.unlink()
            raise
        file.chmod(FILE_MODE)
        fsync_path(file)
        return int(count[0]) if count else 0

    def drop(self, partition: Partition, paths: Sequence[str] | None = None) -> None:
        """Let chunks (default: all of the partition) give way to nothing."""
        self.replaced += [(partition.dataset, path) for path in (partition.paths if paths is None else paths)]

    def commit(
        self,
        *,
        now: datetime,
        changed: Iterable[date] = (),
        also: Callable[[duckdb.DuckDBPyConnection, int], None] = lambda _con, _seq: None,
    ) -> int:
        """Make it durable and reveal it; readers switch with the next published tail. Returns the commit's number.

        In the writer's thread, on the store's own connection, outside a transaction. `changed`: dates whose rows are
        not what they were, which gold computes anew. `also` adds to the transaction (it gets the connection and the
        commit's number). Raises PiperError, having changed nothing, when a chunk that was to give way is no longer
        there. After any other error the store must be opened anew.
        """
        con, seq = self.store.con, self.store.progress().commit_seq + 1
        fsync_path(self.staged)
        fsync_path(self.staged.parent)
        try:
            with self.store.reveal_lock:
                con.execute("BEGIN")
                try:
                    self._enter(con, seq, now)
                    note_changed(self.store.prepared, dict.fromkeys(changed, (0, 0)), seq)
                    also(con, seq)
                    failpoint("rewrite.entered")
                    con.execute("COMMIT")
                except BaseException as error:
                    with suppress(duckdb.Error):  # a failed COMMIT has ended it already
                        con.execute("ROLLBACK")
                    if isinstance(error, PiperError):  # surely not durable
                        shutil.rmtree(self.staged, ignore_errors=True)
                    raise
                failpoint("rewrite.committed")
                reveal(self.store.layout, self.staged)
                failpoint("rewrite.revealed")
        finally:
            self.store.rewrite_lock.release()
        return seq

    def _enter(self, con: duckdb.DuckDBPyConnection, seq: int, now: datetime) -> None:
        con.execute("CREATE OR REPLACE TEMP TABLE replaced (dataset VARCHAR, path VARCHAR)")
        if self.replaced:
            names, paths = zip(*self.replaced, strict=True)
            con.execute("INSERT INTO replaced SELECT unnest(?::VARCHAR[]), unnest(?::VARCHAR[])", [names, paths])
        gone = con.execute("DELETE FROM chunks WHERE path IN (SELECT path FROM replaced)").fetchone()
        if (gone[0] if gone else 0) != len(self.replaced):
            raise PiperError("chunks that were being rewritten have changed meanwhile", hint="Run it again.")
        insert_chunks(con, self.chunks, -self.number)
        con.execute("INSERT INTO hidden_chunks SELECT dataset, path, ?, ? FROM replaced", [seq, now])
        con.execute(
            "UPDATE progress SET commit_seq = ?, committed_at_utc = ?, rewritten_through = ?", [seq, now, self.number]
        )

    def abandon(self) -> None:
        """Give it up: what it has written is removed."""
        shutil.rmtree(self.staged, ignore_errors=True)
        self.store.rewrite_lock.release()

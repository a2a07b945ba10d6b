"""Rebuild: a new manifest, when the old one is damaged or lost, from silver, the published tail and the quarantine.

What comes back: every chunk; rows that were in the published tail, in the old manifest or in staging only; the keys
that make "once" exact; rejections. What does not: offsets (raw is read again from 0, and dedupe keeps what is there),
and how often events were repeated. Rows of a chunk that cannot be read come again from raw, as far as raw has them.

The steps, and what a death after each leaves:

1. set aside  the old manifest and its log are renamed, never deleted.
              Died here: the manifest is missing beside data, which every other command refuses; run rebuild again.
2. begin      a new manifest, marked unfinished. Died here: refused likewise, and taken up again.
3. fill       chunks are read and damaged ones set aside, staging gets names that opening never reveals, gold's own
              database is removed (it is derived), and one transaction fills the manifest and drops the mark.
              Died before its COMMIT: the next run finds the same files, and does the same. After it: done.

Readers that are connected keep the old published tail, which hides what it hid before, until the writer publishes the
new one: `sealed_through` starts at the highest commit found anywhere, salvaged rows are of the commit after it, and no
event is both in a chunk and in the new tail. Only a chunk that is set aside goes from their sight at once.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from piper.errors import ManifestDamagedError, WriterLockedError
from piper.failpoints import failpoint
from piper.files import ensure_writable, fsync_path
from piper.layout import Layout
from piper.settings import Settings
from piper.silver import schema
from piper.silver.belonging import log_of
from piper.silver.datasets import MACROS
from piper.silver.diagnosis import explain, translate, unusable
from piper.silver.holder import holder_of, write_holder
from piper.silver.owner import check_may_rebuild
from piper.silver.salvage import DAMAGED, SALVAGED, Progress, Salvage, find_chunks, hidden_by, number_in
from piper.silver.salvage_quarantine import QuarantineSalvage
from piper.silver.segments import segments_in
from piper.silver.staging import unfold
from piper.silver.store import Store, check_version, connect, utc_now


@dataclass(slots=True)
class RebuildSummary:
    """What a rebuild found and did."""

    damaged_to: Path | None = None
    """Where the old manifest is now; None when there was none (any more)."""
    chunks: int = 0
    chunk_events: int = 0
    salvaged_events: int = 0
    """Events that were in no chunk: from the published tail, the old manifest or staging."""
    keys: int = 0
    quarantined_keys: int = 0
    damaged_chunks: list[str] = field(default_factory=list)
    """Chunks set aside by this run as `….parquet.damaged`, relative to silver/."""
    unreadable: list[Path] = field(default_factory=list)
    """Other files that could not be read: the old manifest, the published tail, quarantine files."""
    commit_seq: int = 0


def rebuild(settings: Settings, *, on_progress: Progress | None = None, take_over: bool = False) -> RebuildSummary:
    """Set the old manifest aside and make a new one from what silver, tail, staging and quarantine hold.

    Afterwards the caller opens the writer, reads all of raw again, calls `forget_recounts`, and refreshes gold. May be
    repeated at any time, also after it died. `take_over`: also where the data root belongs to a manifest elsewhere,
    which PiperError says otherwise. Raises WriterLockedError when any piper holds the manifest,
    ManifestNewerError for one of a newer piper, DataRootError when the data root cannot be read or written.
    """
    layout = Layout.of(settings)
    ensure_writable(layout.data_root, "data root")
    ensure_writable(layout.state, "state directory")
    if not take_over:
        check_may_rebuild(layout)
    try:
        summary = RebuildSummary(_set_aside(layout))
        failpoint("rebuild.set_aside")
        con = connect(layout, settings)
        try:
            write_holder(layout, "piper rebuild")
            _begin(con)
            failpoint("rebuild.begun")
            _fill(con, layout, summary, on_progress or (lambda _what, _done, _total: None))
            layout.writer_file.unlink(missing_ok=True)
        finally:
            con.close()
    except OSError as error:
        raise unusable(error) from error
    except duckdb.Error as error:
        problem = explain(error, layout)
        if problem is None or isinstance(problem, ManifestDamagedError):
            raise
        raise problem from error
    return summary


def forget_recounts(store: Store) -> None:
    """After raw was read again: every line that silver had was counted as a duplicate, so set these counts to 0."""
    con = store.con
    con.execute("BEGIN")
    try:
        con.execute(
            """UPDATE dates SET duplicate_events = 0, changed_seq = (SELECT commit_seq FROM progress)
            WHERE duplicate_events > 0"""
        )
        con.execute("UPDATE progress SET duplicates = 0")
        con.execute("COMMIT")
    except BaseException:
        con.execute("ROLLBACK")
        raise


# ---- the old manifest ------------------------------------------------------------------------------------------------


def _set_aside(layout: Layout) -> Path | None:
    """Rename the old manifest, unless it is what a rebuild that died has begun; returns its new name."""
    manifest = layout.manifest
    if manifest.exists():
        if _is_begun(manifest):
            return None
        with _locked(manifest):
            return _rename(layout)
    return _rename(layout) if log_of(manifest).exists() else None


def _is_begun(manifest: Path) -> bool:
    """Whether a rebuild has begun this manifest; raises when it is held, or newer than this piper."""
    try:
        with duckdb.connect(str(manifest), read_only=True) as con:
            check_version(schema.stored_version(con), manifest)
            is_empty = con.execute("SELECT 1 FROM duckdb_tables()").fetchone() is None
            return is_empty or schema.is_unfinished(con)
    except duckdb.Error as error:
        problem = translate(error, manifest)
        if isinstance(problem, ManifestDamagedError):
            return False
        raise problem from error


@contextmanager
def _locked(manifest: Path) -> Iterator[None]:
    """Hold DuckDB's own lock on the file without opening it as a database. (No other descriptor of it may be closed
    here meanwhile: that would drop the lock.)
    """
    fd = os.open(manifest, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            holder = holder_of(manifest.parent / "writer.json")
            raise WriterLockedError(
                f"{manifest} is held by {holder}", holder=holder, hint="Stop it first (systemctl stop piperd)."
            ) from error
        yield
    finally:
        os.close(fd)


def _rename(layout: Layout) -> Path:
    """The file first: without its log it would look like a sound manifest of an earlier time."""
    manifest = layout.manifest
    aside = manifest.with_name(f"{manifest.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    if manifest.exists():
        manifest.rename(aside)
        failpoint("rebuild.renamed")
    else:  # died in between: the log follows its database
        earlier = _newest_aside(layout)
        aside = earlier if earlier is not None and not log_of(earlier).exists() else aside
    if log_of(manifest).exists():
        log_of(manifest).rename(log_of(aside))
    fsync_path(manifest.parent)
    return aside if aside.exists() else log_of(aside)


def _newest_aside(layout: Layout) -> Path | None:
    names = layout.state.glob(f"{layout.manifest.name}.damaged-*Z")
    return max(names, default=None)


# ---- the new one -----------------------------------------------------------------------------------------------------


def _begin(con: duckdb.DuckDBPyConnection) -> None:
    schema.mark_unfinished(con)
    schema.upgrade(con)
    for macro in MACROS:
        con.execute(macro)


def _fill(con: duckdb.DuckDBPyConnection, layout: Layout, summary: RebuildSummary, on_progress: Progress) -> None:
    found = find_chunks(con, layout.silver, on_progress)
    aside = _newest_aside(layout)
    segments = segments_in(layout.tail)
    hidden = found.hide(hidden_by(segments, aside))
    rows, quarantine = Salvage(con, found), QuarantineSalvage(con)
    on_progress("quarantine", 0, 1)
    summary.unreadable += quarantine.read_files(layout.quarantine)
    on_progress("quarantine", 1, 1)
    if aside is not None:
        quarantine.read_manifest(aside)
    summary.unreadable += [path for path in segments if not rows.add_segment(path)]
    if aside is not None and aside.exists() and not rows.add_database(aside):
        summary.unreadable.append(aside)
    if found.damaged:  # what took the place of these may be among it
        rows.add_chunks(hidden)
    unfold(layout.staging, SALVAGED)
    failpoint("rebuild.unfolded")
    rows.add_staging(layout.staging)
    failpoint("rebuild.read")
    sealed_through = max(rows.last_seq, _last_name(layout))
    summary.commit_seq = sealed_through + 1
    con.execute("BEGIN")
    try:
        summary.chunk_events, summary.salvaged_events = rows.fill(summary.commit_seq)
        summary.quarantined_keys = quarantine.fill(summary.commit_seq)
        summary.chunks, summary.damaged_chunks = len(found.chunks), found.damaged
        _write_counts(con, summary, sealed_through)
        con.execute("UPDATE progress SET rewritten_through = ?", [rows.last_rewrite])
        _reset_gold(layout)
        schema.mark_finished(con)
        failpoint("rebuild.filled")
        con.execute("COMMIT")
    except BaseException:
        with suppress(duckdb.Error):  # a failed COMMIT has ended it; the mark stays, so the next run does it again
            con.execute("ROLLBACK")
        raise
    failpoint("rebuild.committed")


def _last_name(layout: Layout) -> int:
    """The highest commit that any chunk is named by, damaged ones included: names are never used again."""
    return max((number_in(path.name) for path in layout.silver.rglob(f"*.parquet{DAMAGED}")), default=0)


def _write_counts(con: duckdb.DuckDBPyConnection, summary: RebuildSummary, sealed_through: int) -> None:
    """What is counted: a row for every date, all of them news to gold, and the progress row."""
    con.execute(
        """INSERT INTO dates (event_date, changed_seq, quarantined_lines, duplicate_events)
        SELECT event_date, ?, sum(lines)::BIGINT, 0
        FROM (
            SELECT event_date, 0 AS lines FROM chunks
            UNION ALL SELECT event_date, 0 FROM events_tail
            UNION ALL SELECT quarantine_date, lines FROM quarantine_counts
        ) GROUP BY event_date""",
        [summary.commit_seq],
    )
    row = con.execute("SELECT count(*) FROM event_keys").fetchone()
    summary.keys = int(row[0]) if row else 0
    now = utc_now()
    con.execute(
        """UPDATE progress SET commit_seq = ?, sealed_through = ?, committed_at_utc = ?, sealed_at_utc = ?,
        accepted = ?, duplicates = 0, quarantined = ?""",
        [summary.commit_seq, sealed_through, now, now, summary.chunk_events + summary.salvaged_events,
         summary.quarantined_keys],
    )  # fmt: skip


def _reset_gold(layout: Layout) -> None:
    """Have the next refresh compute gold anew: its watermarks count the commits of the old manifest.

    Gold is derived and its file removed, but for one that holds the history of dates which silver was pruned of: that
    one only forgets its watermarks. (Its tables are described in gold/store.py, which this package cannot import.)
    """
    if not _forgot_watermarks(layout.gold_state):
        for path in (layout.gold_state, log_of(layout.gold_state)):
            path.unlink(missing_ok=True)


def _forgot_watermarks(gold: Path) -> bool:
    """False when there is no gold, none that can be read, or none that holds more than silver can give."""
    if not gold.exists():
        return False
    try:
        with duckdb.connect(str(gold)) as con:
            is_kept = con.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'gold_kept'").fetchone()
            if not is_kept or con.execute("SELECT 1 FROM gold_kept").fetchone() is None:
                return False
            con.execute("DELETE FROM gold_watermark")
    except duckdb.Error:  # damaged: the published copy has that history (gold.store.adopt_kept)
        return False
    return True

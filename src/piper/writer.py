"""The writer: spool → events → silver → publish for one data root, step by step and in one thread.

`piperd` runs these steps in its loop, `piper ingest` runs them until nothing is unread. After an error in a commit the
writer must be opened anew (`Writer.open`): the manifest alone knows what became durable.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from piper.events.parse import Lines, Parser, split
from piper.events.quarantine import Rejection, rejection_of
from piper.gold.models import load_models
from piper.gold.refresh import GoldStore
from piper.gold.spool import WithSpool
from piper.ops.metrics import Metrics
from piper.ops.pace import Pace
from piper.publish.catalog import write_catalog, write_empty_chunks
from piper.publish.snapshots import GENERATION_SECONDS, Identity, identity, publish_gold
from piper.publish.tail import TailPublisher
from piper.settings import Settings
from piper.silver.commit import Committed, commit, create_work_tables
from piper.silver.datasets import DATASETS
from piper.silver.export import export_rejections
from piper.silver.masking import Masking
from piper.silver.relations import SilverRelations
from piper.silver.release import purge_released
from piper.silver.segments import segments_in
from piper.silver.store import Store, explain
from piper.spool.hosts import SpoolHost, SpoolHosts
from piper.spool.tail import Batch, Tailer
from piper.spool.turn import SAMPLE_BYTES, Limits

SLICE_BYTES = 16 * 1024 * 1024
"""Bytes that are parsed at a time; a batch is one or more slices."""
TURN_BYTES = 4 * 1024 * 1024
"""Bytes that one file gets before every other file with news had its turn."""
LONG_LINE_BYTES = 16 * 1024
LONG_LINES_BYTES_MAX = 32 * 1024 * 1024
"""Bytes of a batch in lines over LONG_LINE_BYTES: DuckDB holds each of their values several times over."""
TAIL_BYTES_MAX = 64 * 1024 * 1024
"""Bytes of lines that make the tail be sealed, few as its rows may be: its segments are merged in memory."""


@dataclass(slots=True)
class Clock:
    """The clocks that stages use; tests inject their own."""

    monotonic: Callable[[], float] = time.monotonic
    utc: Callable[[], float] = time.time

    def now(self) -> datetime:
        """Naive UTC, as DuckDB columns hold it."""
        return datetime.fromtimestamp(self.utc(), UTC).replace(tzinfo=None)


@dataclass(slots=True)
class Totals:
    """What a run has done so far."""

    files: int = 0
    bytes: int = 0
    accepted: int = 0
    duplicates: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    commits: int = 0
    chunks: int = 0

    def add(self, batch: Batch, done: Committed) -> None:
        """Count one commit."""
        self.files += len(batch.checkpoints)
        self.bytes += batch.bytes
        self.accepted += done.accepted
        self.duplicates += done.duplicates
        self.commits += 1
        self.chunks += len(done.chunks)
        for reason, lines in done.quarantined.items():
            self.quarantined[reason] = self.quarantined.get(reason, 0) + lines


class Writer:
    """An open data root: store, tailer, parser and gold, and the steps over them."""

    def __init__(
        self, settings: Settings, store: Store, metrics: Metrics, clock: Clock, progress: Callable[[], None]
    ) -> None:
        self.settings, self.store, self.metrics, self.clock = settings, store, metrics, clock
        limits = Limits(max(TURN_BYTES, settings.ingest.line_bytes_max + SAMPLE_BYTES), settings.ingest.line_bytes_max)
        self.tailer = Tailer(
            settings.paths.raw_root,
            limits,
            monotonic=clock.monotonic,
            utc=clock.utc,
            sources=store.sources(settings.retention.source_days),
            vanished_days=settings.retention.source_days,
            progress=progress,
        )
        self._parser = Parser(
            store.con,
            [store.cursor() for _ in range(settings.duckdb.threads or os.cpu_count() or 1)],
            line_bytes_max=settings.ingest.line_bytes_max,
            sample_bytes=SAMPLE_BYTES,
        )
        create_work_tables(store.con)
        self.gold = GoldStore.open(
            store.con,
            store.layout.gold_state,
            published=store.layout.gold,
            clock=lambda: datetime.fromtimestamp(clock.utc(), UTC),
        )
        self.relations = SilverRelations(store)
        self.hosts = SpoolHosts(self.tailer, monotonic=clock.monotonic)
        self.masking = Masking(store, is_on=settings.privacy.mask_users, now=clock.now())
        self.masking.note_sources(self.tailer.sources)
        self.totals = Totals()
        self._progress = progress
        self.pace = Pace(clock.monotonic)
        self._tail_rows, self._tail_bytes = store.tail_rows(), store.tail_bytes()
        self._long_bytes = 0
        self._tail_since = clock.monotonic() if self._tail_rows else None
        self._tail = TailPublisher(store.layout, clock.monotonic)
        self._published_seq = -1
        self._gold_is_published = True
        self._published: dict[str, Identity | None] = {}
        """The files that readers open, as they were swapped in."""
        self._swapping = threading.Lock()
        """Held while gold or the catalog, which other threads write, is swapped in and noted."""

    @classmethod
    def open(
        cls,
        settings: Settings,
        metrics: Metrics,
        *,
        command: str,
        clock: Clock | None = None,
        progress: Callable[[], None] = lambda: None,
        again: bool = False,
    ) -> Writer:
        """Lock and open the data root; everything that readers open is there afterwards. Raises PiperError.

        `again` as in `Store.open`. `progress` is called often while a step takes long: slow is not hung.
        """
        store = Store.open(settings, command=command, again=again)
        try:
            writer = cls(settings, store, metrics, clock or Clock(), progress)
            try:
                writer.prepare_warehouse()
            except (duckdb.Error, OSError) as error:
                if not (again and str(store.layout.warehouse) in str(error)):
                    raise  # else readers have what was there, and `mend_warehouse` tries again
            writer.report_privacy()
        except BaseException as error:
            store.close()
            problem = explain(error, store.layout) if isinstance(error, (duckdb.Error, OSError)) else None
            if problem is not None:
                raise problem from error
            raise
        return writer

    def close(self) -> None:
        """Release the data root. What is committed is durable; what is not is read again next time."""
        try:
            self._parser.close()
        finally:
            self.store.close()

    def adopt(self, settings: Settings) -> None:
        """Go on with `settings`, which differ in `reload.RELOADABLE` keys only. Or raises duckdb.Error."""
        if settings.duckdb.memory_limit != self.settings.duckdb.memory_limit:
            self.store.con.execute(f"SET memory_limit = '{settings.duckdb.memory_limit}'")
        self.settings = settings

    # ---- steps ---------------------------------------------------------------------------------------------------

    def scan(self) -> None:
        """Walk the whole spool."""
        started = time.perf_counter()
        scan = self.tailer.scan()
        if self.tailer.observed.discovered:
            self.masking.note_sources(self.tailer.sources)
        self.metrics.scan_finished(
            scan.unchanged + len(scan.files), time.perf_counter() - started, discovered=self.tailer.observed.discovered
        )
        self._report_observed()

    def ingest(self, *, seconds: float = math.inf, look: Callable[[], None] = lambda: None) -> Committed | None:
        """Read, parse and commit one batch; None when there was nothing. Durable when it returns.

        What became known of files without reading any (renames, doubts, kept fragments) is written as well. After
        `seconds` no further slice is begun. `look` is called before each: what it finds new comes into this batch.
        """
        batch, rejections = self._gather(seconds, look)
        if not batch:
            self._report_observed()
            return None
        started = time.perf_counter()
        seal = self._tail_rows + batch.lines >= self.settings.ingest.seal_events_max
        seal = seal or self._tail_bytes + batch.bytes >= TAIL_BYTES_MAX
        done = self._commit(batch, rejections, seal=seal or self.tail_is_old)
        self._count(batch, done, time.perf_counter() - started)
        return done

    def seal(self) -> Committed | None:
        """Turn the whole tail into chunks; None when it is empty."""
        if not self._tail_rows:
            return None
        batch = Batch()
        started = time.perf_counter()
        done = self._commit(batch, [], seal=True)
        self._count(batch, done, time.perf_counter() - started)
        return done

    @property
    def tail_is_old(self) -> bool:
        """Whether the oldest row of the tail has waited for seal_seconds."""
        since = self._tail_since
        return since is not None and self.clock.monotonic() - since >= self.settings.ingest.seal_seconds

    @property
    def has_news(self) -> bool:
        """Whether something is committed that is not published."""
        return self.store.progress().commit_seq != self._published_seq

    @property
    def published_seq(self) -> int:
        """The commit that readers see; -1 before the first publish of this process."""
        return self._published_seq

    def publish(self) -> bool:
        """Have readers see all that is committed if there is news; returns whether there was."""
        progress = self.store.progress()
        if progress.commit_seq == self._published_seq:
            return False
        started = time.perf_counter()
        self.store.check_ground()
        self._tail.publish(self.store.con, progress)
        self._published_seq = progress.commit_seq
        self.metrics.published(time.perf_counter() - started, tail_rows=self._tail_rows)
        return True

    def tidy(self, *, older_than: float = GENERATION_SECONDS) -> None:
        """Delete what readers saw before, once they have not needed it for so many seconds; miss what they need now."""
        self._tail.tidy(older_than=older_than)
        if not self._tail.is_whole():  # deleted by hand: the next publish makes it anew
            self._published_seq = -1

    def export_quarantine(self) -> int:
        """Append pending rejections to the quarantine files, and take released ones out; returns how many came."""
        self.store.check_ground()
        purge_released(self.store)
        return export_rejections(self.store)

    def quarantine(self, rejections: list[Rejection]) -> Committed:
        """Commit rejected lines that did not come by the tailer; those that are in quarantine change nothing."""
        batch = Batch()
        started = time.perf_counter()
        done = self._commit(batch, rejections, seal=False)
        self._count(batch, done, time.perf_counter() - started)
        return done

    def refresh_gold(
        self,
        con: duckdb.DuckDBPyConnection,
        *,
        rebuild: bool = False,
        models: list[str] | None = None,
        in_writer: Callable[[Callable[[], Any]], Any] = lambda step: step(),
    ) -> bool:
        """Recompute what changed (or everything) and swap the result in; returns whether anything was written.

        `con` is a cursor of the store that no other thread uses meanwhile; `in_writer` runs a step in the writer's
        thread, where this is another one. A model that fails is counted and logged, the others are published. Readers
        must not find in gold what silver does not show yet, so the tail goes first. What could not be swapped in is
        swapped in by the next call.
        """
        run = self.gold.rebuild if rebuild else self.gold.refresh
        was_published, self._gold_is_published = self._gold_is_published, False
        report = run(
            con,
            WithSpool(self.relations, in_writer(self._spool_hosts)),
            models,
            on_model=lambda outcome: self.metrics.gold_refreshed(
                outcome.name, outcome.seconds, outcome.error is None, error=str(outcome.error or "")
            ),
        )
        self._gold_is_published = was_published and not report.models
        if not self._gold_is_published:
            if self._published_seq < self.store.progress(con).commit_seq:
                in_writer(self.publish)
            self.publish_gold(con)
            self._gold_is_published = True
        asked = {model.name for model in self.gold.models} if models is None else set(models)
        self.metrics.gold_current(asked - report.failed.keys())
        return bool(report.models)

    def publish_gold(self, con: duckdb.DuckDBPyConnection) -> None:
        """Swap in gold as it is. Any thread, with a connection of its own and no transaction of gold under way."""
        with self._swapping:
            self.store.check_ground()
            publish_gold(con, self.store.layout)
            self._published["gold"] = identity(self.store.layout.gold)

    def storage_bytes(self) -> dict[str, int]:
        """Bytes on disk by kind, from the manifest and a few `stat` calls, never from walking the tree."""
        layout, con = self.store.layout, self.store.con
        silver = con.execute("SELECT coalesce(sum(size_bytes), 0)::BIGINT FROM chunks").fetchone()
        quarantine = con.execute("SELECT coalesce(sum(size_bytes), 0)::BIGINT FROM quarantine_files").fetchone()
        return {
            "state": sum(entry.stat().st_size for entry in layout.state.iterdir() if entry.is_file())
            + self.store.keys.size_bytes(con),
            "tail": sum(map(_size, segments_in(layout.tail))),
            "gold": _size(layout.gold),
            "silver": silver[0] if silver else 0,
            "quarantine": quarantine[0] if quarantine else 0,
        }

    def chunk_counts(self, con: duckdb.DuckDBPyConnection | None = None) -> dict[str, int]:
        """Sealed chunks by dataset; `con` is another thread's cursor."""
        rows = (con or self.store.con).execute("SELECT dataset, count(*) FROM chunks GROUP BY dataset").fetchall()
        return dict.fromkeys(DATASETS, 0) | dict(rows)

    def hidden_chunks(self, con: duckdb.DuckDBPyConnection | None = None) -> int:
        """Chunks that are hidden from readers and not deleted yet; `con` is another thread's cursor."""
        row = (con or self.store.con).execute("SELECT count(*) FROM hidden_chunks").fetchone()
        return int(row[0]) if row else 0

    def report_privacy(self) -> None:
        """Tell the metrics whether history has the form that `privacy.mask_users` asks for."""
        self.metrics.privacy(is_pending=not self.masking.state.is_done)

    def prepare_warehouse(self, *, force_catalog: bool = False) -> None:
        """Make every file that the views name, then the catalog where it is missing or of another version."""
        layout = self.store.layout
        write_empty_chunks(self.store.con, layout)
        self.publish()
        self.publish_gold(self.store.con)
        self.rewrite_catalog(force=force_catalog)

    def rewrite_catalog(self, *, force: bool = True) -> bool:
        """Write the catalog's views; without `force` only where they are missing or of another version. Any thread."""
        columns = {model.name: [column.name for column in model.columns] for model in load_models()}
        with self._swapping:
            written = write_catalog(self.store.layout, columns, force=force)
            self._published["catalog"] = identity(self.store.layout.catalog)
        return written

    def mend_warehouse(self) -> list[str]:
        """Make anew what readers open and somebody has removed or written to; returns the names.

        The tail and the catalog are there afterwards, gold with its next refresh. Raises OSError, duckdb.Error.
        """
        layout = self.store.layout
        files = {"gold": layout.gold, "catalog": layout.catalog}
        if not self._swapping.acquire(blocking=False):
            return []  # a file and what is noted of it may differ for a moment
        try:
            lost = [name for name, path in files.items() if identity(path) != self._published.get(name)]
            lost += [] if self._tail.is_whole() else ["tail"]
        finally:
            self._swapping.release()
        if not lost:
            return []
        self.store.check_ground()
        write_empty_chunks(self.store.con, layout)
        if "tail" in lost:
            self._published_seq = -1
            self.publish()
        if "gold" in lost:
            self._gold_is_published = False
        if "catalog" in lost and layout.gold.exists():  # its views are checked as they are made
            self.rewrite_catalog()
        return lost

    # ---- inside --------------------------------------------------------------------------------------------------

    def _spool_hosts(self) -> list[SpoolHost]:
        """The spool by host directory, named as in what readers open; a host can be called after somebody."""
        hosts = self.hosts.count()
        names = self.masking.mask_texts(self.store.con, [host.host for host in hosts])
        return [host._replace(host=name) for host, name in zip(hosts, names, strict=True)]

    def _gather(self, seconds: float, look: Callable[[], None]) -> tuple[Batch, list[Rejection]]:
        """Read slices until nothing is ready or the batch is full; each is parsed while the next ones are read."""
        batch, rejections = Batch(), []
        self._long_bytes = 0
        self._parser.begin()
        started = time.perf_counter()
        read_seconds = 0.0
        pending: deque[Future[list[Rejection]]] = deque()
        while True:
            look()
            lines, took = self._read_slice(batch)
            read_seconds += took
            if lines is not None:
                pending.append(self._parser.add(lines, self.clock.now()))
            is_full = self._is_full(batch) or time.perf_counter() - started >= seconds
            while pending and (is_full or len(pending) > self._parser.slices_at_once):
                rejections += pending.popleft().result()
            if is_full:
                break
        rejections += [rejection_of(skip) for skip in batch.skips]
        if batch.lines:
            self._parser.finish()
            self.masking.look(batch.checkpoints)
            self.metrics.batch_read(batch.bytes, batch.lines, read_seconds)
            self.metrics.batch_parsed(batch.lines, len(rejections), time.perf_counter() - started)
        return batch, rejections

    def _is_full(self, batch: Batch) -> bool:
        limits = self.settings.ingest
        return (
            not self.tailer.ready
            or batch.bytes >= limits.batch_bytes_max
            or batch.lines >= limits.batch_events_max
            or self._long_bytes >= LONG_LINES_BYTES_MAX
        )

    def _read_slice(self, batch: Batch) -> tuple[Lines | None, float]:
        """The next slice, split into lines, and the seconds it took."""
        started = time.perf_counter()
        while True:
            room = max(1, self.settings.ingest.batch_bytes_max - batch.bytes)
            spans = self.tailer.read(batch, min(SLICE_BYTES, room))
            batch.spans.clear()  # parsed slice by slice: a batch must not keep all its bytes in memory
            if spans:
                lines = split(spans)
                sizes = lines.ends - lines.starts
                self._long_bytes += int(sizes[sizes > LONG_LINE_BYTES].sum())
                return lines, time.perf_counter() - started
            if self._is_full(batch):
                return None, time.perf_counter() - started

    def _commit(self, batch: Batch, rejections: list[Rejection], *, seal: bool) -> Committed:
        try:
            self.store.check_ground()
            done = commit(
                self.store,
                batch,
                rejections,
                now=self.clock.now(),
                seal=seal,
                fresh_rows=batch.lines > 0,
                projection=self.masking.projection_sql,
                progress=self._progress,
            )
        except BaseException:
            self.tailer.abandon(batch)
            raise
        self.tailer.applied(batch)
        if seal:
            self._tail_rows, self._tail_bytes, self._tail_since = 0, 0, None
        elif done.accepted:
            self._tail_rows += done.accepted
            self._tail_bytes += batch.bytes
            self._tail_since = self._tail_since or self.clock.monotonic()
        return done

    def _count(self, batch: Batch, done: Committed, seconds: float) -> None:
        self.totals.add(batch, done)
        self.pace.add(done.accepted, batch.bytes)
        self.metrics.batch_committed(
            done.accepted_by_group,
            seconds,
            duplicates=done.duplicates,
            contract_violations=done.contract_violations,
            unknown_types=done.unknown_types,
        )
        for reason, lines in done.quarantined.items():
            self.metrics.lines_quarantined(reason, lines)
        self.metrics.ingest_lag(done.lag_seconds)
        for group, stamp in done.last_event_by_group.items():
            self.metrics.last_event(group, stamp)
        for chunk in done.chunks:
            self.metrics.chunk_sealed(chunk.dataset, chunk.rows, chunk.size_bytes, path=chunk.path)
        if done.chunks:
            rows = sum(chunk.rows for chunk in done.chunks if chunk.dataset == "events")
            self.metrics.seal_finished(len(done.chunks), rows, seconds, sealed_through=done.commit_seq)
        self._report_observed()

    def _report_observed(self) -> None:
        observed = self.tailer.drain_observed()
        for kind, path, detail in observed.notes:
            self.metrics.file_event(kind, path=path, detail=detail)
        for kind, count in observed.file_events.items():
            logged = sum(1 for note in observed.notes if note[0] == kind)
            if count > logged:
                self.metrics.file_event(kind, count - logged)
        if observed.lost_bytes:
            self.metrics.lost_bytes(observed.lost_bytes)
        for code, count in observed.errors.items():
            self.metrics.spool_error(code, count)
        tailer = self.tailer
        self.metrics.spool_state(unreadable=len(tailer.unreadable), special=tailer.special, doubtful=tailer.doubtful)
        self.metrics.backlog(*tailer.backlog())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0

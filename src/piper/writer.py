"""The writer: spool → events → silver → publish for one data root, step by step and in one thread.

`piperd` runs these steps in its loop, `piper ingest` runs them until nothing is unread. After an error in a commit the
writer must be opened anew (`Writer.open`): the manifest alone knows what became durable.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import duckdb

from piper.events.quarantine import Rejection
from piper.gold.refresh import GoldStore
from piper.gold.spool import WithSpool
from piper.intake import Intake
from piper.ops.metrics import Metrics
from piper.ops.pace import Pace
from piper.publish.warehouse import Warehouse
from piper.settings import Settings
from piper.silver.commit import Committed, commit, create_work_tables
from piper.silver.diagnosis import explain
from piper.silver.export import export_rejections
from piper.silver.masking import Masking
from piper.silver.relations import SilverRelations
from piper.silver.release import purge_released
from piper.silver.source_states import read_sources
from piper.silver.store import Store
from piper.spool.hosts import SpoolHost, SpoolHosts
from piper.spool.tail import Batch, Tailer
from piper.spool.turn import SAMPLE_BYTES, Limits

TURN_BYTES = 4 * 1024 * 1024
"""Bytes that one file gets before every other file with news had its turn."""
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
            sources=read_sources(store.con, settings.retention.source_days),
            vanished_days=settings.retention.source_days,
            progress=progress,
        )
        self._intake = Intake(settings, store, self.tailer)
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
        self._tail_since = clock.monotonic() if self._tail_rows else None
        self.warehouse = Warehouse(
            store,
            clock.monotonic,
            on_published=lambda seconds: metrics.published(seconds, tail_rows=self._tail_rows),
        )

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
                writer.warehouse.prepare()
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
            self._intake.close()
        finally:
            self.store.close()

    def adopt(self, settings: Settings) -> None:
        """Go on with `settings`, which differ in `reload.RELOADABLE` keys only. Or raises duckdb.Error."""
        if settings.duckdb.memory_limit != self.settings.duckdb.memory_limit:
            self.store.con.execute(f"SET memory_limit = '{settings.duckdb.memory_limit}'")
        self.settings = self._intake.settings = settings

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

    def ingest(
        self, *, seconds: float = math.inf, look: Callable[[], None] = lambda: None, quiet_only: bool = False
    ) -> Committed | None:
        """Read, parse and commit one batch; None when there was nothing. Durable when it returns.

        What became known of files without reading any (renames, doubts, kept fragments) is written as well. After
        `seconds` no further slice is begun. `look` is called before each: what it finds new comes into this batch.
        `quiet_only`: nothing is read of files with a backlog.
        """
        gathered = self._intake.gather(self.clock.now, seconds=seconds, look=look, quiet_only=quiet_only)
        batch = gathered.batch
        if not batch:
            self._report_observed()
            return None
        if batch.lines:
            self.masking.look(batch.checkpoints)
            self.metrics.batch_read(batch.bytes, batch.lines, gathered.read_seconds)
            self.metrics.batch_parsed(batch.lines, len(gathered.rejections), gathered.seconds)
        is_full = self._tail_rows + batch.lines >= self.settings.ingest.seal_events_max
        is_full = is_full or self._tail_bytes + batch.bytes >= TAIL_BYTES_MAX
        return self._commit(batch, gathered.rejections, seal=is_full or self.tail_is_old)

    def seal(self) -> Committed | None:
        """Turn the whole tail into chunks; None when it is empty."""
        if not self._tail_rows:
            return None
        return self._commit(Batch(), [], seal=True)

    @property
    def tail_is_old(self) -> bool:
        """Whether the oldest row of the tail has waited for seal_seconds."""
        since = self._tail_since
        return since is not None and self.clock.monotonic() - since >= self.settings.ingest.seal_seconds

    @property
    def has_news(self) -> bool:
        """Whether something is committed that is not published."""
        return self.store.progress().commit_seq != self.warehouse.published_seq

    def publish(self) -> bool:
        """Have readers see all that is committed if there is news; returns whether there was."""
        return self.warehouse.publish()

    def export_quarantine(self) -> int:
        """Append pending rejections to the quarantine files, and take released ones out; returns how many came."""
        self.store.check_ground()
        purge_released(self.store)
        return export_rejections(self.store)

    def quarantine(self, rejections: list[Rejection]) -> Committed:
        """Commit rejected lines that did not come by the tailer; those that are in quarantine change nothing."""
        return self._commit(Batch(), rejections, seal=False)

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
        was_published, self.warehouse.gold_is_published = self.warehouse.gold_is_published, False
        report = run(
            con,
            WithSpool(self.relations, in_writer(self._spool_hosts)),
            models,
            on_model=lambda outcome: self.metrics.gold_refreshed(
                outcome.name, outcome.seconds, outcome.error is None, error=str(outcome.error or "")
            ),
        )
        self.warehouse.gold_is_published = was_published and not report.models
        if not self.warehouse.gold_is_published:
            if self.warehouse.published_seq < self.store.progress(con).commit_seq:
                in_writer(self.publish)
            self.warehouse.publish_gold(con)
            self.warehouse.gold_is_published = True
        asked = {model.name for model in self.gold.models} if models is None else set(models)
        self.metrics.gold_current(asked - report.failed.keys())
        return bool(report.models)

    def report_privacy(self) -> None:
        """Tell the metrics whether history has the form that `privacy.mask_users` asks for."""
        self.metrics.privacy(is_pending=not self.masking.state.is_done)

    # ---- inside --------------------------------------------------------------------------------------------------

    def _spool_hosts(self) -> list[SpoolHost]:
        """The spool by host directory, named as in what readers open; a host can be called after somebody."""
        hosts = self.hosts.count()
        names = self.masking.mask_texts(self.store.con, [host.host for host in hosts])
        return [host._replace(host=name) for host, name in zip(hosts, names, strict=True)]

    def _commit(self, batch: Batch, rejections: list[Rejection], *, seal: bool) -> Committed:
        """Make a batch durable, and count it."""
        started = time.perf_counter()
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
        self._count(batch, done, time.perf_counter() - started)
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

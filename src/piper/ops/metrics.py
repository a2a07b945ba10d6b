"""What piper tells Prometheus, and the log line that goes with each thing that happens.

`METRICS` is the one list of metrics; `Metrics` has one method per thing that happens, which counts it and
logs it, so that a number on a dashboard and a line in the log never disagree. `docs/metrics.md` is tested
against the list.

Label values come from the closed sets below and every series exists, as 0, from the start: a rule like
`increase(...) > 0` works on the first error. A path, host or user is never a label (artists choose those, and
without bound); it goes to the log. A value outside its set is a bug of the caller and raises `ValueError`.

Everything here may be called from any thread. Durations are seconds, sizes are bytes, points in time are Unix
seconds; a timestamp of 0 means "not since this process started".
"""

from __future__ import annotations

import errno
import itertools
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import structlog
from prometheus_client import Counter, Gauge, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector, CollectorRegistry

import piper
from piper.ops.health import Health

EVENT_GROUPS: Final = ("publish", "tool", "farm", "render", "storage", "other")
FILE_EVENTS: Final = ("renamed", "truncated", "replaced", "vanished", "special", "io_error", "nul_deferred")
ERRNOS: Final = (
    "ENOENT", "EACCES", "EPERM", "EIO", "ESTALE", "ENOTDIR", "ELOOP", "EMFILE", "ENFILE", "ENAMETOOLONG", "EAGAIN",
    "ETIMEDOUT", "ENOTCONN", "EHOSTDOWN", "other",
)  # fmt: skip
REJECTION_REASONS: Final = (
    "invalid_utf8",
    "invalid_json",
    "not_an_object",
    "missing_field",
    "invalid_field",
    "unsupported_schema_version",
    "clock_skew",
    "line_too_long",
    "truncated_line",
)
STAGES: Final = ("scan", "read", "parse", "commit", "seal", "publish")
COMMIT_ERROR_KINDS: Final = ("disk_full", "io_error", "fatal", "other")
GOLD_MODELS: Final = (
    "gold_publish_health_daily",
    "gold_render_health_daily",
    "gold_farm_pressure_daily",
    "gold_tool_reliability_daily",
    "gold_storage_growth_weekly",
    "gold_data_quality_daily",
    "gold_activity_daily",
    "gold_host_activity_daily",
    "gold_activity_live",
    "gold_farm_pressure_live",
    "gold_ingest_live",
    "gold_as_of",
)
RESULTS: Final = ("ok", "error")
DATASETS: Final = (
    "events",
    "publish_usd",
    "tool_events",
    "tractor_job_spool",
    "tractor_farm_snapshot",
    "render_stats_summary",
    "storage_scan_summary",
    "storage_scan_bucket",
)
STORAGE_KINDS: Final = ("state", "tail", "gold", "silver", "quarantine")
PRUNED: Final = ("silver", "quarantine", "run_logs", "sources")
DUTIES: Final = ("forget", "mask", "clean", "keys", "verify", "backfill", "compact", "prune")

OLD_SECONDS: Final = 366 * 86_400
_STAGE_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_GOLD_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_LAG_BUCKETS: Final = (0.25, 0.5, 1, 2, 3, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 86_400, 7 * 86_400)
_BATCH_BUCKETS: Final = (1, 10, 50, 100, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: `labels` maps a label's name to its closed set of values, `unit` is for people (docs)."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    meaning: str
    labels: Mapping[str, tuple[str, ...]]
    buckets: tuple[float, ...] = ()


def _counter(name: str, unit: str, meaning: str, **labels: tuple[str, ...]) -> Metric:
    return Metric(name, "counter", unit, meaning, labels)


def _gauge(name: str, unit: str, meaning: str, **labels: tuple[str, ...]) -> Metric:
    return Metric(name, "gauge", unit, meaning, labels)


def _histogram(name: str, unit: str, meaning: str, buckets: tuple[float, ...], **labels: tuple[str, ...]) -> Metric:
    return Metric(name, "histogram", unit, meaning, labels, buckets)


METRICS: Final[tuple[Metric, ...]] = (
    _gauge("piper_files_tracked", "files", "Spool files whose offset piper keeps"),
    _counter("piper_files_discovered_total", "files", "Spool files seen for the first time"),
    _counter("piper_file_events_total", "files",
             "What happened to spool files, other than growing", kind=FILE_EVENTS),
    _counter("piper_spool_errors_total", "looks",
             "Looks at files and directories of the spool that failed", errno=ERRNOS),
    _gauge("piper_files_unreadable", "files", "Files and directories of the spool that cannot be read now"),
    _gauge("piper_files_special", "files", "Links, pipes, devices and the like that stand where spool files would"),
    _gauge("piper_files_doubtful", "files", "Spool files that look cut, replaced or gone; later looks decide"),
    _counter("piper_bytes_read_total", "bytes", "Bytes read from the spool, re-reads included"),
    _counter("piper_lines_read_total", "lines", "Complete lines read from the spool, blank ones included"),
    _counter("piper_lost_bytes_total", "bytes", "Bytes that were seen on the spool and went away unread"),
    _gauge("piper_backlog_bytes", "bytes", "Bytes on the spool that are not committed yet"),
    _gauge("piper_backlog_files", "files", "Spool files that have uncommitted bytes"),
    _gauge("piper_oldest_unread_age_seconds", "seconds", "Age of the oldest uncommitted write, 0 if none"),
    _gauge("piper_last_scan_timestamp_seconds", "Unix seconds", "End of the last scan of the spool"),
    _counter("piper_events_ingested_total", "events", "Events committed to silver", group=EVENT_GROUPS),
    _counter("piper_events_duplicate_total", "events", "Events left out: their event_id is known"),
    _counter("piper_lines_quarantined_total", "lines",
             "Lines committed to quarantine", reason=REJECTION_REASONS),
    _counter("piper_contract_violations_total", "events", "Accepted events that break their type's contract"),
    _counter("piper_unknown_type_events_total", "events", "Accepted events of an unregistered type"),
    _counter("piper_old_events_total", "events", "Accepted events that occurred over a year before their commit"),
    _histogram("piper_ingest_lag_seconds", "seconds",
               "From occurred_at_utc to the commit, 0 where the host's clock is ahead", _LAG_BUCKETS),
    _gauge("piper_last_event_timestamp_seconds", "Unix seconds",
           "Latest occurred_at_utc committed", group=EVENT_GROUPS),
    _histogram("piper_batch_events", "events", "Events in a committed batch", _BATCH_BUCKETS),
    _gauge("piper_last_commit_timestamp_seconds", "Unix seconds", "Last commit to the manifest"),
    _counter("piper_commit_errors_total", "commits",
             "Commits that failed and left nothing behind", kind=COMMIT_ERROR_KINDS),
    _histogram("piper_stage_duration_seconds", "seconds",
               "Duration of one turn of a stage", _STAGE_BUCKETS, stage=STAGES),
    _gauge("piper_tail_rows", "rows", "Event rows in the published tail, not in a chunk yet"),
    _gauge("piper_sealed_through", "commit sequence", "Last commit whose rows are all in Parquet chunks"),
    _gauge("piper_chunks", "files", "Parquet chunks", dataset=DATASETS),
    _counter("piper_compactions_total", "rewrites", "Rewrites that merged chunks"),
    _counter("piper_compacted_chunks_total", "files", "Parquet chunks that were merged into others"),
    _gauge("piper_hidden_chunks", "files", "Parquet chunks that were replaced or dropped, and wait for their deletion"),
    _gauge("piper_broken_chunks", "files",
           "Parquet chunks that are missing or damaged, at the last look: their rows are missing"),
    _gauge("piper_last_publish_timestamp_seconds", "Unix seconds", "Last swap of the published tail"),
    _histogram("piper_gold_refresh_duration_seconds", "seconds",
               "Duration of a model's refresh", _GOLD_BUCKETS, model=GOLD_MODELS),
    _counter("piper_gold_refreshes_total", "refreshes",
             "Refreshes of a model", model=GOLD_MODELS, result=RESULTS),
    _gauge("piper_gold_last_success_timestamp_seconds", "Unix seconds",
           "Last refresh of a model that succeeded", model=GOLD_MODELS),
    _gauge("piper_gold_current_timestamp_seconds", "Unix seconds",
           "Last time that readers had a model with all of silver in it, whether there was news or not",
           model=GOLD_MODELS),
    _counter("piper_pruned_files_total", "files", "Files that retention deleted", kind=PRUNED),
    _counter("piper_pruned_rows_total", "rows", "Rows, lines and file states that retention deleted", kind=PRUNED),
    _counter("piper_pruned_bytes_total", "bytes", "Bytes that retention deleted", kind=PRUNED),
    _histogram("piper_upkeep_duration_seconds", "seconds",
               "Duration of a background step that found something to do", _GOLD_BUCKETS, duty=DUTIES),
    _counter("piper_upkeep_errors_total", "steps", "Background steps that failed; they are tried again", duty=DUTIES),
    _gauge("piper_privacy_rewrite_pending", "0 or 1",
           "1 while older rows, or files that readers mount, do not have the form that privacy.mask_users asks for"),
    _gauge("piper_storage_bytes", "bytes", "Disk space that piper's files use", kind=STORAGE_KINDS),
    _gauge("piper_disk_free_bytes", "bytes", "Free space on the disk of the data root"),
    _gauge("piper_disk_size_bytes", "bytes", "Size of the disk of the data root"),
    _gauge("piper_state_disk_free_bytes", "bytes",
           "Free space on the disk of the state root, 0 where the data root is on the same disk"),
    _gauge("piper_state_disk_size_bytes", "bytes",
           "Size of the disk of the state root, 0 where the data root is on the same disk"),
    _gauge("piper_ready", "0 or 1", "1 while /readyz answers 200"),
    _gauge("piper_build_info", "always 1", "Versions that run, as labels",
           version=(), duckdb_version=(), python_version=()),
)  # fmt: skip

_spool = structlog.get_logger(component="spool")
_events = structlog.get_logger(component="events")
_silver = structlog.get_logger(component="silver")
_gold = structlog.get_logger(component="gold")
_publish = structlog.get_logger(component="publish")
_upkeep = structlog.get_logger(component="upkeep")

_disable_created_series: Callable[[], None] = disable_created_metrics

_QUIET_FILE_EVENTS: Final = frozenset({"renamed", "vanished"})
"""Everyday life of a spool: writers delete their files after a week. The rest may cost data: a warning."""


class VectorHistogram(Collector):
    """A histogram fed with arrays: a batch of 200,000 events costs one `searchsorted`, not 200,000 calls.

    A scrape sees each array whole or not at all, so the sum and the buckets always agree.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._label_names = tuple(metric.labels)
        self._bounds: npt.NDArray[np.float64] = np.array(metric.buckets, dtype=np.float64)
        self._le = [*(str(float(bound)) for bound in metric.buckets), "+Inf"]
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, ...], npt.NDArray[np.int64]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        for values in itertools.product(*metric.labels.values()):
            self._counts[values] = np.zeros(len(self._le), dtype=np.int64)
            self._sums[values] = 0.0

    def observe_many(self, observations: npt.ArrayLike, *labels: str) -> None:
        """Add all observations (any shape, none is fine) to the series of `labels`.

        Negative ones and NaN count as 0: to Prometheus, a sum that shrinks is a restart of the process.
        """
        array = np.asarray(observations, dtype=np.float64).ravel()
        array = np.where(array > 0.0, array, 0.0)
        # side="left": a value equal to a bound belongs to that bound's bucket, as `le` says.
        slots = np.searchsorted(self._bounds, array, side="left")
        added = np.bincount(slots, minlength=len(self._le))
        with self._lock:
            self._counts[labels] += added
            self._sums[labels] += float(array.sum())

    def describe(self) -> Iterable[HistogramMetricFamily]:
        return [HistogramMetricFamily(self._metric.name, self._metric.meaning, labels=self._label_names)]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._metric.name, self._metric.meaning, labels=self._label_names)
        with self._lock:
            for values, counts in self._counts.items():
                cumulative = np.cumsum(counts).tolist()
                family.add_metric(values, list(zip(self._le, cumulative, strict=True)), self._sums[values])
        yield family


class Metrics:
    """The metrics of one daemon, in a registry of their own (`registry`), ready for `MetricsServer`.

    Making one has no effect outside it, but for one switch of prometheus-client: `_created` series are off in
    the whole process (they double the number of counter series, and nothing reads them).
    """

    def __init__(self, *, duckdb_version: str | None = None, clock: Callable[[], float] = time.time) -> None:
        _disable_created_series()
        self.registry = CollectorRegistry()
        self._clock = clock
        self._lock = threading.Lock()
        self._last_events: dict[str, float] = {}
        self._counters: dict[tuple[str, ...], Counter] = {}
        self._gauges: dict[tuple[str, ...], Gauge] = {}
        self._histograms: dict[str, VectorHistogram] = {}
        for metric in METRICS:
            self._register(metric)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._build_info(duckdb_version or metadata.version("duckdb"))

    def _register(self, metric: Metric) -> None:
        names = tuple(metric.labels)
        if metric.kind == "histogram":
            self._histograms[metric.name] = histogram = VectorHistogram(metric)
            self.registry.register(histogram)
        elif metric.kind == "counter":
            counter = Counter(metric.name, metric.meaning, names, registry=self.registry)
            for values in itertools.product(*metric.labels.values()):
                self._counters[metric.name, *values] = counter.labels(*values) if names else counter
        else:
            gauge = Gauge(metric.name, metric.meaning, names, registry=self.registry)
            self._gauges[(metric.name,)] = gauge
            for values in itertools.product(*metric.labels.values()):
                self._gauges[metric.name, *values] = gauge.labels(*values) if names else gauge

    def _build_info(self, duckdb_version: str) -> None:
        versions = (piper.__version__, duckdb_version, platform.python_version())
        self._gauges[("piper_build_info",)].labels(*versions).set(1)

    def _add(self, amount: float, name: str, *labels: str) -> None:
        try:
            self._counters[name, *labels].inc(amount)
        except KeyError:
            raise ValueError(f"{name} has no series {labels}") from None

    def _gauge(self, name: str, *labels: str) -> Gauge:
        try:
            return self._gauges[name, *labels]
        except KeyError:
            raise ValueError(f"{name} has no series {labels}") from None

    def _observe(self, value: float, name: str, *labels: str) -> None:
        try:
            self._histograms[name].observe_many(value, *labels)
        except KeyError:
            raise ValueError(f"{name} has no series {labels}") from None

    # --- spool ---

    def scan_finished(self, files: int, seconds: float, *, discovered: int = 0) -> None:
        """A scan of the spool ended; `files` are tracked now, `discovered` of them are new."""
        self._gauge("piper_files_tracked").set(files)
        self._add(discovered, "piper_files_discovered_total")
        self._gauge("piper_last_scan_timestamp_seconds").set(self._clock())
        self._observe(seconds, "piper_stage_duration_seconds", "scan")
        _spool.debug("scan_finished", files=files, discovered=discovered, seconds=round(seconds, 4))

    def file_event(self, kind: str, n: int = 1, *, path: str = "", detail: str = "") -> None:
        """`kind` of `FILE_EVENTS` happened to `n` files. `path` and `detail` go to the log only."""
        self._add(n, "piper_file_events_total", kind)
        log = _spool.info if kind in _QUIET_FILE_EVENTS else _spool.warning
        log("file_event", kind=kind, n=n, **_present(path=path, detail=detail))

    def spool_error(self, code: int, n: int = 1) -> None:
        """`n` looks at the spool failed with this errno; what did is logged as a file event, once."""
        name = errno.errorcode.get(code, "other")
        self._add(n, "piper_spool_errors_total", name if name in ERRNOS else "other")

    def spool_state(self, *, unreadable: int, special: int, doubtful: int) -> None:
        """What of the spool is odd now."""
        self._gauge("piper_files_unreadable").set(unreadable)
        self._gauge("piper_files_special").set(special)
        self._gauge("piper_files_doubtful").set(doubtful)

    def lost_bytes(self, n: int, *, path: str = "") -> None:
        """`n` bytes that a scan had seen are gone (file cut or deleted) before they were read."""
        self._add(n, "piper_lost_bytes_total")
        _spool.error("bytes_lost", bytes=n, **_present(path=path))

    def backlog(self, size_bytes: int, files: int, oldest_unread_age_seconds: float) -> None:
        """What the spool holds beyond the committed offsets."""
        self._gauge("piper_backlog_bytes").set(size_bytes)
        self._gauge("piper_backlog_files").set(files)
        self._gauge("piper_oldest_unread_age_seconds").set(max(oldest_unread_age_seconds, 0.0))
        age = round(oldest_unread_age_seconds, 1)
        _spool.debug("backlog", bytes=size_bytes, files=files, oldest_unread_age_seconds=age)

    def batch_read(self, size_bytes: int, lines: int, seconds: float) -> None:
        """The lines of one batch were read from the spool."""
        self._add(size_bytes, "piper_bytes_read_total")
        self._add(lines, "piper_lines_read_total")
        self._observe(seconds, "piper_stage_duration_seconds", "read")
        _spool.debug("batch_read", bytes=size_bytes, lines=lines, seconds=round(seconds, 4))

    # --- events ---

    def batch_parsed(self, events: int, rejected: int, seconds: float) -> None:
        """A batch was parsed; its events count as ingested, and its rejections, once they are committed."""
        self._observe(seconds, "piper_stage_duration_seconds", "parse")
        _events.debug("batch_parsed", events=events, rejected=rejected, seconds=round(seconds, 4))

    def lines_quarantined(self, reason: str, n: int = 1) -> None:
        """`n` lines were committed to quarantine. Call once per batch and reason of `REJECTION_REASONS`."""
        self._add(n, "piper_lines_quarantined_total", reason)
        if n:
            _events.warning("lines_quarantined", reason=reason, n=n)

    def ingest_lag(self, seconds: npt.ArrayLike) -> None:
        """Commit time minus occurred_at_utc of every event of a batch, as one array (any shape)."""
        self._histograms["piper_ingest_lag_seconds"].observe_many(seconds)
        self._add(int(np.count_nonzero(np.asarray(seconds) > OLD_SECONDS)), "piper_old_events_total")

    def last_event(self, group: str, timestamp: float) -> None:
        """The latest event of `group` in a batch occurred at `timestamp`; it never goes back."""
        gauge = self._gauge("piper_last_event_timestamp_seconds", group)
        with self._lock:
            self._last_events[group] = latest = max(timestamp, self._last_events.get(group, 0.0))
            gauge.set(latest)

    # --- silver ---

    def batch_committed(
        self,
        events: Mapping[str, int],
        seconds: float,
        *,
        duplicates: int = 0,
        contract_violations: int = 0,
        unknown_types: int = 0,
    ) -> None:
        """A batch is durable. `events` counts its new rows by group of `EVENT_GROUPS`."""
        for group, n in events.items():
            self._add(n, "piper_events_ingested_total", group)
        total = sum(events.values())
        self._add(duplicates, "piper_events_duplicate_total")
        self._add(contract_violations, "piper_contract_violations_total")
        self._add(unknown_types, "piper_unknown_type_events_total")
        self._observe(total, "piper_batch_events")
        self._observe(seconds, "piper_stage_duration_seconds", "commit")
        self._gauge("piper_last_commit_timestamp_seconds").set(self._clock())
        counts = _present(duplicates=duplicates, contract_violations=contract_violations, unknown_types=unknown_types)
        _silver.debug("batch_committed", events=total, seconds=round(seconds, 4), **counts)

    def commit_failed(self, kind: str, *, error: str = "") -> None:
        """A commit rolled back for `kind` of `COMMIT_ERROR_KINDS`; nothing of its batch is stored."""
        self._add(1, "piper_commit_errors_total", kind)
        _silver.error("commit_failed", kind=kind, **_present(error=error))

    def chunk_sealed(self, dataset: str, rows: int, size_bytes: int, *, path: str = "") -> None:
        """One Parquet chunk of `dataset` became durable."""
        self._gauge("piper_chunks", dataset).inc()
        _silver.debug("chunk_sealed", dataset=dataset, rows=rows, bytes=size_bytes, **_present(path=path))

    def seal_finished(self, chunks: int, rows: int, seconds: float, *, sealed_through: int) -> None:
        """A seal moved `rows` into `chunks`; every commit up to `sealed_through` is in Parquet now."""
        self._gauge("piper_sealed_through").set(sealed_through)
        self._observe(seconds, "piper_stage_duration_seconds", "seal")
        fields = {"chunks": chunks, "rows": rows, "sealed_through": sealed_through}
        _silver.info("seal_finished", **fields, seconds=round(seconds, 4))

    def chunks_counted(self, chunks: Mapping[str, int]) -> None:
        """How many chunks each dataset has, counted at start and after a compaction."""
        for dataset, n in chunks.items():
            self._gauge("piper_chunks", dataset).set(n)
        _silver.debug("chunks_counted", **chunks)

    def hidden_chunks(self, n: int) -> None:
        """How many chunks are hidden from readers and not deleted yet."""
        self._gauge("piper_hidden_chunks").set(n)

    def chunk_broken(self, fault: str, *, path: str, detail: str) -> None:
        """A chunk is not what the manifest says; readers do without it until it is repaired."""
        _silver.error("chunk_broken", fault=fault, path=path, detail=detail)

    def broken_chunks(self, n: int) -> None:
        """How many chunks of the manifest are missing or damaged."""
        self._gauge("piper_broken_chunks").set(n)

    # --- upkeep ---

    def compacted(self, chunks: int, into: int, rows: int, seconds: float) -> None:
        """A rewrite merged `chunks` into fewer; readers switch with the next tail."""
        self._add(1, "piper_compactions_total")
        self._add(chunks, "piper_compacted_chunks_total")
        _upkeep.info("compacted", chunks=chunks, into=into, rows=rows, seconds=round(seconds, 4))

    def pruned(self, kind: str, files: int, rows: int, size_bytes: int) -> None:
        """Retention deleted what was due of `kind` of `PRUNED`."""
        self._add(files, "piper_pruned_files_total", kind)
        self._add(rows, "piper_pruned_rows_total", kind)
        self._add(size_bytes, "piper_pruned_bytes_total", kind)
        if files or rows:
            _upkeep.info("pruned", kind=kind, files=files, rows=rows, bytes=size_bytes)

    def upkeep_done(self, duty: str, seconds: float) -> None:
        """A step of `duty` of `DUTIES` did something."""
        self._observe(seconds, "piper_upkeep_duration_seconds", duty)
        _upkeep.debug("upkeep_done", duty=duty, seconds=round(seconds, 4))

    def upkeep_failed(self, duty: str, *, error: str = "", again_in_seconds: float = 0.0) -> None:
        """A step of `duty` failed; nothing of it took effect."""
        self._add(1, "piper_upkeep_errors_total", duty)
        _upkeep.error("upkeep_failed", duty=duty, **_present(error=error), again_in_seconds=round(again_in_seconds))

    # --- publish and gold ---

    def published(self, seconds: float, *, tail_rows: int) -> None:
        """A new tail is what readers see; it holds `tail_rows` rows of the events dataset."""
        self._gauge("piper_last_publish_timestamp_seconds").set(self._clock())
        self._gauge("piper_tail_rows").set(tail_rows)
        self._observe(seconds, "piper_stage_duration_seconds", "publish")
        _publish.debug("published", tail_rows=tail_rows, seconds=round(seconds, 4))

    def gold_refreshed(self, model: str, seconds: float, ok: bool, *, error: str = "") -> None:
        """A refresh of `model` of `GOLD_MODELS` ended; when not `ok`, readers keep its old rows."""
        self._observe(seconds, "piper_gold_refresh_duration_seconds", model)
        self._add(1, "piper_gold_refreshes_total", model, "ok" if ok else "error")
        if ok:
            self._gauge("piper_gold_last_success_timestamp_seconds", model).set(self._clock())
            _gold.debug("gold_refreshed", model=model, seconds=round(seconds, 4))
        else:
            _gold.error("gold_refresh_failed", model=model, **_present(error=error), seconds=round(seconds, 4))

    def gold_current(self, models: Iterable[str]) -> None:
        """Readers find every commit in `models` (of `GOLD_MODELS`), but for a pause; said again without news."""
        for model in models:
            self._gauge("piper_gold_current_timestamp_seconds", model).set(self._clock())

    # --- privacy ---

    def privacy(self, *, is_pending: bool) -> None:
        """Whether what readers mount still holds the form that `privacy.mask_users` does not ask for."""
        self._gauge("piper_privacy_rewrite_pending").set(is_pending)

    # --- the machine ---

    def storage(self, size_bytes: Mapping[str, int]) -> None:
        """Bytes on disk by kind of `STORAGE_KINDS`."""
        for kind, n in size_bytes.items():
            self._gauge("piper_storage_bytes", kind).set(n)
        _silver.debug("storage", **size_bytes)

    def disk(self, free_bytes: int, total_bytes: int) -> None:
        """Room on the disk of the data root."""
        self._gauge("piper_disk_free_bytes").set(free_bytes)
        self._gauge("piper_disk_size_bytes").set(total_bytes)
        _silver.debug("disk", free_bytes=free_bytes, total_bytes=total_bytes)

    def state_disk(self, free_bytes: int, total_bytes: int) -> None:
        """Room on the disk of the state root, where that is another one than the data root's."""
        self._gauge("piper_state_disk_free_bytes").set(free_bytes)
        self._gauge("piper_state_disk_size_bytes").set(total_bytes)
        _silver.debug("state_disk", free_bytes=free_bytes, total_bytes=total_bytes)

    def show_health(self, health: Health) -> None:
        """Let `piper_ready` follow `health`, asked at each scrape: right even while every loop hangs."""
        self._gauge("piper_ready").set_function(lambda: float(health.readiness()[0]))


def _present(**fields: Any) -> dict[str, Any]:
    """Log fields that say something."""
    return {key: value for key, value in fields.items() if value}

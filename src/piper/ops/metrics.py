"""What piper tells Prometheus, and the log line that goes with each thing that happens.

`Metrics` has one method per thing that happens, which counts it and logs it, so that a number on a dashboard and a line
in the log never disagree. What there is to count is in `metric_list.py`.

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
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import structlog
from prometheus_client import Counter, Gauge, disable_created_metrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import CollectorRegistry

import piper
from piper.ops.health import Health
from piper.ops.histogram import VectorHistogram
from piper.ops.metric_list import ERRNOS, METRICS, OLD_SECONDS, Metric

_spool = structlog.get_logger(component="spool")
_events = structlog.get_logger(component="events")
_silver = structlog.get_logger(component="silver")
_gold = structlog.get_logger(component="gold")
_publish = structlog.get_logger(component="publish")
_upkeep = structlog.get_logger(component="upkeep")

_disable_created_series: Callable[[], None] = disable_created_metrics

_QUIET_FILE_EVENTS: Final = frozenset({"renamed", "vanished"})
"""Everyday life of a spool: writers delete their files after a week. The rest may cost data: a warning."""


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

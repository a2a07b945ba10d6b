"""The list of piper's metrics: names, kinds, units, meanings, and the closed sets that their label values come from.

A path, host or user is never a label: artists choose those, and without bound. `docs/metrics.md` is tested against the
list. Durations are seconds, sizes are bytes, points in time are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

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

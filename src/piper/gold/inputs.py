"""What gold reads: the typed columns of its input relations, and the source that provides them.

The names and columns are those of the silver views; `silver_events` adds two columns that the views do not
show, `ingest_counts` says how many lines of a date never became a row, and `spool_hosts` what the spool holds now.
Besides these a model may read the relations of `OWN_COLUMNS`, which gold has itself, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from types import MappingProxyType
from typing import Protocol

import duckdb


class SilverSource(Protocol):
    """The silver side of a refresh. Both calls happen inside the refresh's transaction, on its connection."""

    def changed_dates(self, con: duckdb.DuckDBPyConnection, after_seq: int) -> tuple[int, list[date]]:
        """Give the last commit's number and the dates whose rows or counts changed in commits after
        `after_seq`.

        Includes dates that lost rows. A last commit below `after_seq` says that silver started a new life;
        every model is then rebuilt. `after_seq` 0 means all dates.
        """

    def relation_sql(
        self, con: duckdb.DuckDBPyConnection, dataset: str, dates: Sequence[date] | None, after_seq: int = 0
    ) -> str:
        """Give a SELECT of the dataset's rows for these event dates (None: all), with the columns of
        `INPUT_COLUMNS`; with `after_seq` only of those that later commits brought.

        The text becomes a CTE named like the dataset, beside others: it names every table with its database
        and schema.
        """

    def rows_if_only_added(self, con: duckdb.DuckDBPyConnection, dataset: str, dates: Sequence[date]) -> int | None:
        """Give the number of rows of the dataset for these event dates, without reading them; None when some of
        them may have taken the place of others without a commit that `relation_sql` could tell them by.
        """


def _columns(text: str) -> Mapping[str, str]:
    """Read 'TYPE: name name …' lines; names keep their order."""
    columns: dict[str, str] = {}
    for line in text.strip().splitlines():
        sql_type, names = line.split(":")
        columns.update({name: sql_type.strip() for name in names.split()})
    return MappingProxyType(columns)


INPUT_COLUMNS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "silver_events": _columns("""
            VARCHAR: event_id schema_version event_type
            TIMESTAMP: occurred_at_utc
            DATE: event_date
            VARCHAR: status pipeline_name pipeline_dcc host_hostname host_user host_os session_id action_id
            VARCHAR: scope_show scope_sequence scope_shot scope_asset scope_department scope_task
            VARCHAR: error_code error_message payload metrics source_file
            BIGINT: source_offset source_line
            TIMESTAMP: ingested_at_utc
            BOOLEAN: is_known_type
            VARCHAR: contract_violation
        """),
        "silver_publish_usd": _columns("""
            VARCHAR: event_id event_type publish_type
            TIMESTAMP: occurred_at_utc
            DATE: event_date
            VARCHAR: status dcc hostname username show sequence shot asset department output_path
            BIGINT: duration_ms output_size_bytes
            VARCHAR: error_code error_message
        """),
        "silver_tool_events": _columns("""
            VARCHAR: event_id event_type
            TIMESTAMP: occurred_at_utc
            DATE: event_date
            VARCHAR: status dcc hostname username show sequence shot asset department
            BIGINT: duration_ms output_size_bytes
            VARCHAR: error_code error_message
        """),
        "silver_tractor_job_spool": _columns("""
            VARCHAR: event_id
            TIMESTAMP: occurred_at_utc
            DATE: event_date
            VARCHAR: status hostname username show sequence shot job_id job_title engine_url service renderer
            DOUBLE: priority
            BIGINT: frame_start frame_end frame_step tile_count blade_count spool_duration_ms
            VARCHAR: error_code error_message
        """),
        "silver_tractor_farm_snapshot": _columns("""
            VARCHAR: event_id
            TIMESTAMP: occurred_at_utc
            DATE: event_date
            VARCHAR: status hostname username engine_url
            BIGINT: running_jobs waiting_jobs errored_jobs busy_slots total_slots active_blades total_blades
            BIGINT: snapshot_duration_ms
            VARCHAR: error_code error_message
        """),
        "silver_render_stats_summary": _columns("""
            VARCHAR: event_id
            TIMESTAMP: occurred_at_utc
            DATE: event_date
            VARCHAR: status hostname username show sequence shot job_id renderer service
            BIGINT: frame_count failed_frames
            DOUBLE: frame_time_p50_ms frame_time_p90_ms avg_render_time_s total_cpu_hours peak_memory_gb
            BIGINT: retry_count queue_wait_ms
            VARCHAR: error_code error_message
        """),
        "silver_storage_scan_summary": _columns("""
            VARCHAR: event_id
            TIMESTAMP: occurred_at_utc
            DATE: event_date
            VARCHAR: status hostname username scan_id
            BIGINT: roots_scanned_count bucket_count total_size_bytes total_file_count total_dir_count
            DOUBLE: scan_duration_s
            VARCHAR: error_code error_message
        """),
        "silver_storage_scan_bucket": _columns("""
            VARCHAR: event_id
            TIMESTAMP: occurred_at_utc
            DATE: event_date
            VARCHAR: status hostname username scan_id bucket_id bucket category
            VARCHAR: scope_type scope_code root_path
            BIGINT: total_size_bytes file_count dir_count
            DOUBLE: scan_duration_s
            VARCHAR: error_code error_message
        """),
        "ingest_counts": _columns("""
            DATE: event_date
            BIGINT: quarantined_lines duplicate_events
        """),
        "spool_hosts": _columns("""
            VARCHAR: host
            BIGINT: files bytes_behind
        """),
    }
)
"""Name and SQL type of every column of every relation of a `SilverSource`. Times are naive and in UTC."""

OWN_COLUMNS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "event_types": _columns("VARCHAR: event_type event_group"),
        "model_events": _columns("VARCHAR: model event_type"),
        "refresh": _columns("TIMESTAMP: now_utc"),
        "gold_watermark": _columns("""
            VARCHAR: model
            TIMESTAMP: refreshed_at_utc
        """),
        "gold_activity_daily": _columns("""
            DATE: event_date
            VARCHAR: event_type
            TIMESTAMP: last_event_at last_ingested_at
        """),
        "gold_host_activity_daily": _columns("""
            DATE: event_date
            VARCHAR: host
            TIMESTAMP: last_event_at
            DOUBLE: last_event_lag_s
            TIMESTAMP: last_ingested_at
        """),
    }
)
"""The same of the relations that gold has itself (`own.py`): constants of piper, and columns of gold's own tables."""

ALL_COLUMNS: Mapping[str, Mapping[str, str]] = MappingProxyType({**INPUT_COLUMNS, **OWN_COLUMNS})


def empty_relation_sql(name: str) -> str:
    """Give a SELECT of no rows with the input's typed columns."""
    columns = ", ".join(f'CAST(NULL AS {sql_type}) AS "{column}"' for column, sql_type in ALL_COLUMNS[name].items())
    return f"SELECT {columns} WHERE FALSE"

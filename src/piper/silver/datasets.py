"""The eight silver datasets: their columns in the order of their views, and the SQL that projects fresh events.

`sql/<dataset>.sql` holds one SELECT over `fresh`, the accepted and deduplicated events of a commit. Times are TIMESTAMP
in UTC, sizes bytes, durations milliseconds unless the name says otherwise. A value that does not fit its column is NULL
there and stays in the payload or metrics of silver_events.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

EMPTY_CHUNK = "000000000000-empty.parquet"
"""A chunk of no rows in every dataset: it keeps every glob valid, and typed, on an empty warehouse."""
UNKNOWN_PARTITION = "unknown"
"""Partition of the types that the registry lacks: one for all, so that a spool cannot make directories. It has no dot,
which every event type has."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """One silver dataset. `columns` are what its view shows; `internal` ones are stored beside them for piper."""

    name: str
    columns: tuple[tuple[str, str], ...]
    internal: tuple[tuple[str, str], ...] = (("commit_seq", "BIGINT"),)

    @property
    def view(self) -> str:
        """Name of the view in telemetry.duckdb."""
        return f"silver_{self.name}"

    @property
    def tail_table(self) -> str:
        """Table of the rows that are not sealed yet, in the manifest and in tail.duckdb."""
        return f"{self.name}_tail"

    @property
    def stored(self) -> tuple[tuple[str, str], ...]:
        """All columns of the tail table."""
        return self.columns + self.internal

    @property
    def column_list(self) -> str:
        """The stored columns, quoted and comma-separated."""
        return ", ".join(f'"{name}"' for name, _ in self.stored)

    def chunk_rows_sql(self, files: str, columns: str | None = None, *, with_filename: bool = False) -> str:
        """SELECT of `columns` (default: all stored) from Parquet chunks; `files` is SQL text naming them.

        `with_filename`: a condition on `filename` is applied before any file is opened.
        """
        columns, hive_types = columns or self.column_list, "'event_date': DATE"
        if self.has_type_partition:  # the directory says `unknown` for every type that the registry lacks
            columns = columns.replace('"event_type"', 'event_type_name AS "event_type"')
            hive_types += ", 'event_type': VARCHAR"
        options = f"hive_partitioning = true, hive_types = {{{hive_types}}}"
        if with_filename:
            options += ", filename = true"
        return f"SELECT {columns} FROM read_parquet({files}, {options})"

    @property
    def has_type_partition(self) -> bool:
        """Whether chunks are partitioned by event_type below event_date."""
        return self.name == "events"


def _columns(text: str) -> tuple[tuple[str, str], ...]:
    """Parse "name name:TYPE …"; VARCHAR where no type is given."""
    pairs = (word.partition(":") for word in text.split())
    return tuple((name, kind or "VARCHAR") for name, _, kind in pairs)


_WHO_WHEN = "event_id {type} occurred_at_utc:TIMESTAMP event_date:DATE status"

_DATASETS = (
    Dataset(
        "events",
        _columns(
            "event_id schema_version event_type occurred_at_utc:TIMESTAMP event_date:DATE status pipeline_name"
            " pipeline_dcc host_hostname host_user host_os session_id action_id scope_show scope_sequence scope_shot"
            " scope_asset scope_department scope_task error_code error_message payload metrics source_file"
            " source_offset:BIGINT source_line:BIGINT ingested_at_utc:TIMESTAMP"
        ),
        _columns("is_known_type:BOOLEAN contract_violation commit_seq:BIGINT"),
    ),
    Dataset(
        "publish_usd",
        _columns(
            "event_id event_type publish_type occurred_at_utc:TIMESTAMP event_date:DATE status dcc hostname username"
            " show sequence shot asset department output_path duration_ms:BIGINT output_size_bytes:BIGINT"
            " error_code error_message"
        ),
    ),
    Dataset(
        "tool_events",
        _columns(
            "event_id event_type occurred_at_utc:TIMESTAMP event_date:DATE status dcc hostname username show sequence"
            " shot asset department duration_ms:BIGINT output_size_bytes:BIGINT error_code error_message"
        ),
    ),
    Dataset(
        "tractor_job_spool",
        _columns(
            "event_id occurred_at_utc:TIMESTAMP event_date:DATE status hostname username show sequence shot job_id"
            " job_title engine_url service renderer priority:DOUBLE frame_start:BIGINT frame_end:BIGINT"
            " frame_step:BIGINT tile_count:BIGINT blade_count:BIGINT spool_duration_ms:BIGINT error_code error_message"
        ),
    ),
    Dataset(
        "tractor_farm_snapshot",
        _columns(
            "event_id occurred_at_utc:TIMESTAMP event_date:DATE status hostname username engine_url"
            " running_jobs:BIGINT waiting_jobs:BIGINT errored_jobs:BIGINT busy_slots:BIGINT total_slots:BIGINT"
            " active_blades:BIGINT total_blades:BIGINT snapshot_duration_ms:BIGINT error_code error_message"
        ),
    ),
    Dataset(
        "render_stats_summary",
        _columns(
            "event_id occurred_at_utc:TIMESTAMP event_date:DATE status hostname username show sequence shot job_id"
            " renderer service frame_count:BIGINT failed_frames:BIGINT frame_time_p50_ms:DOUBLE"
            " frame_time_p90_ms:DOUBLE avg_render_time_s:DOUBLE total_cpu_hours:DOUBLE peak_memory_gb:DOUBLE"
            " retry_count:BIGINT queue_wait_ms:BIGINT error_code error_message"
        ),
    ),
    Dataset(
        "storage_scan_summary",
        _columns(
            "event_id occurred_at_utc:TIMESTAMP event_date:DATE status hostname username scan_id"
            " roots_scanned_count:BIGINT bucket_count:BIGINT total_size_bytes:BIGINT total_file_count:BIGINT"
            " total_dir_count:BIGINT scan_duration_s:DOUBLE error_code error_message"
        ),
    ),
    Dataset(
        "storage_scan_bucket",
        _columns(
            "event_id occurred_at_utc:TIMESTAMP event_date:DATE status hostname username scan_id bucket_id bucket"
            " category scope_type scope_code root_path total_size_bytes:BIGINT file_count:BIGINT dir_count:BIGINT"
            " scan_duration_s:DOUBLE error_code error_message"
        ),
    ),
)

DATASETS: dict[str, Dataset] = {dataset.name: dataset for dataset in _DATASETS}

MACROS = (
    # A non-integer is never rounded into an integer column. JSON numbers with a fraction or an exponent arrive as the
    # shortest text of their double: 5.0, 1e+20. (Why not by DECIMAL: bench/choices.py, casts.)
    r"""CREATE OR REPLACE MACRO work.to_bigint(x) AS CASE
        WHEN regexp_full_match(x, '-?[0-9]+(\.0+)?') THEN TRY_CAST(split_part(x, '.', 1) AS BIGINT)
        WHEN regexp_full_match(x, '-?[0-9]+(\.[0-9]+)?[eE][+-]?[0-9]+')
            AND TRY_CAST(x AS DOUBLE) = TRY_CAST(TRY_CAST(x AS DOUBLE) AS BIGINT)
        THEN TRY_CAST(TRY_CAST(x AS DOUBLE) AS BIGINT) END""",
    # DuckDB's own cast would also take 'nan', ' 7' and '1_000'.
    r"""CREATE OR REPLACE MACRO work.to_double(x) AS CASE
        WHEN regexp_full_match(x, '-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?') AND isfinite(TRY_CAST(x AS DOUBLE))
        THEN TRY_CAST(x AS DOUBLE) END""",
)
"""Casts that the projections use: text of a JSON value in, number or NULL out. A string counts when it spells a number
as JSON does (leading zeros are let through); booleans, white space, nan and infinity are none."""


@cache
def projection_sql(name: str) -> str:
    """The SELECT over `fresh` that yields the stored columns of a dataset, in order."""
    return files("piper.silver").joinpath("sql", f"{name}.sql").read_text("utf-8")

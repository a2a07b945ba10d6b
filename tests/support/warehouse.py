"""What a data root holds, as its readers see it, and what it must hold according to the raw lines."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
from tests.support import gold_reference

SILVER_VIEWS = (
    "silver_events",
    "silver_publish_usd",
    "silver_tool_events",
    "silver_tractor_job_spool",
    "silver_tractor_farm_snapshot",
    "silver_render_stats_summary",
    "silver_storage_scan_summary",
    "silver_storage_scan_bucket",
)
GOLD_VIEWS = (
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


@contextmanager
def catalog(data_root: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The catalog as a reader has it: read-only."""
    with duckdb.connect(str(data_root / "warehouse" / "telemetry.duckdb"), read_only=True) as con:
        yield con


def event_count(data_root: Path) -> int:
    """Rows of silver_events; -1 while there is no catalog yet."""
    if not (data_root / "warehouse" / "telemetry.duckdb").exists():
        return -1
    with catalog(data_root) as con:
        return count_of(con, "silver_events")


def count_of(con: duckdb.DuckDBPyConnection, relation: str) -> int:
    """Rows of a relation."""
    row = con.execute(f"SELECT count(*) FROM {relation}").fetchone()
    assert row is not None
    return int(row[0])


def domain_view(event_type: str) -> str | None:
    """The domain view that an event of this (nested) type is in besides silver_events."""
    if event_type.startswith("publish.") and event_type.endswith(".usd") and event_type != "publish.usd":
        return "silver_publish_usd"
    if event_type in gold_reference.TOOL_TYPES:
        return "silver_tool_events"
    name = "silver_" + event_type.replace(".", "_")
    return name if name in SILVER_VIEWS else None


def assert_silver_is(con: duckdb.DuckDBPyConnection, events: Iterable[Mapping[str, Any]]) -> None:
    """Every event exactly once in silver_events and once in its domain view, and nothing else anywhere."""
    expected: dict[str, Counter[str]] = {view: Counter() for view in SILVER_VIEWS}
    for event_id, event_type in {event["event_id"]: gold_reference.event_type_of(event) for event in events}.items():
        for view in filter(None, ("silver_events", domain_view(event_type))):
            expected[view][event_id] += 1
    for view, ids in expected.items():
        found = Counter(row[0] for row in con.execute(f"SELECT event_id FROM {view}").fetchall())
        missing, surplus = ids - found, found - ids
        assert not missing, f"{view} lacks {len(missing)} of {ids.total()}: {sorted(missing)[:5]}"
        assert not surplus, f"{view} has {surplus.total()} too many: {sorted(surplus)[:5]}"


def assert_gold_is(
    con: duckdb.DuckDBPyConnection,
    events: Iterable[Mapping[str, Any]],
    *,
    quarantined: Mapping[date, int] | None = None,
    duplicates: Mapping[date, int] | None = None,
) -> None:
    """The gold views that raw events alone decide equal a recomputation from these in plain Python."""
    expected = gold_reference.recompute(events, quarantined=quarantined, duplicates=duplicates)
    assert set(expected) == {view for view in GOLD_VIEWS if view.endswith(("daily", "weekly"))} - {
        "gold_host_activity_daily"
    }
    for model, rows in expected.items():
        found = gold_rows(con, model)
        assert gold_reference.rows_agree(found, rows), f"{model}: {_first_difference(found, rows)}"


def gold_rows(con: duckdb.DuckDBPyConnection, model: str) -> list[dict[str, Any]]:
    """A gold view's rows, sorted, without the columns that depend on the time of ingest."""
    unchecked = gold_reference.UNCHECKED.get(model, ())
    result = con.execute(f"FROM {model}")
    names = [column[0] for column in result.description]
    rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    return gold_reference.sort_rows({k: v for k, v in row.items() if k not in unchecked} for row in rows)


def quarantine_records(data_root: Path) -> list[dict[str, Any]]:
    """All records of all quarantine files."""
    files = sorted((data_root / "quarantine" / "invalid_jsonl").glob("*/*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]


def raw_of(record: Mapping[str, Any]) -> bytes:
    """The line that a quarantine record keeps."""
    if "raw_base64" in record:
        return base64.b64decode(record["raw_base64"])
    return str(record["raw_text"]).encode()


def days_of(records: Iterable[Mapping[str, Any]]) -> Counter[date]:
    """Quarantined lines by the UTC day of their quarantine."""
    return Counter(date.fromisoformat(record["quarantined_at_utc"][:10]) for record in records)


def _first_difference(found: Sequence[Mapping[str, Any]], expected: Sequence[Mapping[str, Any]]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} rows instead of {len(expected)}"
    for left, right in zip(found, expected, strict=True):
        if not gold_reference.rows_agree([dict(left)], [dict(right)]):
            return f"{dict(left)}\n!=\n{dict(right)}"
    return "no row differs"

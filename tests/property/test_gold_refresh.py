"""In any order and any batches: incremental gold equals gold from scratch and the reference."""

from __future__ import annotations

from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support import gold_reference
from tests.support.gold_source import TableSource

from piper.gold.models import GoldModel, load_models
from piper.gold.refresh import GoldStore

FIRST = date(2026, 2, 27)
DAYS = [FIRST + timedelta(days=n) for n in (0, 1, 2, 3, 9, 10, 11, 24)]
TYPES = [
    "publish.asset.usd",
    "file.open",
    "dcc.launch",
    "tractor.farm.snapshot",
    "render.stats.summary",
    "storage.scan.bucket",
    "storage.scan.bucket",
    "new.thing",
]
SMALL = st.one_of(st.none(), st.integers(0, 1000))
COUNTERS = [
    "running_jobs",
    "waiting_jobs",
    "busy_slots",
    "total_slots",
    "active_blades",
    "total_blades",
    "total_frames",
    "failed_frames",
    "frame_time_p90_ms",
    "avg_render_time_s",
    "queue_wait_ms",
    "retry_count_total",
]


@st.composite
def events(draw: st.DrawFn) -> dict[str, Any]:
    """Give an event of any gold's type; the ids repeat, so that duplicates are among them."""
    at = f"{draw(st.sampled_from(DAYS))}T{draw(st.integers(0, 23)):02}:00:00Z"
    values = draw(st.lists(SMALL, min_size=len(COUNTERS), max_size=len(COUNTERS)))
    payload: dict[str, Any] = dict(zip(COUNTERS, values, strict=True))
    payload["category"] = draw(st.sampled_from([None, "cache", "texture"]))
    return {
        "schema_version": "1.0",
        "event_id": f"e{draw(st.integers(0, 60))}",
        "event_type": draw(st.sampled_from(TYPES)),
        "occurred_at_utc": at,
        "status": draw(st.sampled_from(["success", "error", "warning", "info"])),
        "pipeline": {"name": "p"},
        "host": {"hostname": "ws1", "user": draw(st.sampled_from(["ana", "bo"]))},
        "session": {"session_id": "s"},
        "payload": payload,
        "metrics": {"duration_ms": draw(SMALL), "size_bytes": draw(SMALL)},
        "scope": draw(st.sampled_from([None, {"show": "x"}, {"show": "x", "sequence": "A"}])),
    }


BATCH = st.tuples(
    st.lists(events(), min_size=2, max_size=8),
    st.lists(st.sampled_from(DAYS), max_size=2),
    st.none() | st.integers(0, 60),
)
"""Events, dates of quarantined lines, and the number of an event that silver then drops."""


def table(con: duckdb.DuckDBPyConnection, model: GoldModel) -> list[gold_reference.Row]:
    names = [column.name for column in model.columns]
    rows = con.execute(f"SELECT * FROM gold.main.{model.name}").fetchall()
    return gold_reference.sort_rows(dict(zip(names, row, strict=True)) for row in rows)


def tables(con: duckdb.DuckDBPyConnection) -> dict[str, list[gold_reference.Row]]:
    return {model.name: table(con, model) for model in load_models()}


def assert_equal(left: dict[str, list[gold_reference.Row]], right: dict[str, list[gold_reference.Row]]) -> None:
    assert left.keys() == right.keys()
    for name, rows in left.items():
        assert gold_reference.rows_agree(rows, right[name]), f"{name}: {rows}\n!=\n{right[name]}"


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=st.lists(BATCH, min_size=1, max_size=6))
def test_incremental_refreshes_equal_a_rebuild_and_the_reference(
    batches: list[tuple[list[dict[str, Any]], list[date], int | None]],
) -> None:
    with TemporaryDirectory() as folder, duckdb.connect() as con:
        source = TableSource(con)
        store = GoldStore.open(con, Path(folder) / "gold.duckdb")
        present: dict[str, dict[str, Any]] = {}
        duplicates: Counter[date] = Counter()
        quarantined: Counter[date] = Counter()
        for batch, bad_lines, removed in batches:
            source.commit(batch, quarantined=bad_lines)
            quarantined.update(bad_lines)
            for event in batch:
                if present.setdefault(event["event_id"], event) is not event:
                    duplicates[gold_reference.occurred_at(event).date()] += 1
            if removed is not None:
                source.remove(f"e{removed}")
                present.pop(f"e{removed}", None)
            report = store.refresh(con, source)
            assert report.failed == {}
            assert report.through_seq == source.seq
        incremental = tables(con)

        store.rebuild(con, source)

        assert_equal(incremental, tables(con))
        for row in incremental["gold_data_quality_daily"]:
            for name in gold_reference.UNCHECKED["gold_data_quality_daily"]:
                del row[name]
        assert_equal(
            incremental,
            gold_reference.recompute(present.values(), quarantined=quarantined, duplicates=duplicates),
        )


SCAN = st.tuples(st.integers(0, 27), st.sampled_from([None, "cache"]), st.integers(1, 10**6))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=st.lists(st.lists(SCAN, min_size=1, max_size=5), min_size=2, max_size=5))
def test_growth_follows_scans_that_arrive_late_and_out_of_order(
    batches: list[list[tuple[int, str | None, int]]],
) -> None:
    storage = next(model for model in load_models() if model.period == "week")
    with TemporaryDirectory() as folder, duckdb.connect() as con:
        source = TableSource(con)
        store = GoldStore.open(con, Path(folder) / "gold.duckdb", models=[storage])
        arrived: list[dict[str, Any]] = []
        for batch in batches:
            scans = [
                scan(f"e{len(arrived) + n}", FIRST + timedelta(days=day), bucket, size)
                for n, (day, bucket, size) in enumerate(batch)
            ]
            arrived += scans
            source.commit(scans)
            assert store.refresh(con, source).failed == {}
            expected = gold_reference.recompute(arrived)[storage.name]
            assert_equal({storage.name: table(con, storage)}, {storage.name: expected})


def scan(event_id: str, day: date, bucket: str | None, size: int) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "event_type": "storage.scan.bucket",
        "status": "info",
        "occurred_at": f"{day}T12:00:00Z",
        "action_id": "a",
        "hostname": "ws1",
        "host_user": "ana",
        "payload": {"bucket": bucket, "root_path": "/r", "size_bytes": size},
    }

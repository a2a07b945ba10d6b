"""The near-real-time models: what leaves the window, what a refresh reads and writes, how the spool shows in gold."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests.support.commands import Place
from tests.support.gold_source import TableSource

from piper.gold.refresh import GoldStore
from piper.ops.metrics import Metrics
from piper.silver.rewrite import Rewrite, partitions
from piper.writer import Clock, Writer

ACTIVITY = "gold_activity_live"
HOSTS = "gold_ingest_live"
START = datetime(2026, 3, 20, 12, 2, tzinfo=UTC)


class Gold:
    """A gold over tables, with a clock that a test moves."""

    def __init__(self, con: duckdb.DuckDBPyConnection, path: Path) -> None:
        self.con, self.path, self.now = con, path, START
        self.source = TableSource(con)
        self.store = GoldStore.open(con, path, clock=lambda: self.now)

    def after(self, **pause: float) -> dict[str, int]:
        """Refresh so much later; gives how many rows each refreshed model computed."""
        self.now += timedelta(**pause)
        return {name: run.rows for name, run in self.store.refresh(self.con, self.source).models.items()}

    def buckets(self) -> list[tuple[str, int]]:
        query = f"SELECT strftime(bucket_start, '%d %H:%M'), events FROM gold.main.{ACTIVITY} ORDER BY 1"
        return self.con.execute(query).fetchall()


@pytest.fixture
def gold(tmp_path: Path) -> Iterator[Gold]:
    with duckdb.connect() as con:
        yield Gold(con, tmp_path / "gold.duckdb")


def event(event_id: str, at: str, event_type: str = "file.open") -> dict[str, Any]:
    return {
        "schema_version": "1.0",
        "event_id": event_id,
        "event_type": event_type,
        "occurred_at_utc": at,
        "status": "success",
        "pipeline": {"name": "p"},
        "host": {"hostname": "ws1", "user": "ana"},
        "session": {"session_id": "s"},
    }


def test_buckets_leave_the_window_with_the_next_news_and_time_alone_writes_nothing(gold: Gold) -> None:
    early, late = "2026-03-18T12:00:00Z", "2026-03-20T11:59:00Z"
    gold.source.commit([event("a", early), event("b", "2026-03-18T11:59:59Z"), event("c", late)])
    gold.after()
    assert gold.buckets() == [("18 12:00", 1), ("20 11:55", 1)]

    assert gold.after(hours=47) == {}
    assert gold.buckets() == [("18 12:00", 1), ("20 11:55", 1)]

    gold.source.commit([event("d", "2026-03-22T11:00:00Z"), event("e", early)])
    gold.after()
    assert gold.buckets() == [("20 11:55", 1), ("22 11:00", 1)]


def test_a_clock_that_is_set_back_brings_the_buckets_back(gold: Gold) -> None:
    gold.source.commit([event("a", "2026-03-19T08:00:00Z"), event("b", "2026-03-20T08:00:00Z")])
    gold.after(days=1000)
    assert gold.buckets() == []
    gold.source.commit([event("c", "2026-03-20T08:01:00Z")])
    gold.after(days=-1000)
    assert gold.buckets() == [("19 08:00", 1), ("20 08:00", 2)]


def test_a_backfill_that_replaces_an_event_is_not_added_to_what_it_replaces(gold: Gold) -> None:
    gold.source.commit([event("a", "2026-03-20T08:00:00Z"), event("b", "2026-03-20T08:01:00Z")])
    gold.after()
    gold.source.remove("a")
    gold.source.commit([event("a", "2026-03-20T09:00:00Z")])
    gold.after(seconds=10)
    assert gold.buckets() == [("20 08:00", 1), ("20 09:00", 1)]


def test_an_event_before_the_window_does_not_make_up_for_one_that_was_taken_away(gold: Gold) -> None:
    gold.source.commit([event("a", "2026-03-19T08:00:00Z"), event("b", "2026-03-20T08:00:00Z")])
    gold.after()
    gold.source.remove("a")
    gold.source.commit([event("c", "2026-03-18T08:00:00Z")])  # of the date in which the window begins
    gold.after(seconds=10)
    assert gold.buckets() == [("20 08:00", 1)]


def test_what_the_spool_holds_alone_is_written_once_a_minute_and_only_if_it_changed(gold: Gold) -> None:
    gold.source.spool_holds({"ws1": (1, 0), "it's new": (2, 7)})
    assert gold.after()[HOSTS] == 2
    gold.source.spool_holds({"ws1": (5, 0), "it's new": (2, 7)})
    assert gold.after(seconds=59) == {}
    assert gold.after(seconds=2) == {HOSTS: 2, "gold_as_of": 11}
    assert gold.after(hours=5) == {}
    gold.source.commit([event("a", "2026-03-20T08:00:00Z")])
    gold.after(seconds=1)
    gold.source.spool_holds({"ws1": (6, 0)})
    gold.source.commit([event("b", "2026-03-20T08:00:00Z")])
    assert gold.after(seconds=1)[HOSTS] == 1


def test_as_of_tells_that_a_model_was_left_behind(gold: Gold) -> None:
    gold.source.commit([event("a", "2026-03-20T08:00:00Z")])
    gold.after()
    gold.con.execute("DROP TABLE gold.main.gold_tool_reliability_daily")
    gold.source.commit([event("b", "2026-03-20T09:00:00Z")])
    gold.after(hours=1)
    refreshed = dict(gold.con.execute("SELECT model, refreshed_at FROM gold.main.gold_as_of").fetchall())
    now = gold.now.replace(tzinfo=None)
    assert refreshed.pop("gold_tool_reliability_daily") == now - timedelta(hours=1)
    assert set(refreshed.values()) == {now}


# ---- over a real silver ----------------------------------------------------------------------------------------------


class Moving:
    """A clock that goes on only when told to."""

    def __init__(self) -> None:
        self.passed, self.began = 0.0, time.time()
        self.clock = Clock(monotonic=lambda: 1000.0 + self.passed, utc=lambda: self.began + self.passed)


def read(place: Place, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(place.layout.catalog), read_only=True) as con:
        return con.execute(query).fetchall()


def take_in(writer: Writer) -> None:
    writer.scan()
    while writer.ingest() is not None:
        pass
    writer.publish()
    writer.refresh_gold(writer.store.cursor())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_model_that_can_be_added_to_opens_only_what_is_new(place: Place) -> None:
    place.simulate(400, seed=1)
    with place.writer() as writer:
        take_in(writer)
        writer.seal()
        place.simulate(400, seed=2)
        take_in(writer)
        first = [path for path in (place.data / "silver" / "events").rglob("*.parquet") if "empty" not in path.name]
        place.simulate(400, seed=3)
        for path in first:
            path.rename(path.with_suffix(".gone"))
        take_in(writer)
        for path in first:
            path.with_suffix(".gone").rename(path)
        counted = "SELECT count(*), count(*) FILTER (status = 'error') FROM silver_events"
        totals = read(place, counted)
        for model in ("gold_activity_daily", "gold_activity_live", "gold_host_activity_daily"):
            assert read(place, f"SELECT sum(events)::BIGINT, sum(errors)::BIGINT FROM {model}") == totals, model
        assert read(place, "SELECT sum(total_events)::BIGINT FROM gold_data_quality_daily") < [(totals[0][0],)]
        take_in(writer)
        assert read(place, "SELECT sum(total_events)::BIGINT FROM gold_data_quality_daily") == [(totals[0][0],)]


def test_a_rewrite_that_changes_events_in_their_place_shows_in_gold(place: Place) -> None:
    place.simulate(300)
    with place.writer() as writer:
        take_in(writer)
        writer.seal()
        take_in(writer)
        con = writer.store.con
        rewrite = Rewrite.begin(writer.store, con)
        for partition in partitions(con):
            rewrite.replace(con, partition, select=lambda rows: f"SELECT * REPLACE ('error' AS status) FROM ({rows})")
        dates = [day for (day,) in con.execute("SELECT event_date FROM dates").fetchall()]
        rewrite.commit(now=writer.clock.now(), changed=dates)
        place.simulate(100, seed=5, error_ratio=0.0)
        take_in(writer)
        counted = read(place, "SELECT count(*), count(*) FILTER (status = 'error') FROM silver_events")
        assert counted[0][0] == 400
        for model in ("gold_activity_daily", "gold_activity_live", "gold_host_activity_daily"):
            assert read(place, f"SELECT sum(events)::BIGINT, sum(errors)::BIGINT FROM {model}") == counted, model


def test_each_host_directory_shows_its_files_and_what_is_unread_also_after_a_restart(place: Place) -> None:
    place.simulate(200, malformed_ratio=0.0)
    files = sorted(place.raw.rglob("*.jsonl"))
    hosts = sorted({path.parent.parent.name for path in files})
    counts = {host: sum(path.parent.parent.name == host for path in files) for host in hosts}
    query = "SELECT host, files, bytes_behind FROM gold_ingest_live ORDER BY host"
    time_of = Moving()
    with place.writer(clock=time_of.clock) as writer:
        take_in(writer)
        assert read(place, query) == [(host, counts[host], 0) for host in hosts]
        newest = read(place, "SELECT max(last_event_at), bool_and(lag_s IS NOT NULL) FROM gold_ingest_live")
        assert newest == [(read(place, "SELECT max(occurred_at_utc) FROM silver_events")[0][0], True)]

    with place.writer(clock=time_of.clock) as writer:  # not scanned yet: the manifest knows it all
        before = place.layout.gold.stat().st_ino
        time_of.passed += 3600
        assert not writer.refresh_gold(writer.store.cursor())
        assert place.layout.gold.stat().st_ino == before
        assert read(place, query) == [(host, counts[host], 0) for host in hosts]
        line = files[0].read_bytes().splitlines(keepends=True)[0].replace(b'"event_id": "', b'"event_id": "again-')
        with files[0].open("ab") as stream:
            stream.write(line)
        files[-1].with_name("telemetry-new.jsonl").write_bytes(b"")
        time_of.passed += 3600
        writer.scan()
        assert writer.refresh_gold(writer.store.cursor())
        behind = {files[0].parent.parent.name: len(line)}
        new = {files[-1].parent.parent.name: 1}
        assert read(place, query) == [(host, counts[host] + new.get(host, 0), behind.get(host, 0)) for host in hosts]
        time_of.passed += 1
        take_in(writer)
        assert read(place, "SELECT sum(bytes_behind)::BIGINT FROM gold_ingest_live") == [(0,)]


def test_a_host_that_is_called_after_somebody_has_one_name_in_all_of_gold(place: Place) -> None:
    place.simulate(100)
    home = next(place.raw.glob("*/*"))
    name = home.name
    (place.raw / f"{name}-laptop").mkdir()
    home.rename(place.raw / f"{name}-laptop" / name)
    settings = place.settings.model_copy(
        update={"privacy": place.settings.privacy.model_copy(update={"mask_users": True})}
    )
    writer = Writer.open(settings, Metrics(), command="piperd")
    try:
        take_in(writer)
    finally:
        writer.close()
    rows = read(place, "SELECT host, last_event_at IS NOT NULL FROM gold_ingest_live")
    assert any(host.endswith("-laptop") for host, _ in rows)
    assert all(has_events and name not in host for host, has_events in rows)

"""In any order and any batches, with late events, duplicates, backfills and wrong clocks: incremental gold equals gold
from scratch and the reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import duckdb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support import gold_live_reference, gold_reference
from tests.support.gold_live_reference import Arrival
from tests.support.gold_source import TableSource

from piper.gold.models import GoldModel, load_models
from piper.gold.refresh import GoldStore

FIRST = date(2026, 2, 27)
DAYS = [FIRST + timedelta(days=n) for n in (0, 1, 2, 3, 9, 10, 11, 24)]
START = datetime(2026, 3, 25, 1, tzinfo=UTC)
"""Where the clock of the refreshes begins; its 48 hours begin in the last of DAYS."""
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


DAYS_AGO = st.tuples(st.sampled_from(DAYS), st.integers(0, 23)).map(lambda at: f"{at[0]}T{at[1]:02}:00:00Z")
LATELY = st.integers(-52 * 12, 40 * 12).map(lambda n: (START + timedelta(minutes=5 * n, seconds=7)).isoformat())
"""Around the window of the live models; a time beyond the clock is that of a host whose own clock is ahead."""


@st.composite
def events(draw: st.DrawFn, event_id: int | None = None) -> dict[str, Any]:
    """Give an event of any gold's type; the ids repeat, so that duplicates are among them."""
    at = draw(DAYS_AGO | LATELY)
    values = draw(st.lists(SMALL, min_size=len(COUNTERS), max_size=len(COUNTERS)))
    payload: dict[str, Any] = dict(zip(COUNTERS, values, strict=True))
    payload["category"] = draw(st.sampled_from([None, "cache", "texture"]))
    return {
        "schema_version": "1.0",
        "event_id": f"e{draw(st.integers(0, 60)) if event_id is None else event_id}",
        "event_type": draw(st.sampled_from(TYPES)),
        "occurred_at_utc": at,
        "status": draw(st.sampled_from(["success", "error", "warning", "info"])),
        "pipeline": {"name": "p"},
        "host": {
            "hostname": draw(st.sampled_from(["ws1", "ws2", "ws3"])),
            "user": draw(st.sampled_from(["ana", "bo"])),
        },
        "session": {"session_id": "s"},
        "payload": payload,
        "metrics": {"duration_ms": draw(SMALL), "size_bytes": draw(SMALL)},
        "scope": draw(st.sampled_from([None, {"show": "x"}, {"show": "x", "sequence": "A"}])),
    }


SPOOL = st.dictionaries(st.sampled_from(["ws1", "ws2", "it's me"]), st.tuples(st.integers(0, 9), st.integers(0, 99)))


class Step(NamedTuple):
    """What happens to silver and the spool before one refresh."""

    arriving: list[dict[str, Any]]
    bad_lines: list[date]
    removed: int | None
    """Number of an event that silver drops."""
    replaced: dict[str, Any]
    """If its id is in silver, a backfill puts this event in its place."""
    spool: dict[str, tuple[int, int]]
    hours: int
    """How far the clock moves; now and then it is set back."""


STEPS = st.lists(
    st.builds(
        Step,
        st.lists(events(), max_size=8),
        st.lists(st.sampled_from(DAYS), max_size=2),
        st.none() | st.integers(0, 60),
        events(),
        SPOOL,
        st.integers(-6, 20),
    ),
    min_size=1,
    max_size=6,
)


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


class World:
    """A silver, the gold over it, and what they must hold."""

    def __init__(self, con: duckdb.DuckDBPyConnection, folder: str) -> None:
        self.con = con
        self.source = TableSource(con)
        self.now = START
        self.gold = GoldStore.open(con, Path(folder) / "gold.duckdb", clock=lambda: self.now)
        self.present: dict[str, Arrival] = {}
        self.duplicates: Counter[date] = Counter()
        self.quarantined: Counter[date] = Counter()
        self.spool: dict[str, tuple[int, int]] = {}

    @property
    def naive_now(self) -> datetime:
        return self.now.replace(tzinfo=None)

    def take(self, step: Step) -> None:
        self.now += timedelta(hours=step.hours, seconds=3)
        self.spool = step.spool
        self.source.spool_holds(step.spool)
        self.quarantined.update(step.bad_lines)
        accepted = {a.event["event_id"]: a for a in self._commit(step.arriving, step.bad_lines)}
        for event in step.arriving:
            arrival = accepted.get(event["event_id"])
            if arrival is None or arrival.event is not event:
                self.duplicates[gold_reference.occurred_at(event).date()] += 1
        self.present |= accepted
        if step.removed is not None:
            self.source.remove(f"e{step.removed}")
            self.present.pop(f"e{step.removed}", None)
        if step.replaced["event_id"] in self.present:
            self.source.remove(step.replaced["event_id"])
            self.present |= {a.event["event_id"]: a for a in self._commit([step.replaced])}

    def _commit(self, events: list[dict[str, Any]], bad_lines: Sequence[date] = ()) -> list[Arrival]:
        return self.source.commit(events, quarantined=bad_lines, at=self.naive_now)

    def expected(self) -> dict[str, list[gold_reference.Row]]:
        daily = gold_reference.recompute(
            [arrival.event for arrival in self.present.values()],
            quarantined=self.quarantined,
            duplicates=self.duplicates,
        )
        return daily | gold_live_reference.recompute(self.present.values(), self.naive_now, self.spool)

    def reach(self) -> list[gold_reference.Row]:
        """gold_as_of when every model was refreshed just now."""
        is_input = {name: _is_input(name) for name in tables(self.con) if name != "gold_as_of"}
        rows = [
            {
                "model": name,
                "refreshed_at": self.naive_now,
                "last_event_at": gold_live_reference.last_event_at(self.present.values(), reads),
            }
            for name, reads in is_input.items()
        ]
        return gold_reference.sort_rows(rows)


def _is_input(model: str) -> Callable[[str], bool]:
    """Which event types a model is about, by what its name says."""
    groups = {"publish": "publish", "render": "render", "farm": "farm", "storage": "storage", "tool": "tool"}
    group = groups.get(model.split("_")[1])
    if group in ("farm", "storage"):
        return {"farm": "tractor.farm.snapshot", "storage": "storage.scan.bucket"}[group].__eq__
    return lambda kind: group in (None, gold_live_reference.group_of(kind))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_incremental_refreshes_equal_a_rebuild_and_the_reference(steps: list[Step]) -> None:
    with TemporaryDirectory() as folder, duckdb.connect() as con:
        world = World(con, folder)
        for step in steps:
            world.take(step)
            report = world.gold.refresh(con, world.source)
            assert report.failed == {}
            assert report.through_seq == world.source.seq
        # News for every model, so that all of them are as of now: time alone is no reason to write.
        world.take(Step([], [START.date()], None, {"event_id": None}, world.spool, 0))
        report = world.gold.refresh(con, world.source)
        assert report.failed == {}
        incremental = tables(con)

        world.gold.rebuild(con, world.source)

        assert_equal(incremental, tables(con))
        for row in incremental["gold_data_quality_daily"]:
            for name in gold_reference.UNCHECKED["gold_data_quality_daily"]:
                del row[name]
        for row in incremental["gold_as_of"]:
            del row["last_ingested_at"]
        assert_equal(incremental, {**world.expected(), "gold_as_of": world.reach()})


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

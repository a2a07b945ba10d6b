"""What `piper doctor` looks at: the published views, as any reader sees them, and the disks.

Each query is bounded to the last days or to what was ingested lately, so that years of history cost nothing but a
listing. Nothing is written but an unnamed file that proves that a directory takes one.
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from piper.events.registry import EVENT_TYPES
from piper.layout import Layout
from piper.ops.metrics import GOLD_MODELS
from piper.silver.datasets import DATASETS

WINDOW_DAYS = 7
"""How far back doctor looks: a week has every kind of day in it."""
LAG_WINDOW = timedelta(hours=1)
"""Lag is judged on what was ingested lately: an older backfill says nothing about how piper keeps up now."""

_NETWORK = re.compile(
    r"(nfs\d?|cifs|smb\d?|smbfs|ncpfs|afs|9p|ceph|glusterfs|lustre|beegfs|gpfs|fuse\.(sshfs|glusterfs|ceph|s3fs|rclone))"
)


@dataclass(slots=True)
class Warehouse:
    """What the views hold; counts are of the last WINDOW_DAYS days where nothing else is said. Times are naive UTC."""

    broken_views: dict[str, str] = field(default_factory=dict)
    newest_event: datetime | None = None
    last_ingest: datetime | None = None
    events_today: int = 0
    earlier_days: list[int] = field(default_factory=list)
    """Events of each earlier day up to the present time of day, from the first day that has any."""
    ingested: int = 0
    quarantined: int = 0
    lag_events: int = 0
    lag_p95_seconds: float | None = None
    events: int = 0
    unknown_type_events: int = 0
    unknown_types: list[str] = field(default_factory=list)
    """At most three names."""
    contract_violations: int = 0
    clock_skew_seconds: float = 0.0
    gold_behind: int = 0
    """Events that gold should have by now and has not."""


def read_warehouse(layout: Layout, now: datetime, gold_grace: timedelta) -> Warehouse:
    """Query the catalog, read-only. Raises duckdb.Error when it cannot be opened; a broken view is in the result."""
    with duckdb.connect(str(layout.catalog), read_only=True) as con:
        con.execute("SET TimeZone = 'UTC'")
        found = Warehouse(broken_views=_broken_views(con))
        if not found.broken_views:
            _ask_silver(con, found, now)
            _ask_gold(con, found, now, gold_grace)
        return found


def _broken_views(con: duckdb.DuckDBPyConnection) -> dict[str, str]:
    broken: dict[str, str] = {}
    for view in (*(dataset.view for dataset in DATASETS.values()), *GOLD_MODELS):
        try:
            con.execute(f"SELECT count(*) FROM (FROM {view} LIMIT 1)").fetchall()
        except duckdb.Error as error:
            broken[view] = str(error).strip().splitlines()[0]
    return broken


def _ask_silver(con: duckdb.DuckDBPyConnection, found: Warehouse, now: datetime) -> None:
    since = now.date() - timedelta(days=WINDOW_DAYS)
    days = dict(
        con.execute(
            f"""SELECT event_date, count(*) FROM silver_events
            WHERE event_date BETWEEN {_date(since)} AND {_date(now.date())} AND occurred_at_utc::TIME <= ?
            GROUP BY event_date""",
            [now.time()],
        ).fetchall()
    )
    found.events_today = days.pop(now.date(), 0)
    if days:
        first = min(days)
        found.earlier_days = [days.get(first + timedelta(days=n), 0) for n in range((now.date() - first).days)]
    newest = "SELECT max(occurred_at_utc) FROM silver_events"
    found.newest_event = (
        _row(con, f"{newest} WHERE event_date >= {_date(since)}")[0] or _row(con, newest)[0]  # a warehouse at rest
    )
    found.ingested, found.last_ingest, found.lag_events, found.lag_p95_seconds = _row(
        con,
        """SELECT count(*), max(ingested_at_utc), count(*) FILTER (ingested_at_utc >= $lately),
            quantile_cont(date_diff('millisecond', occurred_at_utc, ingested_at_utc) / 1e3, 0.95)
                FILTER (ingested_at_utc >= $lately)
        FROM silver_events WHERE ingested_at_utc >= $since""",
        {"lately": now - LAG_WINDOW, "since": datetime.combine(_first_day(now), datetime.min.time())},
    )


def _ask_gold(con: duckdb.DuckDBPyConnection, found: Warehouse, now: datetime, grace: timedelta) -> None:
    window = f"event_date >= {_date(_first_day(now))}"
    (found.events, found.quarantined, found.unknown_type_events, found.contract_violations, skew) = _row(
        con,
        f"""SELECT coalesce(sum(total_events), 0)::BIGINT, coalesce(sum(quarantined_lines), 0)::BIGINT,
            coalesce(sum(unknown_type_events), 0)::BIGINT, coalesce(sum(contract_violations), 0)::BIGINT,
            coalesce(max(max_clock_skew_s), 0)
        FROM gold_data_quality_daily WHERE {window}""",
    )
    found.clock_skew_seconds = float(skew)
    due = _row(con, f"SELECT count(*) FROM silver_events WHERE {window} AND ingested_at_utc < ?", [now - grace])[0]
    found.gold_behind = max(0, due - found.events)
    if found.unknown_type_events:
        known = ", ".join(f"'{name}'" for name in EVENT_TYPES)
        names = con.execute(
            f"""SELECT event_type FROM silver_events WHERE {window} AND event_type NOT IN ({known})
            GROUP BY event_type ORDER BY count(*) DESC, event_type LIMIT 3"""
        ).fetchall()
        found.unknown_types = [name for (name,) in names]


def _first_day(now: datetime) -> date:
    return now.date() - timedelta(days=WINDOW_DAYS - 1)


def _date(day: date) -> str:
    return f"DATE '{day.isoformat()}'"


def _row(con: duckdb.DuckDBPyConnection, query: str, parameters: object = None) -> tuple[Any, ...]:
    row = con.execute(query, parameters).fetchone()
    assert row is not None
    return tuple(row)


def unwritable(directory: Path) -> str:
    """Why `directory` takes no file; empty when it does. Leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"piper")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def network_file_system(path: Path, mounts: str) -> str:
    """The network file system that `path` is on, by `mounts` (as in /proc/mounts); empty when it is local."""
    real = os.path.realpath(path)
    kind, longest = "", -1
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), fields[1])
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= longest:
            kind, longest = fields[2], len(point)
    return kind if _NETWORK.fullmatch(kind) else ""


def wants_file_events(mode: str, raw_root: Path) -> bool:
    """What `watch.mode` comes to: on a share events tell only what this very host writes, so `auto` leaves them out."""
    if mode != "auto":
        return mode == "events"
    return not network_file_system(raw_root, Path("/proc/mounts").read_text("utf-8", "surrogateescape"))

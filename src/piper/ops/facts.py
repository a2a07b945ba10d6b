"""What `piper doctor` looks at: the published views, as any reader sees them, and the disks.

Everything is asked of the last days' partitions, so that years of history cost nothing but a listing. Nothing is
written but an unnamed file that proves that a directory takes one.
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
from piper.ops.metric_list import GOLD_MODELS
from piper.ops.reader import open_reader
from piper.publish.catalog import silver_view_sql
from piper.settings import Settings
from piper.silver.datasets import DATASETS

WINDOW_DAYS = 7
"""What doctor judges: a week has every kind of day in it."""
RECENT_DAYS = 2 * WINDOW_DAYS
"""How far back it looks: the week before is what the last one is compared with. Nothing older is opened."""
FIELD_EVENTS_MAX = 100_000
"""Events whose fields are looked at, about: JSON is what costs here, and a release shows in every hundredth event."""
BASELINE_MIN = 20
"""Events of a type in the week before, below which every field would look new."""
LAG_WINDOW = timedelta(hours=1)
"""Lag is judged on what was ingested lately: an older backfill says nothing about how piper keeps up now."""

_NETWORK = re.compile(
    r"(nfs\d?|cifs|smb\d?|smbfs|ncpfs|afs|9p|ceph|glusterfs|lustre|beegfs|gpfs|fuse\.(sshfs|glusterfs|ceph|s3fs|rclone))"
)


@dataclass(frozen=True, slots=True)
class HostSeen:
    """A host that wrote within RECENT_DAYS: on how many days, out of how many until its last event; naive UTC."""

    name: str
    days: int
    span_days: int
    last_event: datetime


@dataclass(frozen=True, slots=True)
class NewField:
    """A key of payload or metrics that a known type did not have in the week before."""

    event_type: str
    field: str
    hosts: int


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
    new_fields: list[NewField] = field(default_factory=list)
    contract_violations: int = 0
    violations_by_type: list[tuple[str, str, int]] = field(default_factory=list)
    """(event type, the field that breaks the registry, events), most first."""
    clock_skew_seconds: float = 0.0
    skewed_hosts: list[tuple[str, float]] = field(default_factory=list)
    """(host, seconds ahead), furthest first; those that are ahead at all."""
    hosts: list[HostSeen] = field(default_factory=list)
    gold_behind: int = 0
    """Events that gold should have by now and has not."""


def read_warehouse(settings: Settings, now: datetime, gold_grace: timedelta) -> Warehouse:
    """Query the catalog, read-only. Raises PiperError or duckdb.Error when it cannot be opened; a broken view is in
    the result.
    """
    with open_reader(settings) as con:
        found = Warehouse(broken_views=_broken_views(con, now))
        if not found.broken_views:
            _take_recent(con, Layout.of(settings), now)
            _ask_silver(con, found, now)
            _ask_hosts(con, found, now)
            _ask_gold(con, found, now, gold_grace)
            _ask_fields(con, found, now)
        return found


def _broken_views(con: duckdb.DuckDBPyConnection, now: datetime) -> dict[str, str]:
    broken: dict[str, str] = {}
    recent = f"WHERE event_date >= {_date(now.date() - timedelta(days=RECENT_DAYS))}"
    rows = {dataset.view: f"{dataset.view} {recent}" for dataset in DATASETS.values()}
    for view, some in (rows | {model: model for model in GOLD_MODELS}).items():
        try:
            con.execute(f"SELECT count(*) FROM (FROM {some} LIMIT 1)").fetchall()
        except duckdb.Error as error:
            broken[view] = str(error).strip().splitlines()[0]
    return broken


def _take_recent(con: duckdb.DuckDBPyConnection, layout: Layout, now: datetime) -> None:
    """`recent`: the events of the last RECENT_DAYS dates without their payload. The one look at so many rows: other
    partitions are not opened, and what is asked afterwards is asked of it.
    """
    con.execute(
        f"""CREATE TEMP TABLE recent AS
        SELECT event_date, event_type, occurred_at_utc, ingested_at_utc, host_hostname, is_known_type,
            contract_violation
        FROM ({silver_view_sql(DATASETS["events"], layout, with_internal=True)})
        WHERE event_date >= {_date(now.date() - timedelta(days=RECENT_DAYS))}"""
    )


def _ask_silver(con: duckdb.DuckDBPyConnection, found: Warehouse, now: datetime) -> None:
    since = now.date() - timedelta(days=WINDOW_DAYS)
    days = dict(
        con.execute(
            f"""SELECT event_date, count(*) FROM recent
            WHERE event_date BETWEEN {_date(since)} AND {_date(now.date())} AND occurred_at_utc::TIME <= ?
            GROUP BY event_date""",
            [now.time()],
        ).fetchall()
    )
    found.events_today = days.pop(now.date(), 0)
    if days:
        first = min(days)
        found.earlier_days = [days.get(first + timedelta(days=n), 0) for n in range((now.date() - first).days)]
    found.newest_event, found.ingested, found.last_ingest, found.lag_events, found.lag_p95_seconds = _row(
        con,
        """SELECT max(occurred_at_utc), count(*) FILTER (ingested_at_utc >= $since), max(ingested_at_utc),
            count(*) FILTER (ingested_at_utc >= $lately),
            quantile_cont(date_diff('millisecond', occurred_at_utc, ingested_at_utc) / 1e3, 0.95)
                FILTER (ingested_at_utc >= $lately)
        FROM recent""",
        {"lately": now - LAG_WINDOW, "since": datetime.combine(_first_day(now), datetime.min.time())},
    )
    if found.newest_event is None:  # a warehouse at rest: gold knows the last date, so one partition is opened
        found.newest_event, found.last_ingest = _row(
            con,
            """SELECT max(occurred_at_utc), max(ingested_at_utc) FROM silver_events WHERE event_date = (
                SELECT max(event_date) FROM gold_data_quality_daily WHERE total_events > 0)""",
        )


def _ask_hosts(con: duckdb.DuckDBPyConnection, found: Warehouse, now: datetime) -> None:
    rows = con.execute(
        """SELECT host_hostname, count(DISTINCT event_date)::INTEGER,
            (max(event_date) - (SELECT min(event_date) FROM recent) + 1)::INTEGER, max(occurred_at_utc)
        FROM recent GROUP BY host_hostname ORDER BY host_hostname"""
    ).fetchall()
    found.hosts = [HostSeen(*row) for row in rows]
    found.skewed_hosts = con.execute(
        """SELECT host_hostname, max(epoch(occurred_at_utc) - epoch(ingested_at_utc)) AS ahead
        FROM recent WHERE event_date >= ? GROUP BY host_hostname HAVING ahead > 0
        ORDER BY ahead DESC, host_hostname LIMIT 10""",
        [_first_day(now)],
    ).fetchall()


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
    due = _row(con, f"SELECT count(*) FROM recent WHERE {window} AND ingested_at_utc < ?", [now - grace])[0]
    found.gold_behind = max(0, due - found.events)
    names = con.execute(
        f"""SELECT event_type FROM recent WHERE {window} AND NOT is_known_type
        GROUP BY event_type ORDER BY count(*) DESC, event_type LIMIT 10"""
    ).fetchall()
    found.unknown_types = [name for (name,) in names]
    found.violations_by_type = con.execute(
        f"""SELECT event_type, contract_violation, count(*) FROM recent
        WHERE {window} AND contract_violation IS NOT NULL
        GROUP BY ALL ORDER BY count(*) DESC, event_type, contract_violation LIMIT 10"""
    ).fetchall()


def _ask_fields(con: duckdb.DuckDBPyConnection, found: Warehouse, now: datetime) -> None:
    """Fields of the last week that the week before did not have; of very many events one in so many is looked at."""
    change, since = now.date() - timedelta(days=WINDOW_DAYS), now.date() - timedelta(days=RECENT_DAYS)
    events = _row(con, "SELECT count(*) FROM recent")[0]
    rows = con.execute(
        f"""WITH looked_at AS (
            SELECT event_type, event_date >= {_date(change)} AS is_new, host_hostname, list_concat(
                ['payload.' || name FOR name IN json_keys(payload)], ['metrics.' || name FOR name IN json_keys(metrics)]
            ) AS fields
            FROM silver_events
            WHERE event_date >= {_date(since)} AND hash(event_id) % {max(1, events // FIELD_EVENTS_MAX)} = 0
        ),
        judged AS (
            SELECT event_type FROM looked_at GROUP BY event_type HAVING count(*) FILTER (NOT is_new) >= {BASELINE_MIN}
        )
        SELECT event_type, field, count(DISTINCT host_hostname)
        FROM (SELECT event_type, is_new, host_hostname, unnest(fields) AS field FROM looked_at)
        JOIN judged USING (event_type)
        GROUP BY event_type, field HAVING bool_and(is_new) ORDER BY count(*) DESC, event_type, field LIMIT 50"""
    ).fetchall()
    found.new_fields = [NewField(*row) for row in rows if row[0] in EVENT_TYPES]


def _first_day(now: datetime) -> date:
    return now.date() - timedelta(days=WINDOW_DAYS - 1)


def _date(day: date) -> str:
    return f"DATE '{day.isoformat()}'"


def _row(con: duckdb.DuckDBPyConnection, query: str, parameters: object = None) -> tuple[Any, ...]:
    row = con.execute(query, parameters).fetchone()
    assert row is not None
    return tuple(row)


def storage_versions(layout: Layout) -> dict[str, str]:
    """The oldest DuckDB that can open each file that readers open: `v1.0.0`, or nothing where it is absent."""
    found: dict[str, str] = {}
    for path in (layout.catalog, layout.gold):
        try:
            with duckdb.connect(str(path), read_only=True) as con:
                tags = _row(con, "SELECT tags FROM duckdb_databases() WHERE database_name = current_database()")[0]
            found[path.name] = tags.get("storage_version", "").rstrip("+")
        except duckdb.Error:
            found[path.name] = ""
    return found


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
    return not network_file_system(raw_root, Path("/proc/self/mounts").read_text("utf-8", "surrogateescape"))

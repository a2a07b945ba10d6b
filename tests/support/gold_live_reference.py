"""The models about arrival and the last 48 hours, recomputed in plain Python: obvious, sharing no code with piper.

They need more than raw events say: which file an event came from and when it was ingested.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tests.support import gold_reference as raw

Row = dict[str, Any]

WINDOW = timedelta(hours=48)
BUCKET = timedelta(minutes=5)
GROUPS = {
    "tractor.job.spool": "farm",
    "tractor.farm.snapshot": "farm",
    "render.stats.summary": "render",
    "storage.scan.summary": "storage",
    "storage.scan.bucket": "storage",
}
"""Event groups of the registry that a name alone does not tell."""


@dataclass(frozen=True)
class Arrival:
    """An accepted event, the file it came from, and when (naive UTC)."""

    event: raw.Event
    source_file: str
    ingested_at: datetime

    @property
    def occurred_at(self) -> datetime:
        return raw.occurred_at(self.event).replace(tzinfo=None)

    @property
    def kind(self) -> str:
        return raw.event_type_of(self.event)

    @property
    def host(self) -> str:
        return self.source_file.split("/")[0]

    @property
    def is_error(self) -> bool:
        return bool(self.event["status"] == "error")


def recompute(arrivals: Iterable[Arrival], now: datetime, spool: Mapping[str, tuple[int, int]]) -> dict[str, list[Row]]:
    """Give the rows of these models at `now` (naive UTC), sorted. `spool`: host → (files, bytes behind)."""
    rows = list(arrivals)
    tables = {
        "gold_activity_daily": _activity_daily(rows),
        "gold_host_activity_daily": _host_activity_daily(rows),
        "gold_activity_live": _activity_live(rows, now),
        "gold_farm_pressure_live": _farm_live(rows, now),
        "gold_ingest_live": _ingest_live(rows, now, spool),
    }
    return {name: raw.sort_rows(table) for name, table in tables.items()}


def last_event_at(arrivals: Iterable[Arrival], is_input: Callable[[str], bool]) -> datetime | None:
    """Give the latest moment of the event types that `is_input` names: what gold_as_of says of a model."""
    return max((arrival.occurred_at for arrival in arrivals if is_input(arrival.kind)), default=None)


def group_of(kind: str) -> str:
    """Give the event group."""
    if kind not in raw.REGISTRY:
        return "other"
    return GROUPS.get(kind, "publish" if kind.startswith("publish.") else "tool")


def _grouped(rows: Iterable[Arrival], key: Callable[[Arrival], Hashable]) -> dict[Any, list[Arrival]]:
    groups: dict[Any, list[Arrival]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _counts(rows: Sequence[Arrival]) -> Row:
    return {"events": len(rows), "errors": sum(row.is_error for row in rows)}


def _activity_daily(rows: Sequence[Arrival]) -> list[Row]:
    ingested = {
        key: max(row.ingested_at for row in group)
        for key, group in _grouped(
            rows, lambda r: (r.occurred_at.date(), r.kind if r.kind in raw.REGISTRY else "unknown")
        ).items()
    }
    table = raw.recompute([row.event for row in rows])["gold_activity_daily"]
    return [{**row, "last_ingested_at": ingested[row["event_date"], row["event_type"]]} for row in table]


def _newest(rows: Iterable[Arrival]) -> Arrival:
    return max(rows, key=lambda row: (row.occurred_at, row.ingested_at))


def _lag(row: Arrival) -> float:
    return (row.ingested_at - row.occurred_at).total_seconds()


def _host_activity_daily(rows: Sequence[Arrival]) -> list[Row]:
    return [
        {
            "event_date": day,
            "host": host,
            **_counts(group),
            "last_event_at": _newest(group).occurred_at,
            "last_event_lag_s": _lag(_newest(group)),
            "last_ingested_at": max(row.ingested_at for row in group),
        }
        for (day, host), group in _grouped(rows, lambda r: (r.occurred_at.date(), r.host)).items()
    ]


def _bucket(moment: datetime) -> datetime:
    return moment - (moment - datetime.combine(moment.date(), datetime.min.time())) % BUCKET


def _recent(rows: Iterable[Arrival], now: datetime) -> list[Arrival]:
    return [row for row in rows if _bucket(row.occurred_at) >= _bucket(now - WINDOW)]


def _activity_live(rows: Sequence[Arrival], now: datetime) -> list[Row]:
    groups = _grouped(_recent(rows, now), lambda r: (_bucket(r.occurred_at), group_of(r.kind)))
    return [{"bucket_start": start, "event_group": name, **_counts(group)} for (start, name), group in groups.items()]


def _farm_live(rows: Sequence[Arrival], now: datetime) -> list[Row]:
    """A bucket is to these columns what a day is to gold_farm_pressure_daily's."""
    unwanted = ("event_date", "peak_active_jobs", "peak_active_blades", "peak_slot_utilisation_pct")
    snapshots = [row for row in _recent(rows, now) if row.kind == "tractor.farm.snapshot"]
    table = []
    for start, group in _grouped(snapshots, lambda r: _bucket(r.occurred_at)).items():
        (daily,) = raw.recompute([row.event for row in group])["gold_farm_pressure_daily"]
        table.append({"bucket_start": start, **{key: daily[key] for key in daily if key not in unwanted}})
    return table


def _ingest_live(rows: Sequence[Arrival], now: datetime, spool: Mapping[str, tuple[int, int]]) -> list[Row]:
    table = []
    hosts = _grouped(rows, lambda r: r.host)
    for host, (files, behind) in spool.items():
        group = hosts.get(host, [])
        table.append(
            {
                "host": host,
                "last_event_at": _newest(group).occurred_at if group else None,
                "last_ingested_at": max((row.ingested_at for row in group), default=None),
                "lag_s": _lag(_newest(group)) if group else None,
                "files": files,
                "bytes_behind": behind,
                "as_of": now,
            }
        )
    return table

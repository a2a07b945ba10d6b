"""A `SilverSource` over DuckDB tables, fed with raw events: what gold's tests stand on instead of the real
silver.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import Any

import duckdb
from tests.support import gold_reference as raw
from tests.support.gold_live_reference import Arrival

from piper.gold.inputs import INPUT_COLUMNS

Row = dict[str, Any]


class TableSource:
    """Tables named like the inputs in the in-memory database of `con`, and a log of which commit changed
    which date and brought which event.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection) -> None:
        self.con = con
        self.seq = 0
        con.execute("CREATE TABLE memory.main.changes (seq BIGINT, event_date DATE)")
        con.execute("CREATE TABLE memory.main.brought (seq BIGINT, event_id VARCHAR)")
        for name, columns in INPUT_COLUMNS.items():
            typed = ", ".join(f'"{column}" {sql_type}' for column, sql_type in columns.items())
            con.execute(f"CREATE TABLE memory.main.{name} ({typed})")

    def changed_dates(self, con: duckdb.DuckDBPyConnection, after_seq: int) -> tuple[int, list[date]]:
        dates = con.execute(
            "SELECT DISTINCT event_date FROM memory.main.changes WHERE seq > ? ORDER BY ALL", [after_seq]
        ).fetchall()
        return self.seq, [day for (day,) in dates]

    def relation_sql(
        self, con: duckdb.DuckDBPyConnection, dataset: str, dates: Sequence[date] | None, after_seq: int = 0
    ) -> str:
        chosen = f"SELECT * FROM memory.main.{dataset}"
        if dates is None:
            return chosen
        days = ", ".join(f"DATE '{day.isoformat()}'" for day in dates) or "NULL"
        chosen += f" WHERE event_date IN ({days})"
        if after_seq:
            chosen += f" AND event_id IN (SELECT event_id FROM memory.main.brought WHERE seq > {after_seq})"
        return chosen

    def rows_if_only_added(self, con: duckdb.DuckDBPyConnection, dataset: str, dates: Sequence[date]) -> int:
        row = con.execute(f"SELECT count(*) FROM ({self.relation_sql(con, dataset, dates)})").fetchone()
        assert row is not None
        return int(row[0])

    def commit(
        self, events: Iterable[raw.Event], *, quarantined: Iterable[date] = (), at: datetime | None = None
    ) -> list[Arrival]:
        """Accept the events (a known event_id counts as a duplicate), and one quarantined line per date
        given; returns what was accepted. They were ingested `at` (naive UTC), or 2 s after they occurred, and come
        from `<host name>/<user>/`.
        """
        self.seq += 1
        known = {row[0] for row in self.con.execute("SELECT event_id FROM memory.main.silver_events").fetchall()}
        accepted = []
        for day in quarantined:
            self._count(day, quarantined=1)
        for event in events:
            day = raw.occurred_at(event).date()
            if event["event_id"] in known:
                self._count(day, duplicates=1)
                continue
            known.add(event["event_id"])
            accepted.append(arrival_of(event, at))
            for relation, row in silver_rows(accepted[-1]).items():
                self.insert(relation, [row])
            self.con.execute("INSERT INTO memory.main.brought VALUES (?, ?)", [self.seq, event["event_id"]])
            self._changed(day)
        return accepted

    def spool_holds(self, hosts: Mapping[str, tuple[int, int]]) -> None:
        """From now on the spool has these hosts: (files, bytes behind)."""
        self.con.execute("DELETE FROM memory.main.spool_hosts")
        for host, (files, behind) in hosts.items():
            self.insert("spool_hosts", [{"host": host, "files": files, "bytes_behind": behind}])

    def remove(self, event_id: str) -> None:
        """Take an event out of silver, as a backfill does that replaces it in a commit of its own."""
        self.seq += 1
        where = "FROM memory.main.{} WHERE event_id = ?"
        days = self.con.execute(f"SELECT event_date {where.format('silver_events')}", [event_id]).fetchall()
        for relation in [*(name for name, columns in INPUT_COLUMNS.items() if "event_id" in columns), "brought"]:
            self.con.execute(f"DELETE {where.format(relation)}", [event_id])
        for (day,) in days:
            self._changed(day)

    def insert(self, relation: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Insert rows as they are; columns that a row leaves out are NULL."""
        columns = INPUT_COLUMNS[relation]
        for row in rows:
            assert row.keys() <= columns.keys(), f"{relation} has no {row.keys() - columns.keys()}"
            marks = ", ".join("?" for _ in columns)
            values = [row.get(column) for column in columns]
            self.con.execute(f"INSERT INTO memory.main.{relation} VALUES ({marks})", values)

    def _count(self, day: date, *, quarantined: int = 0, duplicates: int = 0) -> None:
        old = self.con.execute(
            "DELETE FROM memory.main.ingest_counts WHERE event_date = ? RETURNING quarantined_lines, duplicate_events",
            [day],
        ).fetchone() or (0, 0)
        counts = {"quarantined_lines": old[0] + quarantined, "duplicate_events": old[1] + duplicates}
        self.insert("ingest_counts", [{"event_date": day, **counts}])
        self._changed(day)

    def _changed(self, day: date) -> None:
        self.con.execute("INSERT INTO memory.main.changes VALUES (?, ?)", [self.seq, day])


def arrival_of(event: raw.Event, ingested_at: datetime | None = None) -> Arrival:
    """How an event came, 2 s after it occurred unless it is said."""
    ingested = ingested_at or raw.occurred_at(event).replace(tzinfo=None) + timedelta(seconds=2)
    return Arrival(event, f"{raw.host_of(event)}/{raw.user_of(event)}/telemetry-1.jsonl", ingested)


def silver_rows(arrival: Arrival) -> dict[str, Row]:
    """Give the rows of a raw event by relation, with the columns that gold reads."""
    event, kind = arrival.event, arrival.kind
    common: Row = {
        "event_id": event["event_id"],
        "occurred_at_utc": arrival.occurred_at,
        "event_date": arrival.occurred_at.date(),
        "status": event["status"],
    }
    who = {"hostname": raw.host_of(event), "username": raw.user_of(event)}
    rows = {"silver_events": {**common, **_envelope(arrival)}}
    if kind.startswith("publish.") and kind in raw.REGISTRY:
        rows["silver_publish_usd"] = {**common, **who, "event_type": kind, **_scope(event), **_output(event)}
    elif kind in raw.TOOL_TYPES:
        rows["silver_tool_events"] = {**common, **who, "event_type": kind, **_scope(event), **_output(event)}
    elif kind == "render.stats.summary":
        rows["silver_render_stats_summary"] = {**common, **who, **_scope(event), **_render(event)}
    elif kind == "tractor.farm.snapshot":
        counters = "running_jobs waiting_jobs errored_jobs busy_slots total_slots active_blades total_blades"
        rows["silver_tractor_farm_snapshot"] = {**common, **who, **_integers(event, counters)}
    elif kind == "storage.scan.bucket":
        rows["silver_storage_scan_bucket"] = {**common, **who, **_bucket(event)}
    return rows


def _envelope(arrival: Arrival) -> Row:
    event = arrival.event
    return {
        "event_type": arrival.kind,
        "host_hostname": raw.host_of(event),
        "host_user": raw.user_of(event),
        "source_file": arrival.source_file,
        "ingested_at_utc": arrival.ingested_at,
        "is_known_type": arrival.kind in raw.REGISTRY,
        "contract_violation": "breaks the registry" if raw.breaks_registry(event) else None,
    }


def _scope(event: raw.Event) -> Row:
    return {name: raw.text(event, f"scope.{name}") for name in ("show", "sequence", "shot")}


def _output(event: raw.Event) -> Row:
    return {
        "duration_ms": raw.integer(event, raw.ALIASES["duration_ms"]),
        "output_size_bytes": raw.integer(event, raw.OUTPUT_SIZE),
    }


def _integers(event: raw.Event, names: str) -> Row:
    return {name: raw.integer(event, raw.ALIASES.get(name, f"payload.{name}")) for name in names.split()}


def _render(event: raw.Event) -> Row:
    return {
        **_integers(event, "failed_frames"),
        "queue_wait_ms": raw.integer(event, "payload.queue_wait_ms metrics.queue_wait_ms"),
        "frame_time_p50_ms": raw.number(event, "payload.frame_time_p50_ms metrics.frame_time_p50_ms"),
        "frame_time_p90_ms": raw.number(event, "payload.frame_time_p90_ms metrics.frame_time_p90_ms"),
        "frame_count": raw.integer(event, raw.ALIASES["total_frames"]),
        "retry_count": raw.integer(event, "payload.retry_count_total"),
        "avg_render_time_s": raw.number(event, "payload.avg_render_time_s metrics.avg_render_time_s"),
        "total_cpu_hours": raw.number(event, "payload.total_cpu_hours metrics.total_cpu_hours"),
        "peak_memory_gb": raw.number(event, raw.ALIASES["memory_peak_gb"]),
    }


def _bucket(event: raw.Event) -> Row:
    return {
        "bucket": raw.text(event, raw.ALIASES["category"]),
        "scope_type": raw.text(event, "payload.scope_type"),
        "scope_code": raw.text(event, "payload.scope_code"),
        "root_path": raw.text(event, raw.ALIASES["path"]),
        "total_size_bytes": raw.integer(event, raw.ALIASES["size_bytes"]),
        **_integers(event, "file_count dir_count"),
    }

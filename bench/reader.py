"""The reader of bench/freshness.py, run by it in a process with DuckDB 1.5.4: one connection from start to end.

    PYTHONPATH=<site with duckdb 1.5.4> python bench/reader.py <telemetry.duckdb> <poll seconds>

Only duckdb and the standard library are imported here. Every poll asks silver and gold, once a second the whole of
silver too. Each observation is one JSON line on stdout, its time taken by the monotonic clock (which all processes
share) when the answer is complete. A number on stdin says how many events there are in all: the reader leaves when it
has seen them in silver and in gold, or 30 s later.
"""

import json
import select
import sys
import time
from datetime import datetime, timedelta

import duckdb

GIVE_UP_SECONDS = 30.0
WINDOW = timedelta(seconds=2)
"""How far before the newest row a poll looks for rows that came, went or doubled; batches are ingested in order."""
RECENT = "SELECT event_id, ingested_at_utc FROM silver_events WHERE ingested_at_utc >= ?"
WHOLE = "SELECT count(*), count(DISTINCT event_id) FROM silver_events"
GOLD = "SELECT coalesce(sum(total_events), 0)::BIGINT FROM gold_data_quality_daily"


class Reader:
    """What it has seen so far, and what was wrong with it."""

    def __init__(self, catalog: str) -> None:
        self.con = duckdb.connect(catalog, read_only=True)
        self.seen: dict[str, datetime] = {}
        self.recent: dict[str, datetime] = {}
        self.since = datetime(2000, 1, 1)  # noqa: DTZ001 - the view's timestamps are naive UTC
        self.whole = self.gold = 0

    def ask(self, sql: str, parameters: tuple[object, ...] = ()) -> list[tuple] | None:
        """The rows, or None when the query failed."""
        started = time.monotonic()
        try:
            rows = self.con.execute(sql, parameters).fetchall()
        except duckdb.Error as error:
            tell(failed=str(error), sql=sql)
            return None
        tell(query_seconds=time.monotonic() - started)
        return rows

    def poll_silver(self) -> None:
        rows = self.ask(RECENT, (self.since,))
        if rows is None:
            return
        found = dict(rows)
        if len(found) != len(rows):
            tell(inconsistent=f"{len(rows) - len(found)} event_ids are there twice")
        gone = [key for key, ingested in self.recent.items() if ingested >= self.since and key not in found]
        if gone:
            tell(inconsistent=f"{len(gone)} events went away")
        new = [key for key in found if key not in self.seen]
        if new:
            tell(new=new)
        self.seen.update(found)
        if found:
            self.recent, self.since = found, max(found.values()) - WINDOW

    def poll_gold(self) -> None:
        for (total,) in self.ask(GOLD) or []:
            if total < self.gold:
                tell(inconsistent=f"gold went back from {self.gold} to {total}")
            if total != self.gold:
                tell(gold=total)
            self.gold = total

    def poll_whole(self) -> None:
        for rows, distinct in self.ask(WHOLE) or []:
            if rows != distinct or rows < self.whole or rows < len(self.seen):
                tell(inconsistent=f"{rows} rows, {distinct} distinct, {self.whole} before, {len(self.seen)} seen")
            self.whole = rows


def tell(**observation: object) -> None:
    print(json.dumps({"at": time.monotonic(), **observation}), flush=True)


def main() -> None:
    catalog, poll_seconds = sys.argv[1], float(sys.argv[2])
    reader = Reader(catalog)
    tell(version=duckdb.__version__)
    expected, deadline, whole_due = None, float("inf"), 0.0
    while time.monotonic() < deadline:
        reader.poll_silver()
        reader.poll_gold()
        if time.monotonic() >= whole_due:
            reader.poll_whole()
            whole_due = time.monotonic() + 1.0
        if expected is not None and reader.gold >= expected and len(reader.seen) >= expected:
            break
        waiting = [] if expected is not None else [sys.stdin]
        if select.select(waiting, [], [], poll_seconds)[0]:
            expected = int(sys.stdin.readline() or 0)
            deadline = time.monotonic() + GIVE_UP_SECONDS
    reader.poll_whole()
    tell(rows=reader.whole)


if __name__ == "__main__":
    main()

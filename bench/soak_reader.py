"""A reader of bench/soak.py, in a process with DuckDB 1.5.4: connected from start to end, asking again and again.

    PYTHONPATH=<site with duckdb 1.5.4> python bench/soak_reader.py <telemetry.duckdb> <pause seconds>

Only duckdb and the standard library are imported here. Every pause it asks for what came lately (nothing twice), now
and then for all of silver (rows = distinct events, never fewer than before) and for gold (totals never go back, and
never beyond silver, which is asked after it). It prints its report, one JSON object, once its stdin ends.
"""

import json
import select
import sys
import time

import duckdb

WHOLE_SECONDS, WHOLE_SHARE = 5.0, 0.05
"""How often all of silver is counted; never so often that it takes more than this share of the time."""
PROBLEMS_MAX = 50
RECENT = """SELECT count(*), count(DISTINCT event_id) FROM silver_events
    WHERE ingested_at_utc >= (now() AT TIME ZONE 'UTC') - INTERVAL 20 SECOND"""
WHOLE = "SELECT count(*), count(DISTINCT event_id) FROM {view}"
GOLD = "SELECT coalesce(sum({column}), 0)::BIGINT FROM {view}"
PAIRS = (
    ("gold_data_quality_daily", "total_events", "silver_events"),
    ("gold_publish_health_daily", "total_publishes", "silver_publish_usd"),
    ("gold_render_health_daily", "total_jobs", "silver_render_stats_summary"),
    ("gold_activity_daily", "events", "silver_events"),
)


class Watch:
    """What one connected reader has seen so far, and what was wrong with it."""

    def __init__(self, catalog: str) -> None:
        self.con = duckdb.connect(catalog, read_only=True)
        self.con.execute("SET threads = 1")
        self.queries = 0
        self.problems: list[str] = []
        self.counts: dict[str, int] = {}
        self.slowest = 0.0

    def ask(self, query: str) -> tuple | None:
        self.queries += 1
        started = time.monotonic()
        try:
            row = self.con.execute(query).fetchone()
        except duckdb.Error as error:
            self.problem(f"{query}: {error}")
            return None
        self.slowest = max(self.slowest, time.monotonic() - started)
        return row

    def problem(self, text: str) -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(f"{time.strftime('%H:%M:%S')} {text}"[:500])

    def grow(self, what: str, now: int) -> None:
        before = self.counts.get(what, 0)
        if now < before:
            self.problem(f"{what} went back from {before} to {now}")
        self.counts[what] = now

    def look_at_recent(self) -> None:
        found = self.ask(RECENT)
        if found and found[0] != found[1]:
            self.problem(f"{found[0]} recent rows are {found[1]} events")

    def look_at_all(self) -> None:
        for gold, column, silver in PAIRS:
            total = self.ask(GOLD.format(column=column, view=gold))
            found = self.ask(WHOLE.format(view=silver))
            if total and found:
                self.grow(gold, total[0])
                self.grow(silver, found[0])
                if found[0] != found[1]:
                    self.problem(f"{silver} has {found[0]} rows of {found[1]} events")
                if total[0] > found[0]:
                    self.problem(f"{gold} counts {total[0]}, {silver} has {found[0]}")


def main() -> None:
    catalog, pause = sys.argv[1], float(sys.argv[2])
    watch = Watch(catalog)
    next_whole = 0.0
    while not select.select([sys.stdin], [], [], pause)[0]:
        watch.look_at_recent()
        if time.monotonic() >= next_whole:
            started = time.monotonic()
            watch.look_at_all()
            next_whole = time.monotonic() + max(WHOLE_SECONDS, (time.monotonic() - started) / WHOLE_SHARE)
    watch.look_at_all()
    print(json.dumps({"version": duckdb.__version__, "queries": watch.queries, "problems": watch.problems,
                      "slowest query, s": round(watch.slowest, 2), "counts": watch.counts}))  # fmt: skip


if __name__ == "__main__":
    main()

"""What a gold refresh costs after one day changed, with little and with much history, and what dashboards cost then.

    python bench/gold.py [--days 1000] [--few 10] [--events-a-day 1000] [--repeats 15] [--json]

Two data roots are made by simulating that many past days and ingesting them, and both get --events-a-day more events of
today, sealed. Then, in turns and in one process, each gets 200 new events of today, and what follows is timed:

refresh    every model brought up to date, as piperd does it, without the publish
publish    copying the gold database and swapping it in; it grows with the bytes of gold, which is why it is apart
idle       a refresh that finds nothing to do

Numbers are medians of the repeats; the ratio is that of the medians, many days to few. Then

busy day   another one with few days gets --busy-events more events of today, sealed as they come; each model is timed
           before and after. Those that can be added to (`merge` in src/piper/gold/models.py) do not read what was there
dashboards every query of every dashboard in grafana/dashboards on the long history, with "All" in every variable, one
           after the other: for the time range that the dashboard opens with (and the slowest of them), and for all of
           the days, there apart
           those that read gold alone and those that read a silver view, which opens a file or more for every day.
           DuckDB 1.5.4, one connection a dashboard, the better of two runs of each query

Making the histories takes a few minutes and 2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from piper.demo.simulate import SimulateOptions, simulate
from piper.gold.refresh import ModelOutcome
from piper.gold.spool import WithSpool
from piper.layout import Layout
from piper.ops.logging import configure_logging
from piper.ops.metrics import Metrics
from piper.publish.snapshots import publish_gold
from piper.settings import Settings
from piper.settings_sources import load_settings
from piper.writer import Writer

REPOSITORY = Path(__file__).resolve().parents[1]
NEW_EVENTS = 200
Milliseconds = dict[str, float]


class Root:
    """A data root with so many days of history, and the writer that has it open."""

    def __init__(self, place: Path, days: int, events_a_day: int) -> None:
        self.place, self.days = place, days
        self.seed = days
        self._simulate(days * events_a_day, days=days)
        self._run_ingest()
        self._simulate(events_a_day)
        self._run_ingest()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PIPER_PATHS__RAW_ROOT": str(self.place / "raw"),
            "PIPER_PATHS__DATA_ROOT": str(self.place / "data"),
            "PIPER_LOGGING__LEVEL": "error",
        }

    @property
    def settings(self) -> Settings:
        return load_settings(env=self.environment, cwd=self.place).settings

    @property
    def catalog(self) -> Path:
        return Layout.of(self.settings).catalog

    @contextmanager
    def open(self) -> Iterator[Root]:
        self.writer = Writer.open(self.settings, Metrics(), command="bench/gold.py")
        self.cursor = self.writer.store.cursor()
        self.add(NEW_EVENTS)
        try:
            yield self
        finally:
            self.cursor.close()
            self.writer.close()

    def add(self, events: int) -> None:
        """New events of today, committed and published."""
        self._simulate(events)
        self.writer.scan()
        while self.writer.ingest() is not None:
            pass
        self.writer.publish()

    def refresh(self) -> tuple[Milliseconds, Milliseconds]:
        """Refresh once as `Writer.refresh_gold` does: (refresh, publish, idle), and the models that were computed."""
        models: Milliseconds = {}

        def note(outcome: ModelOutcome) -> None:
            assert outcome.error is None, outcome.error
            models[outcome.name] = 1000 * outcome.seconds

        started = time.perf_counter()
        self._refresh(note)
        refreshed = time.perf_counter()
        publish_gold(self.cursor, self.writer.store.layout)
        published = time.perf_counter()
        self._refresh(note)
        idle = time.perf_counter() - published
        stages = {"refresh": refreshed - started, "publish": published - refreshed, "idle": idle}
        return {name: 1000 * seconds for name, seconds in stages.items()}, models

    def _refresh(self, note: Any) -> None:
        source = WithSpool(self.writer.relations, self.writer.hosts.count())
        self.writer.gold.refresh(self.cursor, source, on_model=note)

    def _simulate(self, events: int, days: int = 0) -> None:
        self.seed += 1
        options = SimulateOptions(
            self.place / "raw", hosts=20, users=2, rate=0, events=events, days=days, seed=self.seed
        )
        simulate(options)

    def _run_ingest(self) -> None:
        environment = {**os.environ, **self.environment}
        subprocess.run(
            [sys.executable, "-m", "piper", "ingest", "--json"], env=environment, check=True, stdout=subprocess.DEVNULL
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=1000)
    parser.add_argument("--few", type=int, default=10)
    parser.add_argument("--events-a-day", type=int, default=1000)
    parser.add_argument("--busy-events", type=int, default=400_000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    configure_logging("error", "text")
    with tempfile.TemporaryDirectory(prefix="piper-gold-") as temporary:
        base = Path(temporary)
        roots = [Root(base / f"{days}-days", days, options.events_a_day) for days in (options.few, options.days)]
        with ExitStack() as stack:
            few, many = (stack.enter_context(root.open()) for root in roots)
            result: dict[str, Any] = compare(few, many, options.repeats)
        result["dashboards"] = time_dashboards(many.catalog, options.days)
        with Root(base / "busy", options.few, options.events_a_day).open() as root:
            result["busy day"] = busy_day(root, options.busy_events, options.repeats)
    print(json.dumps(result)) if options.json else report(result, options)


def compare(few: Root, many: Root, repeats: int) -> dict[str, Any]:
    """Both in turns, so that whatever else the machine does meets both."""
    times: dict[Root, list[Milliseconds]] = {few: [], many: []}
    for root in times:
        root.refresh()  # the first one after opening pays for reading the databases
    for _ in range(repeats):
        for root, found in times.items():
            root.add(NEW_EVENTS)
            found.append(root.refresh()[0])
    stages = {
        stage: [statistics.median(one[stage] for one in times[root]) for root in (few, many)]
        for stage in ("refresh", "publish", "idle")
    }
    return {
        "days": [few.days, many.days],
        "gold bytes": [root.writer.store.layout.gold.stat().st_size for root in (few, many)],
        "gold rows": [gold_rows(root.cursor) for root in (few, many)],
        "milliseconds": stages,
        "ratio": {stage: after / before for stage, (before, after) in stages.items()},
    }


def gold_rows(con: duckdb.DuckDBPyConnection) -> int:
    row = con.execute("SELECT sum(estimated_size)::BIGINT FROM duckdb_tables() WHERE database_name = 'gold'").fetchone()
    return int(row[0]) if row else 0


def busy_day(root: Root, events: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of each model before and after so many events of today were sealed."""

    def median_by_model() -> Milliseconds:
        found = []
        for _ in range(repeats):
            root.add(NEW_EVENTS)
            found.append(root.refresh()[1])
        return {name: statistics.median(one[name] for one in found) for name in found[0]}

    before = median_by_model()
    step = 20_000
    for _ in range(events // step):
        root.add(step)
    root.writer.seal()
    root.writer.publish()
    root.refresh()
    after = median_by_model()
    return {"events": events, "milliseconds": {name: [before[name], after[name]] for name in before}}


def time_dashboards(catalog: Path, days: int) -> dict[str, Any] | str:
    """Seconds of every dashboard's queries, for its own time range and for the whole history."""
    if not (REPOSITORY / "grafana" / "dashboards").is_dir():
        return "there are no dashboards in this checkout"
    sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "grafana")]
    from tests.support.reader_engine import reader_site

    site, now = reader_site(), datetime.now(UTC)
    seconds: dict[str, dict[str, float]] = {}
    everything_of = queries_of_dashboards(catalog, now, days=days)
    for uid, opens_with in queries_of_dashboards(catalog, now).items():
        everything = everything_of[uid]
        here, there = seconds_of(site, catalog, opens_with), seconds_of(site, catalog, everything)
        reads_silver = {name for name, sql in everything.items() if "silver_" in sql}
        seconds[uid] = {
            "opens with": sum(here.values()),
            "its slowest": max(here.values()),
            "all days, gold": sum(spent for name, spent in there.items() if name not in reads_silver),
            "all days, silver": sum(spent for name, spent in there.items() if name in reads_silver),
        }
    return seconds


def queries_of_dashboards(catalog: Path, now: datetime, *, days: int | None = None) -> dict[str, dict[str, str]]:
    """The SQL of every dashboard that reads DuckDB, by uid and panel, "All" in every variable, for its own time range
    or so many days."""
    from tests.support import dashboards, panel_queries
    from tests.support.reader_engine import reader_site

    found = {}
    for uid, board in dashboards.committed().items():
        if dashboards.sql_targets(board):
            choices = panel_queries.run(reader_site(), catalog, dashboards.variable_queries(board, now))
            values = {name: [row[0] for row in answer["rows"]] for name, answer in choices.items()}
            ranged = board if days is None else {**board, "time": {**board["time"], "from": f"now-{days}d"}}
            found[uid] = dashboards.expanded(ranged, now, values)
    return found


def seconds_of(site: Path, catalog: Path, queries: Mapping[str, str]) -> dict[str, float]:
    """What each query takes; exits where one fails."""
    from tests.support import panel_queries

    answers = panel_queries.run(site, catalog, queries)
    failed = [f"{name}: {answer['error']}" for name, answer in answers.items() if "error" in answer]
    if failed:
        raise SystemExit("\n".join(failed))
    return {name: answer["seconds"] for name, answer in answers.items()}


def report(result: dict[str, Any], options: argparse.Namespace) -> None:
    few, many = result["days"]
    print(f"{'ms after one day changed':28} {few:>7} days {many:>7} days   ratio")
    for stage, (before, after) in result["milliseconds"].items():
        print(f"{stage:28} {before:12.1f} {after:12.1f} {result['ratio'][stage]:7.2f}")
    for fact in ("gold bytes", "gold rows"):
        print(f"{fact:28} {result[fact][0]:12,} {result[fact][1]:12,}")
    busy = result["busy day"]
    print(f"\n{'ms by model':28} {options.events_a_day:>5,} today {busy['events']:>6,} more")
    for model, (before, after) in sorted(busy["milliseconds"].items()):
        print(f"{model:28} {before:12.1f} {after:12.1f}")
    if isinstance(result["dashboards"], str):
        print(f"\n{result['dashboards']}")
        return
    report_dashboards(result["dashboards"])


def report_dashboards(by_uid: dict[str, dict[str, float]]) -> None:
    ranges = list(next(iter(by_uid.values())))
    print(f"\n{'s of all queries':28}", *(f"{name:>17}" for name in ranges))
    for uid, spent in by_uid.items():
        print(f"{uid:28}", *(f"{spent[name]:17.3f}" for name in ranges))
    total = {name: (max if name == "its slowest" else sum)(one[name] for one in by_uid.values()) for name in ranges}
    print(f"{'all of them':28}", *(f"{total[name]:17.3f}" for name in ranges))


if __name__ == "__main__":
    main()

"""A reader as Grafana is one: another process, another DuckDB, one connection, the same queries again and again.

`Reader` starts this very file with the readers' DuckDB first on its path. It runs until told to stop and then prints
what it saw. It must import nothing but the standard library and that DuckDB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

STOP_SECONDS = 60.0
PROBLEMS_MAX = 20
PAUSE_SECONDS = 0.1
"""Between two rounds that nobody waits for: others need the machine too."""
GOLD_TOTALS = {
    "gold_publish_health_daily": ("total_publishes", "silver_publish_usd"),
    "gold_render_health_daily": ("total_jobs", "silver_render_stats_summary"),
    "gold_farm_pressure_daily": ("snapshot_count", "silver_tractor_farm_snapshot"),
    "gold_tool_reliability_daily": ("total_invocations", "silver_tool_events"),
    "gold_storage_growth_weekly": ("scan_count", "silver_storage_scan_bucket"),
    "gold_data_quality_daily": ("total_events", "silver_events"),
    "gold_activity_daily": ("events", "silver_events"),
    "gold_host_activity_daily": ("events", "silver_events"),
}
"""What each gold model counts, and the view that these are rows of."""


class Reader:
    """A reader process over a catalog. `stop()` ends it and gives its report.

    With `writable`, it only opens the given databases read-write, so that it holds DuckDB's exclusive lock on them,
    says so, and waits. With `may_shrink`, rows may go away (and stay in gold); the report has every count it `saw`.
    """

    def __init__(
        self,
        site: Path,
        *databases: Path,
        writable: bool = False,
        may_shrink: bool = False,
        prefix: Sequence[str] = (),
    ) -> None:
        mode = "lock" if writable else "shrink" if may_shrink else "loop"
        self._process = subprocess.Popen(
            [*prefix, sys.executable, __file__, mode, *map(str, databases)],
            env={"PYTHONPATH": str(site), "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_started(self) -> str:
        """Wait until it has connected; returns its first line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._process.communicate()[1]
        return line.strip()

    def wait_round(self) -> None:
        """Wait until it has asked every view once more, beginning now."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line == "round\n", line + self._process.communicate()[1]

    def stop(self) -> dict[str, Any]:
        """End it; its report, a JSON object."""
        out, err = self._process.communicate("stop\n", timeout=STOP_SECONDS)
        assert self._process.returncode == 0, err
        report = json.loads(out.splitlines()[-1])
        assert isinstance(report, dict)
        return report

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


class _Watch:
    """What one connected reader has seen so far."""

    def __init__(self, con: Any, *, may_shrink: bool = False) -> None:
        self._con, self._may_shrink = con, may_shrink
        self.views = [
            row[0] for row in con.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
        ]
        self.counts = dict.fromkeys(self.views, 0)
        self.totals = dict.fromkeys(GOLD_TOTALS, 0)
        self.saw: dict[str, set[int]] = {view: set() for view in self.views}
        self.problems: list[str] = []
        self.queries = 0

    def round(self) -> None:
        """Every view once: gold before the silver view that it counts, so that silver may only be ahead."""
        for gold, (column, silver) in GOLD_TOTALS.items():
            found = self._ask(f"SELECT count(*), coalesce(sum({column}), 0)::BIGINT FROM {gold}")
            self._look_at_silver(silver)
            if found is not None:
                self._must_not_shrink(gold, self.counts, found[0])
                self._must_not_shrink(gold, self.totals, found[1])
                if found[1] > self.counts[silver] and not self._may_shrink:
                    self.problems.append(f"{gold} counts {found[1]}, {silver} has {self.counts[silver]}")
        for silver in self.views:
            if silver.startswith("silver_"):
                self._look_at_silver(silver)

    def types(self) -> dict[str, dict[str, str]]:
        """Column types by view."""
        return {
            view: {row[0]: row[1] for row in self._con.execute(f"DESCRIBE {view}").fetchall()} for view in self.views
        }

    def report(self) -> dict[str, Any]:
        """Everything, once more asked now that nothing moves."""
        self.round()
        version = self._con.execute("SELECT version()").fetchone()[0]
        return {
            "version": version,
            "queries": self.queries,
            "counts": self.counts,
            "totals": self.totals,
            "problems": self.problems,
            "saw": {view: sorted(counts) for view, counts in self.saw.items()},
            "types": self.types(),
        }

    def _look_at_silver(self, view: str) -> None:
        found = self._ask(f"SELECT count(*), count(DISTINCT event_id) FROM {view}")
        if found is not None:
            self._must_not_shrink(view, self.counts, found[0])
            self.saw[view].add(found[0])
            if found[0] != found[1]:
                self.problems.append(f"{view} has {found[0]} rows with {found[1]} ids")

    def _must_not_shrink(self, view: str, seen: dict[str, int], now: int) -> None:
        if now < seen[view] and not self._may_shrink:
            self.problems.append(f"{view} went back from {seen[view]} to {now}")
        seen[view] = now

    def _ask(self, query: str) -> Any:
        self.queries += 1
        try:
            return self._con.execute(query).fetchone()
        except Exception as error:
            self.problems.append(f"{query}: {type(error).__name__}: {error}")
            return None


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _main(mode: str, *databases: str) -> None:
    import threading

    import duckdb

    stop, wanted = threading.Event(), threading.Event()

    def listen() -> None:
        while sys.stdin.readline() == "round\n":
            wanted.set()
        stop.set()
        wanted.set()

    threading.Thread(target=listen, daemon=True).start()
    connections = [duckdb.connect(database, read_only=mode != "lock") for database in databases]
    _say("connected")
    if mode == "lock":
        stop.wait()
        report: dict[str, Any] = {"locked": len(connections)}
    else:
        watch = _Watch(connections[0], may_shrink=mode == "shrink")
        while not stop.is_set() and len(watch.problems) < PROBLEMS_MAX:
            is_wanted = wanted.wait(PAUSE_SECONDS) and not stop.is_set()
            watch.round()
            if is_wanted:
                wanted.clear()
                _say("round")
        stop.wait()
        report = watch.report()
    _say(json.dumps(report))


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""What the demo knows about a running piperd, from the outside only: its metrics and one connection to the catalog.

The connection is opened once, read-only, when piperd is ready, and stays open, like a dashboard's: whatever piperd
commits, seals and publishes meanwhile must reach it. A query that fails is counted, never hidden.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
from prometheus_client.parser import text_string_to_metric_families

RATE_WINDOW_SECONDS = 10.0
TERABYTE = 1e12


@dataclass(frozen=True, slots=True)
class Headline:
    """What one gold model says in one line; `text` gets the columns of the query's single row."""

    title: str
    sql: str
    text: Callable[..., str]


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} %"


def _terabytes(value: float | None) -> str:
    return "–" if value is None else f"{value / TERABYTE:,.2f} TB"


HEADLINES: Mapping[str, Headline] = {
    "gold_publish_health_daily": Headline(
        "Publishes",
        """SELECT sum(total_publishes), 100 * sum(success_count) / sum(total_publishes), sum(total_output_bytes)
            FROM gold_publish_health_daily HAVING count(*) > 0""",
        lambda count, rate, size: f"{count:,} · {_percent(rate)} succeeded · {_terabytes(size)} written",
    ),
    "gold_render_health_daily": Headline(
        "Renders",
        """SELECT sum(total_jobs), 100 * (1 - sum(total_failed_frames) / NULLIF(sum(total_frames), 0)),
                sum(total_cpu_hours)
            FROM gold_render_health_daily HAVING count(*) > 0""",
        lambda jobs, rate, hours: f"{jobs:,} jobs · {_percent(rate)} of frames good · {hours or 0:,.0f} CPU hours",
    ),
    "gold_farm_pressure_daily": Headline(
        "Farm",
        """SELECT arg_max(avg_slot_utilisation_pct, event_date), max(peak_slot_utilisation_pct), max(peak_waiting_jobs)
            FROM gold_farm_pressure_daily HAVING count(*) > 0""",
        lambda today, peak, waiting: (
            f"{_percent(today)} of slots busy on the last day, {_percent(peak)} at most · {waiting or 0:,} jobs waited"
        ),
    ),
    "gold_tool_reliability_daily": Headline(
        "Tools",
        """SELECT sum(total_invocations), 100 * sum(success_count) / sum(total_invocations), max(active_users)
            FROM gold_tool_reliability_daily HAVING count(*) > 0""",
        lambda count, rate, users: f"{count:,} runs · {_percent(rate)} succeeded · up to {users:,} users of one a day",
    ),
    "gold_storage_growth_weekly": Headline(
        "Storage",
        """SELECT count(*), sum(latest_size_bytes), sum(growth_bytes) FROM gold_storage_growth_weekly
            WHERE week_start = (SELECT max(week_start) FROM gold_storage_growth_weekly) HAVING count(*) > 0""",
        lambda count, size, growth: (
            f"{count:,} buckets · {_terabytes(size)}"
            + (f" · {_terabytes(growth)} more than last week" if growth is not None else "")
        ),
    ),
    "gold_data_quality_daily": Headline(
        "Data",
        """SELECT sum(total_events), count(*), sum(quarantined_lines), sum(duplicate_events)
            FROM gold_data_quality_daily HAVING count(*) > 0""",
        lambda events, days, bad, twice: (
            f"{events:,} events of {days} days · {bad:,} lines quarantined · {twice:,} duplicates left out"
        ),
    ),
}
"""By model, in the order shown."""


@dataclass(slots=True)
class Sample:
    """One look. Ages and `behind_seconds` are in seconds, None while unknown; rates are events a second.

    `written` and `visible` count the distinct valid events of this run: as the simulated writers emitted them, and as a
    reader of silver_events sees them. `behind_seconds` is how long an event takes from the one to the other on average,
    which includes the second that a writer buffers it.
    """

    ready: bool = False
    written: int = 0
    visible: int = 0
    behind_seconds: float | None = None
    rate_in: float = 0.0
    rate_out: float = 0.0
    files_tracked: int = 0
    backlog_bytes: int = 0
    backlog_files: int = 0
    quarantined: int = 0
    duplicates: int = 0
    commit_age: float | None = None
    publish_age: float | None = None
    gold_age: float | None = None
    memory_bytes: int = 0
    headlines: Mapping[str, str] = field(default_factory=dict)
    queries: int = 0
    queries_failed: int = 0


class Probe:
    """Looks at one piperd. `files_from`: the least file name of this run's writers; `clock` gives POSIX seconds."""

    def __init__(self, catalog: Path, files_from: str, *, clock: Callable[[], float] = time.time) -> None:
        self._catalog, self._files_from, self._clock = catalog, files_from, clock
        self._con: duckdb.DuckDBPyConnection | None = None
        self._history: deque[tuple[float, int, int]] = deque()
        self._last = Sample()

    def look(self, written: int, exposition: str) -> Sample:
        """A new sample; `exposition` is the body of /metrics, empty when piperd does not answer."""
        last, now = self._last, self._clock()
        sample = Sample(
            written=written, visible=last.visible, headlines=last.headlines, queries=last.queries,
            queries_failed=last.queries_failed,
        )  # fmt: skip
        _take_metrics(sample, exposition, now)
        if self._con is None and sample.ready:
            self._con = duckdb.connect(str(self._catalog), read_only=True)
        if self._con is not None:
            self._take_views(sample, self._con)
        self._take_rates(sample, now)
        self._last = sample
        return sample

    def close(self) -> None:
        """Let go of the catalog."""
        if self._con is not None:
            self._con.close()
            self._con = None

    def _take_views(self, sample: Sample, con: duckdb.DuckDBPyConnection) -> None:
        # By file name: what an earlier demo left in the same root is not this run's.
        count = "SELECT count(DISTINCT event_id) FROM silver_events WHERE split_part(source_file, '/', -1) >= ?"
        row = self._query(sample, con, count, [self._files_from])
        sample.visible = row[0] if row else sample.visible
        headlines = dict(sample.headlines)
        for model, headline in HEADLINES.items():
            row = self._query(sample, con, headline.sql, [])
            if row:
                headlines[model] = headline.text(*row)
        sample.headlines = headlines

    @staticmethod
    def _query(
        sample: Sample, con: duckdb.DuckDBPyConnection, sql: str, parameters: list[str]
    ) -> tuple[Any, ...] | None:
        sample.queries += 1
        try:
            return con.execute(sql, parameters).fetchone()
        except duckdb.Error:
            sample.queries_failed += 1
            return None

    def _take_rates(self, sample: Sample, now: float) -> None:
        history = self._history
        history.append((now, sample.written, sample.visible))
        while len(history) > 2 and now - history[0][0] > RATE_WINDOW_SECONDS:
            history.popleft()
        since, written, visible = history[0]
        if now > since:
            sample.rate_in = (sample.written - written) / (now - since)
            sample.rate_out = (sample.visible - visible) / (now - since)
        if sample.ready and sample.rate_in > 0:
            # Little's law: how many are on their way, by how many come a second, is how long they take.
            sample.behind_seconds = max(0, sample.written - sample.visible) / sample.rate_in


def _take_metrics(sample: Sample, exposition: str, now: float) -> None:
    """Fill in what /metrics says; labels of one metric are added up, of timestamps the latest counts."""
    sums: dict[str, float] = {}
    latest: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition):
        for one in family.samples:
            sums[one.name] = sums.get(one.name, 0.0) + one.value
            latest[one.name] = max(latest.get(one.name, 0.0), one.value)

    def count(name: str) -> int:
        return int(sums.get(name, 0))

    def age(name: str) -> float | None:
        stamp = latest.get(name, 0.0)
        return max(0.0, now - stamp) if stamp else None

    sample.ready = bool(count("piper_ready"))
    sample.files_tracked = count("piper_files_tracked")
    sample.backlog_bytes = count("piper_backlog_bytes")
    sample.backlog_files = count("piper_backlog_files")
    sample.quarantined = count("piper_lines_quarantined_total")
    sample.duplicates = count("piper_events_duplicate_total")
    sample.memory_bytes = count("process_resident_memory_bytes")
    sample.commit_age = age("piper_last_commit_timestamp_seconds")
    sample.publish_age = age("piper_last_publish_timestamp_seconds")
    sample.gold_age = age("piper_gold_last_success_timestamp_seconds")

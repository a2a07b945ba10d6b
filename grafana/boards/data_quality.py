"""Can the other dashboards be believed: is everything here, in time, and as agreed?"""

from __future__ import annotations

from boards.dashboard import dashboard, options_of, row, variable
from boards.fields import POINTS, field, link, mapping, row_value, thresholds
from boards.panels import Panel, bar_gauge, stat, table_panel, timeseries
from boards.queries import DAY, IN_DAYS, RANGE_END, RANGE_START, Json, any_of, prom, series, table
from boards.shared import CARRIED_SHOW, data_as_of

UID = "piper-data-quality"
CHOSEN = any_of("host", "host")
HOST = variable(
    "host",
    "Host",
    "Host directory of the spool; narrows the panels that know hosts.",
    options_of("host", f"gold_host_activity_daily WHERE {IN_DAYS}", "gold_ingest_live"),
)
FIRST_DAY, LAST_DAY = f"CAST({RANGE_START} AS DATE)", f"CAST({RANGE_END} AS DATE)"
IN_BOTH_DAYS = f"event_date BETWEEN {FIRST_DAY} - CAST({LAST_DAY} - {FIRST_DAY} + 1 AS INTEGER) AND {LAST_DAY}"
"""The UTC days that the range touches and as many before them."""
IS_CURRENT_DAY = f"event_date >= {FIRST_DAY}"
REJECTED = thresholds("green", (0.1, "yellow"), (1, "red"))
"""In percent of the lines: a writer that crashes now and then leaves one in thousands."""
MORE_REJECTED = thresholds("green", (-0.05, "text"), (0.05, "red"))
"""Change of that rate, in percentage points."""
LAG = thresholds("green", (60, "yellow"), (600, "red"))
"""In seconds: writers flush every second, piper follows within another."""
SYMLOG = {"type": "symlog", "log": 10, "linearThreshold": 1}
"""A lag is a second or a week, and below zero where a clock is ahead."""
SKEW = thresholds("green", (60, "yellow"), (900, "red"))
"""In seconds; an hour ahead is quarantined."""
HOSTS = """
    hosts AS (
        SELECT
            *,
            CASE
                WHEN bytes_behind > 1048576 THEN 'behind'
                WHEN last_event_at IS NULL THEN 'no event'
                WHEN last_event_at < max(last_event_at) OVER () - INTERVAL 1 DAY THEN 'silent'
                ELSE 'current'
            END AS state
        FROM gold_ingest_live
    )
"""
"""Silence is measured against the newest host and not the clock: on Monday morning all have been quiet for days."""


def board() -> Json:
    """The dashboard."""
    return dashboard(
        UID,
        "Data quality",
        "Whether the telemetry behind the other dashboards is complete, valid and on time. Times are UTC.",
        row(4, data_as_of("gold_data_quality_daily"), _rejected(), _contract(), _timeliness()),
        row(8, _volume(), _suspicious()),
        row(8, _live(), _lag()),
        row(10, _hosts(), _reasons()),
        variables=(HOST, CARRIED_SHOW),
        since="now-13d/d",
    )


def _rejected() -> Panel:
    return stat(
        "Lines rejected",
        """100 × Σ quarantined_lines ÷ Σ (total_events + quarantined_lines) over the days of the range; beside it the
        difference, in percentage points, to as many days before. A rejected line counts on the day of its quarantine.
        Grain: UTC day. Source: gold_data_quality_daily.""",
        table(f"""
            WITH days AS (
                SELECT
                    CAST(quarantined_lines AS DOUBLE) AS rejected,
                    total_events + quarantined_lines AS lines,
                    {IS_CURRENT_DAY} AS is_current
                FROM gold_data_quality_daily
                WHERE {IN_BOTH_DAYS}
            ),

            rates AS (
                SELECT
                    100 * sum(rejected) FILTER (is_current) / nullif(sum(lines) FILTER (is_current), 0) AS rate,
                    100 * sum(rejected) FILTER (NOT is_current) / nullif(sum(lines) FILTER (NOT is_current), 0)
                        AS rate_before
                FROM days
            )

            SELECT rate AS "Rejected", rate - rate_before AS "vs previous" FROM rates
        """),
        unit="percent",
        decimals=2,
        limits=REJECTED,
        fields=[field("vs previous", unit=POINTS, limits=MORE_REJECTED, no_value="–")],
    )


def _contract() -> Panel:
    return stat(
        "Accepted, but not as agreed",
        """Over the days of the range: 100 × Σ contract_violations ÷ Σ total_events (a known type with a wrong status or
        without a required field), Σ unknown_type_events (a type that the registry does not know) and Σ duplicate_events
        (dropped: their event_id was there already). Grain: UTC day. Source: gold_data_quality_daily.""",
        table(f"""
            SELECT
                100 * CAST(sum(contract_violations) AS DOUBLE) / nullif(sum(total_events), 0) AS "Contract violations",
                CAST(sum(unknown_type_events) AS BIGINT) AS "Unknown types",
                CAST(sum(duplicate_events) AS BIGINT) AS "Duplicates"
            FROM gold_data_quality_daily
            WHERE {IN_DAYS}
        """),
        unit="locale",
        fields=[
            field("Contract violations", unit="percent", decimals=2, limits=REJECTED),
            field("Unknown types", limits=thresholds("green", (1, "yellow"))),
        ],
        width=7,
    )


def _timeliness() -> Panel:
    return stat(
        "On time",
        """p95_ingest_lag_s of the newest day of the range that has events, the largest max_clock_skew_s of its days,
        and hosts that are behind or silent now (see the table of hosts). Grain: UTC day; host. Source:
        gold_data_quality_daily, gold_ingest_live.""",
        table(f"""
            WITH {HOSTS}

            SELECT
                arg_max(p95_ingest_lag_s, event_date) AS "Lag, 95th percentile",
                max(max_clock_skew_s) AS "Worst clock",
                (SELECT count(*) FROM hosts WHERE state <> 'current') AS "Hosts not current"
            FROM gold_data_quality_daily
            WHERE {IN_DAYS}
        """),
        unit="s",
        decimals=1,
        limits=LAG,
        fields=[
            field("Worst clock", limits=SKEW),
            field(
                "Hosts not current", unit="locale", decimals=0, limits=thresholds("green", (1, "yellow"), (5, "red"))
            ),
        ],
        width=7,
    )


def _volume() -> Panel:
    return timeseries(
        "Events and hosts by day",
        """Events of the chosen hosts on each UTC day, and on the right how many of them sent any: a drop on a working
        day is missing data, not a quiet day. Today is not over. Grain: UTC day. Source: gold_host_activity_daily.""",
        series(f"""
            SELECT {DAY} AS time, CAST(sum(events) AS BIGINT) AS events, count(*) AS hosts
            FROM gold_host_activity_daily
            WHERE {IN_DAYS} AND {CHOSEN}
            GROUP BY 1
            ORDER BY 1
        """),
        unit="locale",
        style="bars",
        low=0,
        fields=[
            field("events", color="blue"),
            field(
                "hosts",
                color="orange",
                custom={"axisPlacement": "right", "drawStyle": "line", "fillOpacity": 0, "lineWidth": 2},
            ),
        ],
    )


def _suspicious() -> Panel:
    return timeseries(
        "Lines and events to look at, by day",
        """quarantined_lines, contract_violations, unknown_type_events and duplicate_events of each UTC day. A jump is a
        new release of a writer, or a writer that repeats itself. Grain: UTC day. Source: gold_data_quality_daily.""",
        series(f"""
            SELECT {DAY} AS time, quarantined_lines, contract_violations, unknown_type_events, duplicate_events
            FROM gold_data_quality_daily
            WHERE {IN_DAYS}
            ORDER BY 1
        """),
        unit="locale",
        style="bars",
        stacked=True,
        fields=[
            field("quarantined_lines", label="quarantined", color="red"),
            field("contract_violations", label="contract violations", color="orange"),
            field("unknown_type_events", label="unknown types", color="purple"),
            field("duplicate_events", label="duplicates", color="blue"),
        ],
    )


def _live() -> Panel:
    return timeseries(
        "Events of the last 48 hours by group",
        """Accepted events by group of event types, by the time at which they occurred; whatever the range, the last 48
        hours of it. A group that stops while others go on has lost its writer. Grain: a quarter of an hour, group.
        Source: gold_activity_live.""",
        series("""
            SELECT
                time_bucket(INTERVAL 15 MINUTE, bucket_start) AS time,
                event_group,
                CAST(sum(events) AS BIGINT) AS "Value"
            FROM gold_activity_live
            WHERE $__timeFilter(bucket_start)
            GROUP BY 1, 2
            ORDER BY 1, 2
        """),
        unit="locale",
        style="bars",
        stacked=True,
        by="event_group",
        last="48h",
    )


def _lag() -> Panel:
    return timeseries(
        "Ingest lag by day",
        """p95_ingest_lag_s: the exact 0.95 quantile of ingestion less occurrence of the day's events. A day that was
        read again by a backfill, or an outage made up for, shows as hours or days. Grain: UTC day. Source:
        gold_data_quality_daily.""",
        series(f"""
            SELECT {DAY} AS time, p95_ingest_lag_s
            FROM gold_data_quality_daily
            WHERE {IN_DAYS}
            ORDER BY 1
        """),
        unit="s",
        limits=LAG,
        name="95th percentile",
        mark_limits=True,
        fields=[field("p95_ingest_lag_s", custom={"scaleDistribution": SYMLOG})],
    )


def _hosts() -> Panel:
    return table_panel(
        "Hosts, worst first",
        """The chosen host directories of the spool as they are now: behind (more than 1 MiB of its files is unread), no
        event (none of its lines became one), silent (its newest event is a day older than the newest of all hosts) or
        current; lag_s of its newest event. A click shows the host's days above. Grain: host, whatever the range.
        Source: gold_ingest_live.""",
        table(f"""
            WITH {HOSTS}

            SELECT
                host AS "Host",
                state AS "State",
                last_event_at AS "Newest event",
                lag_s AS "Lag",
                bytes_behind AS "Unread",
                files AS "Files"
            FROM hosts
            WHERE {CHOSEN}
            ORDER BY
                CASE state WHEN 'behind' THEN 0 WHEN 'no event' THEN 1 WHEN 'silent' THEN 2 ELSE 3 END,
                bytes_behind DESC,
                last_event_at NULLS FIRST,
                host
            LIMIT 200
        """),
        unit="locale",
        fields=[
            field("Host", links=[link("Days of this host", UID, host=row_value("Host"))], width=230),
            field(
                "State",
                cell="color-background",
                width=110,
                mappings=[
                    mapping(
                        {
                            "behind": ("behind", "red"),
                            "no event": ("no event", "red"),
                            "silent": ("silent", "yellow"),
                            "current": ("current", "green"),
                        }
                    )
                ],
            ),
            field("Newest event", unit="dateTimeFromNow", no_value="–"),
            field("Lag", unit="s", decimals=1, limits=LAG, cell="color-text", no_value="–"),
            field("Unread", unit="bytes", limits=thresholds("text", (1 << 20, "red")), cell="color-text"),
        ],
        no_value="No host has written to the spool yet",
        width=14,
    )


def _reasons() -> Panel:
    return bar_gauge(
        "Lines rejected by reason",
        """Increase of piper_lines_quarantined_total over the range, by reason: what to mend in the writer. The lines
        are in quarantine/invalid_jsonl, with file and line number. Grain: reason over the range. Source:
        Prometheus.""",
        prom(
            "sort_desc(sum by (reason) (increase(piper_lines_quarantined_total[$__range])) > 0)",
            "{{reason}}",
            instant=True,
        ),
        unit="locale",
        decimals=0,
        limits=thresholds("text", (1, "orange")),
        no_value="No line was rejected in this range",
    )

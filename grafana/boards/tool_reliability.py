"""Which tools fail for the artists, for whom, and since when?"""

from __future__ import annotations

from boards.dashboard import dashboard, options_of, row, variable
from boards.fields import (
    ERROR_RATE,
    MORE_IS_WORSE,
    POINTS,
    STATUS_COLORS,
    SUCCESS_RATE,
    field,
    link,
    row_value,
    thresholds,
)
from boards.panels import Panel, heatmap, stat, table_panel, timeseries
from boards.queries import (
    BARS_MAX,
    BUCKET,
    DAY,
    ERROR_TEXT,
    IN_BOTH,
    IN_DAYS,
    IN_RANGE,
    IN_SHOWS,
    IS_CURRENT,
    Json,
    any_of,
    series,
    table,
)
from boards.shared import SHOW, against_previous, data_as_of, rates_of

UID = "piper-tool-reliability"
CHOSEN = " AND ".join([IN_SHOWS, any_of("dcc", "dcc"), any_of("event_type", "tool"), any_of("hostname", "host")])
NO_FAILURES = "No failed run in this range"

DCC = variable(
    "dcc",
    "DCC",
    "Application that the tool ran in; (none) stands for runs outside of one.",
    options_of("dcc", f"silver_tool_events WHERE {IN_DAYS}"),
)
HOST = variable("host", "Host", "Workstation.", options_of("hostname", f"silver_tool_events WHERE {IN_DAYS}"))
TOOL = variable("tool", "Tool", "Type of tool event.", options_of("event_type", "gold_tool_reliability_daily"))


def board() -> Json:
    """The dashboard."""
    return dashboard(
        UID,
        "Tool reliability",
        "How often the artists' tools and launches end in an error, which tools, hosts and codes that comes from, and"
        " what it costs. Times are UTC.",
        row(4, data_as_of("gold_tool_reliability_daily"), _reliability(), _counts(), _launch_time()),
        row(8, _runs_over_time(), _error_rate_by_day()),
        row(9, _tools(), _errors_by_code()),
        row(9, _hosts(), _latest_failures()),
        variables=(SHOW, DCC, TOOL, HOST),
        since="now-6d/d",
    )


def _reliability() -> Panel:
    return against_previous(
        "Runs without error",
        """100 × runs whose status is not error ÷ all runs, over the range; beside it the difference, in percentage
        points, to the period of the same length before. Not the share of status success: most launches report info.
        Grain: event. Source: silver_tool_events.""",
        rates_of("silver_tool_events", CHOSEN, "Without error", "CAST(status <> 'error' AS INTEGER)"),
        SUCCESS_RATE,
    )


def _counts() -> Panel:
    return stat(
        "What failures cost",
        """Runs of any status, those with status error, the people who had at least one of those, and Σ duration of the
        failed runs that report one: time that somebody waited for nothing. Grain: event. Source:
        silver_tool_events.""",
        table(f"""
            SELECT
                count(*) AS "Runs",
                count(*) FILTER (status = 'error') AS "Failed",
                count(DISTINCT username) FILTER (status = 'error') AS "People affected",
                CAST(sum(duration_ms) FILTER (status = 'error') AS DOUBLE) AS "Time lost"
            FROM silver_tool_events
            WHERE {IN_RANGE} AND {CHOSEN}
        """),
        unit="locale",
        fields=[
            field("Failed", limits=thresholds("text", (1, "orange"))),
            field("Time lost", unit="ms", decimals=1),
        ],
        width=9,
    )


def _launch_time() -> Panel:
    return stat(
        "Launch time, 95th percentile",
        """Exact 0.95 quantile of the duration of the dcc.launch events that report one: what people wait for their
        application. Beside it the change in percent against the period of the same length before. Grain: event. Source:
        silver_tool_events.""",
        table(f"""
            WITH launches AS (
                SELECT CAST(duration_ms AS DOUBLE) AS duration_ms, {IS_CURRENT} AS is_current
                FROM silver_tool_events
                WHERE {IN_BOTH} AND {CHOSEN} AND event_type = 'dcc.launch'
            ),

            quantiles AS (
                SELECT
                    quantile_cont(duration_ms, 0.95) FILTER (is_current) AS p95,
                    quantile_cont(duration_ms, 0.95) FILTER (NOT is_current) AS p95_before
                FROM launches
            )

            SELECT p95 AS "p95", 100 * (p95 / nullif(p95_before, 0) - 1) AS "vs previous" FROM quantiles
        """),
        unit="ms",
        decimals=1,
        limits=thresholds("green", (30_000, "yellow"), (60_000, "red")),
        fields=[
            field("vs previous", unit="percent", limits=thresholds("green", (-5, "text"), (10, "red")), no_value="–")
        ],
    )


def _runs_over_time() -> Panel:
    return timeseries(
        "Runs over time by status",
        """Tool runs and launches by status. Grain: a period that grows with the range, from a minute up. Source:
        silver_tool_events.""",
        series(f"""
            SELECT {BUCKET} AS time, status, count(*) AS "Value"
            FROM silver_tool_events
            WHERE {IN_RANGE} AND {CHOSEN}
            GROUP BY 1, 2
            ORDER BY 1, 2
        """),
        unit="locale",
        style="bars",
        stacked=True,
        points_max=BARS_MAX,
        by="status",
        fields=STATUS_COLORS,
    )


def _error_rate_by_day() -> Panel:
    return heatmap(
        "Error rate by tool and day",
        """100 × runs with status error ÷ all runs: a tool that broke on a day stands out. Dark is few, bright is 20 %
        or more, empty is fewer than 5 runs. Grain: UTC day, tool. Source: silver_tool_events.""",
        series(f"""
            SELECT
                {DAY} AS time,
                event_type AS tool,
                100 * count(*) FILTER (status = 'error') / count(*) AS "Value"
            FROM silver_tool_events
            WHERE {IN_DAYS} AND {CHOSEN}
            GROUP BY 1, 2
            HAVING count(*) >= 5
            ORDER BY 1, 2
        """),
        unit="percent",
        decimals=1,
        limits=ERROR_RATE,
        by="tool",
        low=0,
        high=20,
        show_zero=True,
    )


def _tools() -> Panel:
    only = link("Only this tool", UID, keep=["show", "dcc", "host"], tool=row_value("Tool"))
    return table_panel(
        "Tools, most failures first",
        """Runs, failed runs, 100 × failed ÷ runs and its difference to the period of the same length before, exact
        median and 0.95 quantile of the duration, and people who ran it. A click narrows the dashboard to the tool.
        Grain: tool over the range. Source: silver_tool_events.""",
        table(f"""
            WITH runs AS (
                SELECT
                    event_type,
                    status = 'error' AS is_error,
                    CAST(duration_ms AS DOUBLE) AS duration_ms,
                    username,
                    {IS_CURRENT} AS is_current
                FROM silver_tool_events
                WHERE {IN_BOTH} AND {CHOSEN}
            ),

            tools AS (
                SELECT
                    event_type,
                    count(*) FILTER (is_current) AS runs,
                    count(*) FILTER (is_current AND is_error) AS failed,
                    100 * count(*) FILTER (NOT is_current AND is_error)
                        / nullif(count(*) FILTER (NOT is_current), 0) AS rate_before,
                    quantile_cont(duration_ms, 0.5) FILTER (is_current) AS median,
                    quantile_cont(duration_ms, 0.95) FILTER (is_current) AS p95,
                    count(DISTINCT username) FILTER (is_current) AS people
                FROM runs
                GROUP BY 1
            )

            SELECT
                event_type AS "Tool",
                failed AS "Failed",
                runs AS "Runs",
                100 * failed / runs AS "Error rate",
                100 * failed / runs - rate_before AS "vs previous",
                median AS "Median",
                p95 AS "p95",
                people AS "People"
            FROM tools
            WHERE runs > 0
            ORDER BY failed DESC, runs DESC, 1
        """),
        unit="locale",
        fields=[
            field("Tool", links=[only], width=190),
            field("Error rate", unit="percent", decimals=1, limits=ERROR_RATE, cell="color-background"),
            field("vs previous", unit=POINTS, decimals=1, limits=MORE_IS_WORSE, cell="color-text", no_value="new"),
            field("Median", unit="ms", decimals=1, no_value="–"),
            field("p95", unit="ms", decimals=1, no_value="–"),
        ],
        width=14,
    )


def _errors_by_code() -> Panel:
    return table_panel(
        "Errors by code",
        """Failed runs by error code, the tool that gave it, people who met it, and when it was last seen. Grain: error
        code, tool over the range. Source: silver_tool_events.""",
        table(f"""
            SELECT
                coalesce(error_code, '(none)') AS "Code",
                event_type AS "Tool",
                count(*) AS "Failed",
                count(DISTINCT username) AS "People",
                max(occurred_at_utc) AS "Last seen"
            FROM silver_tool_events
            WHERE {IN_RANGE} AND {CHOSEN} AND status = 'error'
            GROUP BY 1, 2
            ORDER BY "Failed" DESC, 1, 2
            LIMIT 20
        """),
        unit="locale",
        fields=[
            field("Code", width=240),
            field("Tool", links=[link("Only this tool", UID, keep=["show", "dcc", "host"], tool=row_value("Tool"))]),
            field("Last seen", unit="dateTimeFromNow"),
        ],
        no_value=NO_FAILURES,
    )


def _hosts() -> Panel:
    only = link("Only this host", UID, keep=["show", "dcc", "tool"], host=row_value("Host"))
    sent = link("What this host sends", "piper-data-quality", host=row_value("Host"))
    return table_panel(
        "Hosts with most failures",
        """Failed runs, all runs and 100 × failed ÷ runs of the 15 hosts with most failures, and how many tools failed
        there. One host far above the others is a sick workstation, not a bad tool. Grain: host over the range. Source:
        silver_tool_events.""",
        table(f"""
            SELECT
                hostname AS "Host",
                count(*) FILTER (status = 'error') AS "Failed",
                count(*) AS "Runs",
                100 * count(*) FILTER (status = 'error') / count(*) AS "Error rate",
                count(DISTINCT event_type) FILTER (status = 'error') AS "Tools"
            FROM silver_tool_events
            WHERE {IN_RANGE} AND {CHOSEN}
            GROUP BY 1
            HAVING count(*) FILTER (status = 'error') > 0
            ORDER BY "Failed" DESC, "Error rate" DESC, 1
            LIMIT 15
        """),
        unit="locale",
        fields=[
            field("Host", links=[only, sent], width=190),
            field("Error rate", unit="percent", decimals=1, limits=ERROR_RATE, cell="color-background"),
        ],
        no_value=NO_FAILURES,
        width=8,
    )


def _latest_failures() -> Panel:
    only = link("Only this tool", UID, keep=["show", "dcc", "host"], tool=row_value("Tool"))
    return table_panel(
        "Latest failures",
        """The 50 newest runs with status error: who to call and what to look at. Grain: event. Source:
        silver_tool_events.""",
        table(f"""
            SELECT
                occurred_at_utc AS "Time",
                event_type AS "Tool",
                coalesce(dcc, '–') AS "DCC",
                username AS "Artist",
                hostname AS "Host",
                {ERROR_TEXT} AS "Error"
            FROM silver_tool_events
            WHERE {IN_RANGE} AND {CHOSEN} AND status = 'error'
            ORDER BY occurred_at_utc DESC, event_id
            LIMIT 50
        """),
        unit="string",
        fields=[
            field("Time", unit="dateTimeAsIso", width=170),
            field("Tool", links=[only], width=190),
            field("DCC", width=140),
            field("Artist", width=100),
            field("Host", width=180),
            field("Error", custom={"inspect": True}),
        ],
        no_value=NO_FAILURES,
    )

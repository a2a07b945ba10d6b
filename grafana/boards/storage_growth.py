"""What fills the disks, how fast, and is somebody still measuring it?"""

from __future__ import annotations

from boards.dashboard import dashboard, options_of, row, variable
from boards.fields import field, link, row_value, thresholds
from boards.panels import Panel, bar_gauge, stat, table_panel, timeseries
from boards.queries import IN_RANGE, NOW, RANGE_END, RANGE_START, Json, any_of, series, table
from boards.shared import data_as_of

UID = "piper-storage-growth"
MODEL = "gold_storage_growth_weekly"
IN_WEEKS = f"week_start BETWEEN CAST({RANGE_START} AS DATE) - 6 AND CAST({RANGE_END} AS DATE)"
"""The weeks that the range touches."""
CHOSEN = f"{any_of('bucket', 'bucket')} AND {any_of('scope_type', 'scope_type')}"
PLACE = "bucket, scope_type, scope_code, root_path"
GROWTH = thresholds("green", (2, "yellow"), (5, "red"))
"""Percent a week: at 5 % a disk that is half full is full in 14 weeks."""
SCAN_AGE = thresholds("green", (36 * 3600, "yellow"), (7 * 86_400, "red"))
"""Seconds since the last good scan: scans are expected daily, and the model needs one a week."""

BUCKETS: Json = variable("bucket", "Bucket", "Kind of data: cache, render, texture, usd …", options_of("bucket", MODEL))
SCOPES: Json = variable(
    "scope_type", "Scope", "What the places belong to: show, sequence, asset …", options_of("scope_type", MODEL)
)


def board() -> Json:
    """The dashboard."""
    return dashboard(
        UID,
        "Storage growth",
        """How much the scanned places hold, what grows, and whether scans still come. Weeks begin on Monday, UTC. A
        place that was not scanned in a week counts with its last known size.""",
        row(4, data_as_of(MODEL), _size(), _files(), _scans()),
        row(9, _size_by_week(), _growth_by_week()),
        row(10, _fastest(), _largest()),
        row(8, _errors_by_code(), _not_scanned()),
        variables=(BUCKETS, SCOPES),
        since="now-12w",
        refresh="1h",
    )


def _carried(column: str) -> str:
    """CTEs ending in `sizes`: of every week and place the last known `column`, and 0 before its first scan."""
    return f"""
        WITH places AS (
            SELECT week_start, {PLACE}, {column} AS size
            FROM {MODEL}
            WHERE week_start <= CAST({RANGE_END} AS DATE) AND {CHOSEN}
        ),

        every_week AS (
            SELECT *
            FROM (SELECT DISTINCT week_start FROM places)
            CROSS JOIN (SELECT DISTINCT {PLACE} FROM places)
        ),

        sizes AS (
            SELECT
                every_week.week_start,
                every_week.bucket,
                coalesce(last_value(places.size IGNORE NULLS) OVER (
                    PARTITION BY every_week.bucket, every_week.scope_type, every_week.scope_code, every_week.root_path
                    ORDER BY every_week.week_start
                ), 0) AS size
            FROM every_week
            LEFT JOIN places
                ON every_week.week_start = places.week_start
                AND every_week.bucket IS NOT DISTINCT FROM places.bucket
                AND every_week.scope_type IS NOT DISTINCT FROM places.scope_type
                AND every_week.scope_code IS NOT DISTINCT FROM places.scope_code
                AND every_week.root_path IS NOT DISTINCT FROM places.root_path
        )"""


def _total(column: str, label: str) -> Json:
    """The newest week's total, and what it gained against the week before, as amount and percent."""
    return table(f"""{_carried(column)},

        totals AS (
            SELECT week_start, CAST(sum(size) AS DOUBLE) AS total FROM sizes GROUP BY 1
        )

        SELECT
            total AS "{label}",
            total - lag(total) OVER (ORDER BY week_start) AS "In a week",
            100 * (total / nullif(lag(total) OVER (ORDER BY week_start), 0) - 1) AS "Growth"
        FROM totals
        ORDER BY week_start DESC
        LIMIT 1
    """)


def _size() -> Panel:
    return stat(
        "Size",
        """Σ of the last known size of every place, and what it gained against the week before: the newest week of the
        range is not over. Grain: place, week. Source: gold_storage_growth_weekly.""",
        _total("latest_size_bytes", "Size"),
        unit="decbytes",
        decimals=1,
        fields=[field("Growth", unit="percent", limits=GROWTH)],
        width=8,
    )


def _files() -> Panel:
    return stat(
        "Files",
        """Σ of the last known number of files of every place, and what it gained against the week before. Grain: place,
        week. Source: gold_storage_growth_weekly.""",
        _total("latest_file_count", "Files"),
        unit="short",
        decimals=1,
        fields=[field("Growth", unit="percent", limits=GROWTH), field("In a week", decimals=0)],
        width=7,
    )


def _scans() -> Panel:
    return stat(
        "Last good scan",
        """Time since the newest scan with status success or info, and 100 × failed scans ÷ all scans of the range.
        Grain: scan. Source: silver_storage_scan_summary.""",
        table(f"""
            SELECT
                CAST(epoch({NOW} - max(occurred_at_utc) FILTER (status IN ('success', 'info'))) AS DOUBLE) AS "Ago",
                100 * count(*) FILTER (status = 'error') / nullif(count(*), 0) AS "Failed"
            FROM silver_storage_scan_summary
            WHERE {IN_RANGE}
        """),
        unit="s",
        decimals=0,
        limits=SCAN_AGE,
        fields=[field("Failed", unit="percent", limits=thresholds("green", (5, "yellow"), (20, "red")))],
        no_value="None in this range",
    )


def _size_by_week() -> Panel:
    return timeseries(
        "Size by week and bucket",
        """Σ of the last known size of every place by bucket, at the end of each week. Grain: week, bucket. Source:
        gold_storage_growth_weekly.""",
        series(f"""{_carried("latest_size_bytes")}

            SELECT
                CAST(week_start AS TIMESTAMP) AS time,
                coalesce(bucket, '(none)') AS bucket,
                CAST(sum(size) AS DOUBLE) AS "Value"
            FROM sizes
            WHERE {IN_WEEKS}
            GROUP BY 1, 2
            ORDER BY 1, 2
        """),
        unit="decbytes",
        by="bucket",
        style="bars",
        stacked=True,
        low=0,
    )


def _growth_by_week() -> Panel:
    return timeseries(
        "Growth by week and bucket",
        """Σ growth_bytes (latest size less that of the week before, of places scanned in both) by bucket. Below zero
        something was deleted. Grain: week, bucket. Source: gold_storage_growth_weekly.""",
        series(f"""
            SELECT
                CAST(week_start AS TIMESTAMP) AS time,
                coalesce(bucket, '(none)') AS bucket,
                CAST(sum(growth_bytes) AS DOUBLE) AS "Value"
            FROM {MODEL}
            WHERE {IN_WEEKS} AND {CHOSEN} AND growth_bytes IS NOT NULL
            GROUP BY 1, 2
            ORDER BY 1, 2
        """),
        unit="decbytes",
        by="bucket",
        style="bars",
        stacked=True,
        no_value="Growth needs two weeks with scans",
    )


def _fastest() -> Panel:
    return table_panel(
        "What grows fastest",
        """The 15 places that gained most over the weeks of the range: Σ growth_bytes, the same as percent of the size
        before, and what they hold now. A click narrows the dashboard to the bucket and scope. Grain: place. Source:
        gold_storage_growth_weekly.""",
        table(f"""
            SELECT
                coalesce(bucket, '(none)') AS "Bucket",
                coalesce(scope_type, '(none)') AS "Scope",
                coalesce(scope_code, '(none)') AS "Name",
                coalesce(root_path, '–') AS "Path",
                CAST(sum(growth_bytes) AS DOUBLE) AS "Growth",
                CAST(100 * sum(growth_bytes)
                    / nullif(arg_max(latest_size_bytes, week_start) - sum(growth_bytes), 0) AS DOUBLE) AS "Growth %",
                arg_max(latest_size_bytes, week_start) AS "Size"
            FROM {MODEL}
            WHERE {IN_WEEKS} AND {CHOSEN}
            GROUP BY 1, 2, 3, 4
            ORDER BY "Growth" DESC NULLS LAST, 1, 2, 3, 4
            LIMIT 15
        """),
        unit="decbytes",
        decimals=1,
        fields=[
            field("Bucket", links=[link("Only this bucket and scope", UID, bucket=row_value("Bucket"),
                                        scope_type=row_value("Scope"))]),
            field("Path", unit="string"),
            field("Growth %", unit="percent", limits=thresholds("text", (25, "orange"), (100, "red")),
                  cell="color-text"),
        ],
        no_value="Growth needs two weeks with scans",
        width=16,
    )  # fmt: skip


def _largest() -> Panel:
    return bar_gauge(
        "Largest",
        """The 12 names (show, sequence, asset …) that hold most now: Σ of the last known size of their places. Grain:
        scope. Source: gold_storage_growth_weekly.""",
        table(f"""
            WITH places AS (
                SELECT {PLACE}, arg_max(latest_size_bytes, week_start) AS size
                FROM {MODEL}
                WHERE week_start <= CAST({RANGE_END} AS DATE) AND {CHOSEN}
                GROUP BY ALL
            )

            SELECT
                concat(coalesce(scope_code, '(none)'), ' (', coalesce(scope_type, '(none)'), ')') AS name,
                CAST(sum(size) AS DOUBLE) AS size
            FROM places
            GROUP BY 1
            ORDER BY 2 DESC NULLS LAST, 1
            LIMIT 12
        """),
        unit="decbytes",
        decimals=1,
        limits=thresholds("blue"),
        low=0,
    )


def _errors_by_code() -> Panel:
    return table_panel(
        "Scans that failed, by code",
        """Failed scans by error code and host, and when that was last seen. Grain: error code, host over the range.
        Source: silver_storage_scan_summary.""",
        table(f"""
            SELECT
                coalesce(error_code, '(none)') AS "Code",
                coalesce(hostname, '(none)') AS "Host",
                count(*) AS "Failed",
                max(occurred_at_utc) AS "Last seen"
            FROM silver_storage_scan_summary
            WHERE {IN_RANGE} AND status = 'error'
            GROUP BY 1, 2
            ORDER BY "Failed" DESC, 1, 2
            LIMIT 15
        """),
        unit="locale",
        fields=[field("Last seen", unit="dateTimeFromNow")],
        no_value="No scan failed in this range",
        width=10,
    )


def _not_scanned() -> Panel:
    return table_panel(
        "Not scanned lately",
        """Places whose newest scan is older than the newest week of the model: their size is not known any more. Grain:
        place. Source: gold_storage_growth_weekly.""",
        table(f"""
            WITH places AS (
                SELECT {PLACE}, max(week_start) AS last_week, arg_max(latest_size_bytes, week_start) AS size
                FROM {MODEL}
                WHERE week_start <= CAST({RANGE_END} AS DATE) AND {CHOSEN}
                GROUP BY ALL
            ),

            late AS (
                SELECT * FROM places WHERE last_week < (SELECT max(last_week) FROM places)
            )

            SELECT
                strftime(last_week, '%Y-%m-%d') AS "Last week with a scan",
                coalesce(bucket, '(none)') AS "Bucket",
                coalesce(scope_code, '(none)') AS "Name",
                coalesce(root_path, '–') AS "Path",
                size AS "Size then"
            FROM late
            UNION ALL
            SELECT 'every place', '–', '–', 'was scanned in the newest week', NULL
            WHERE NOT EXISTS (SELECT * FROM late) AND EXISTS (SELECT * FROM places)
            ORDER BY 1, 2, 3, 4
            LIMIT 50
        """),
        unit="decbytes",
        decimals=1,
        fields=[field("Path", unit="string"), field("Size then", no_value="–")],
    )

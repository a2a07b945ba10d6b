"""Is the farm full, is somebody waiting, and who fills it?"""

from __future__ import annotations

from boards.dashboard import dashboard, row
from boards.fields import field, link, row_value, thresholds
from boards.panels import Panel, heatmap, stat, table_panel, timeseries
from boards.queries import IN_RANGE, IN_SHOWS, RANGE_END, Json, series, table
from boards.shared import SHOW, data_as_of

UID = "piper-farm-pressure"
LIVE = "gold_farm_pressure_live"
IN_BUCKETS = "$__timeFilter(bucket_start)"
FULL = thresholds("blue", (50, "green"), (90, "yellow"), (97, "red"))
"""Utilisation in percent: an idle farm is money lost too, a full one makes people wait."""
ERRORED = thresholds("green", (5, "yellow"), (20, "red"))
"""Errored jobs at one time."""
SNAPSHOTS_FAILED = thresholds("green", (5, "yellow"), (20, "red"))
"""In percent."""


def board() -> Json:
    """The dashboard."""
    return dashboard(
        UID,
        "Farm pressure",
        "How full the render farm is, what waits, and who fills it; by minutes over the last 48 hours. Times are UTC.",
        row(4, data_as_of(LIVE), _utilisation(), _jobs_now(), _blades_now()),
        row(8, _jobs_over_time(), _utilisation_over_time()),
        row(9, _hours(), _days()),
        row(9, _who_fills_it(), _wait()),
        variables=(SHOW,),
        since="now-24h",
        refresh="1m",
    )


def _latest(columns: str) -> str:
    """The newest bucket of the range that measured anything, and the mean of the same hours a day before."""
    return f"""
        WITH measured AS (
            SELECT * FROM {LIVE} WHERE {IN_BUCKETS} AND avg_active_jobs IS NOT NULL
        )

        SELECT {columns} FROM measured WHERE bucket_start = (SELECT max(bucket_start) FROM measured)
    """


def _utilisation() -> Panel:
    return stat(
        "Slots in use now",
        """100 × Σ busy_slots ÷ Σ total_slots of the newest 5 minutes with a snapshot; beside it the difference, in
        percentage points, to the mean of the hour a day before. Grain: 5 minutes. Source: gold_farm_pressure_live.""",
        table(f"""
            WITH measured AS (
                SELECT bucket_start, avg_slot_utilisation_pct
                FROM {LIVE}
                WHERE bucket_start <= {RANGE_END} AND avg_slot_utilisation_pct IS NOT NULL
            ),

            newest AS (SELECT max(bucket_start) AS newest_at FROM measured)

            SELECT
                max(avg_slot_utilisation_pct) FILTER (bucket_start = newest_at) AS "Now",
                max(avg_slot_utilisation_pct) FILTER (bucket_start = newest_at)
                    - avg(avg_slot_utilisation_pct) FILTER (
                        bucket_start BETWEEN newest_at - INTERVAL 25 HOUR AND newest_at - INTERVAL 24 HOUR
                    ) AS "vs yesterday"
            FROM measured, newest
        """),
        unit="percent",
        decimals=0,
        limits=FULL,
        fields=[field("vs yesterday", unit="suffix: pp", limits=thresholds("text"), no_value="–")],
        no_value="No snapshot in the last 48 hours",
        width=6,
    )


def _jobs_now() -> Panel:
    return stat(
        "Jobs now",
        """Means of running and waiting jobs and the largest number of errored ones in the newest 5 minutes of the range
        with a snapshot. Grain: 5 minutes. Source: gold_farm_pressure_live.""",
        table(
            _latest("""
                avg_active_jobs AS "Running",
                avg_waiting_jobs AS "Waiting",
                CASE WHEN avg_active_jobs > 0 THEN avg_waiting_jobs / avg_active_jobs END AS "Waiting per running",
                peak_errored_jobs AS "Errored"
            """)
        ),
        unit="locale",
        decimals=0,
        fields=[
            field("Waiting per running", decimals=1, limits=thresholds("green", (1, "yellow"), (3, "red"))),
            field("Errored", limits=ERRORED),
        ],
        no_value="No snapshot in this range",
        width=8,
    )


def _blades_now() -> Panel:
    return stat(
        "Blades now",
        """Mean of active blades and the number of blades in the newest 5 minutes of the range with a snapshot, and the
        share of all snapshots of the range that failed. Grain: 5 minutes. Source: gold_farm_pressure_live.""",
        table(f"""
            WITH measured AS (
                SELECT * FROM {LIVE} WHERE {IN_BUCKETS} AND avg_active_blades IS NOT NULL
            )

            SELECT
                (SELECT avg_active_blades FROM measured ORDER BY bucket_start DESC LIMIT 1) AS "Active",
                (SELECT total_blades FROM measured ORDER BY bucket_start DESC LIMIT 1) AS "All",
                CAST(100 * sum(error_snapshot_count) / nullif(sum(snapshot_count), 0) AS DOUBLE) AS "Snapshots failed"
            FROM {LIVE}
            WHERE {IN_BUCKETS}
        """),
        unit="locale",
        decimals=0,
        fields=[
            field(
                "Snapshots failed", unit="percent", decimals=1, limits=thresholds("green", (5, "yellow"), (20, "red"))
            )
        ],
        no_value="–",
    )


def _jobs_over_time() -> Panel:
    return timeseries(
        "Jobs running and waiting",
        """Mean of running and waiting jobs and peak of errored ones in each 5 minutes of the last 48 hours. Grain: 5
        minutes. Source: gold_farm_pressure_live.""",
        series(f"""
            SELECT
                bucket_start AS time,
                avg_active_jobs AS running,
                avg_waiting_jobs AS waiting,
                peak_errored_jobs AS errored
            FROM {LIVE}
            WHERE {IN_BUCKETS}
            ORDER BY 1
        """),
        unit="locale",
        decimals=0,
        low=0,
        fields=[field("running", color="green"), field("waiting", color="orange"), field("errored", color="red")],
        no_value="No snapshot in this range",
    )


def _utilisation_over_time() -> Panel:
    return timeseries(
        "Slots and blades in use",
        """100 × Σ busy_slots ÷ Σ total_slots, and 100 × mean active blades ÷ blades, in each 5 minutes of the last 48
        hours. The dashed lines are the limits of the headline. Grain: 5 minutes. Source: gold_farm_pressure_live.""",
        series(f"""
            SELECT
                bucket_start AS time,
                avg_slot_utilisation_pct AS slots,
                100 * avg_active_blades / nullif(total_blades, 0) AS blades
            FROM {LIVE}
            WHERE {IN_BUCKETS}
            ORDER BY 1
        """),
        unit="percent",
        decimals=0,
        limits=FULL,
        low=0,
        high=100,
        fill=0,
        mark_limits=True,
        fields=[field("slots", color="blue"), field("blades", color="purple")],
        no_value="No snapshot in this range",
    )


def _hours() -> Panel:
    return heatmap(
        "When is the farm full?",
        """100 × Σ busy_slots ÷ Σ total_slots over the success and info snapshots of each UTC day and hour of the day,
        of the 14 days up to the end of the range: where a big submission would still fit. Grain: day, hour. Source:
        silver_tractor_farm_snapshot.""",
        series(f"""
            SELECT
                CAST(event_date AS TIMESTAMP) AS time,
                printf('%02d h', CAST(hour(occurred_at_utc) AS INTEGER)) AS hour,
                CAST(100 * sum(busy_slots) / nullif(sum(total_slots), 0) AS DOUBLE) AS "Value"
            FROM silver_tractor_farm_snapshot
            WHERE event_date BETWEEN CAST({RANGE_END} AS DATE) - 13 AND CAST({RANGE_END} AS DATE)
                AND status IN ('success', 'info') AND busy_slots IS NOT NULL
            GROUP BY 1, 2
            HAVING sum(total_slots) > 0
            ORDER BY 1, 2
        """),
        unit="percent",
        decimals=0,
        by="hour",
        limits=FULL,
    )


def _days() -> Panel:
    return table_panel(
        "Day by day",
        """Of the 14 UTC days up to the end of the range: utilisation of slots (Σ ÷ Σ) and its peak, mean and peak of
        waiting jobs, peak of errored jobs, failed snapshots. Grain: day. Source: gold_farm_pressure_daily.""",
        table(f"""
            SELECT
                strftime(event_date, '%a %d %b') AS "Day",
                avg_slot_utilisation_pct AS "In use",
                peak_slot_utilisation_pct AS "Peak in use",
                avg_waiting_jobs AS "Waiting",
                CAST(peak_waiting_jobs AS BIGINT) AS "Peak waiting",
                CAST(peak_errored_jobs AS BIGINT) AS "Peak errored",
                error_snapshot_count AS "Failed snapshots"
            FROM gold_farm_pressure_daily
            WHERE event_date BETWEEN CAST({RANGE_END} AS DATE) - 13 AND CAST({RANGE_END} AS DATE)
            ORDER BY event_date DESC
        """),
        unit="locale",
        decimals=0,
        fields=[
            field("In use", unit="percent", limits=FULL, cell="gauge", low=0, high=100),
            field("Peak in use", unit="percent"),
            field("Peak errored", limits=ERRORED, cell="color-text"),
        ],
        no_value="No snapshot in these days",
        width=12,
    )


def _who_fills_it() -> Panel:
    return table_panel(
        "Who fills it",
        """The 15 people and shows with most frames submitted in the range: jobs, Σ of frames (first to last, by step),
        the mean priority, and the share of jobs that could not be submitted. A click opens the show's renders. Grain:
        show, person. Source: silver_tractor_job_spool.""",
        table(f"""
            SELECT
                coalesce("show", '(none)') AS "Show",
                coalesce(username, '(none)') AS "Artist",
                count(*) AS "Jobs",
                CAST(sum(
                    CASE WHEN frame_end >= frame_start
                    THEN (frame_end - frame_start) // greatest(coalesce(frame_step, 1), 1) + 1 END
                ) AS BIGINT) AS "Frames",
                avg(priority) AS "Priority",
                100 * count(*) FILTER (status = 'error') / count(*) AS "Not submitted"
            FROM silver_tractor_job_spool
            WHERE {IN_RANGE} AND {IN_SHOWS}
            GROUP BY 1, 2
            ORDER BY "Frames" DESC NULLS LAST, "Jobs" DESC, 1, 2
            LIMIT 15
        """),
        unit="locale",
        decimals=0,
        fields=[
            field("Show", links=[link("Renders of this show", "piper-render-health", show=row_value("Show"))]),
            field("Not submitted", unit="percent", decimals=1, limits=thresholds("green", (2, "yellow"), (10, "red")),
                  cell="color-text"),
        ],
        no_value="No job was submitted in this range",
    )  # fmt: skip


def _wait() -> Panel:
    return timeseries(
        "Time in the queue by hour",
        """Exact median and 0.95 quantile of queue_wait_ms of the jobs that finished in each hour of the range. Grain:
        hour. Source: silver_render_stats_summary.""",
        series(f"""
            SELECT
                time_bucket(INTERVAL 1 HOUR, occurred_at_utc) AS time,
                quantile_cont(CAST(queue_wait_ms AS DOUBLE), 0.5) AS median,
                quantile_cont(CAST(queue_wait_ms AS DOUBLE), 0.95) AS p95
            FROM silver_render_stats_summary
            WHERE {IN_RANGE} AND {IN_SHOWS} AND queue_wait_ms IS NOT NULL
            GROUP BY 1
            ORDER BY 1
        """),
        unit="ms",
        decimals=1,
        low=0,
        limits=thresholds("green", (1_800_000, "yellow"), (7_200_000, "red")),
        fields=[field("median", color="green"), field("p95", color="orange")],
        no_value="No job finished in this range",
    )

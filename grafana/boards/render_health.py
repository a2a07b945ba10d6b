"""Do renders come out, what do they cost, and which jobs need a look?"""

from __future__ import annotations

from boards.dashboard import dashboard, options_of, row, variable
from boards.fields import (
    ERROR_RATE,
    MORE_IS_WORSE,
    SUCCESS_RATE,
    field,
    link,
    row_value,
    thresholds,
)
from boards.panels import Panel, bar_chart, stat, table_panel, timeseries
from boards.queries import DAY, IN_BOTH, IN_DAYS, IN_RANGE, IN_SHOWS, IS_CURRENT, Json, any_of, series, table
from boards.shared import SHOW, against_previous, data_as_of, errors_by_code, rate_by_day_and_show, rates_of

UID = "piper-render-health"
JOBS = "silver_render_stats_summary"
CHOSEN = f"{IN_SHOWS} AND {any_of('renderer', 'renderer')}"
FRAME_SUCCESS = thresholds("red", (98, "yellow"), (99.5, "green"))
"""In percent: one bad frame in two hundred means that most shots have one."""

RENDERERS: Json = variable(
    "renderer",
    "Renderer",
    "Renderer of the jobs: prman, karma …; (none) stands for jobs that name none.",
    options_of("renderer", f"silver_render_stats_summary WHERE {IN_DAYS}"),
)


def board() -> Json:
    """The dashboard."""
    return dashboard(
        UID,
        "Render health",
        "How many render jobs and frames come out, what they cost in CPU hours, and which jobs fail. Times are UTC.",
        row(4, data_as_of("gold_render_health_daily"), _job_rate(), _frame_rate(), _cost()),
        row(8, _rate_by_day(), _cost_by_day()),
        row(9, _costly_sequences(), _errors_by_code()),
        row(9, _frame_time_by_renderer(), _worst_jobs()),
        variables=(SHOW, RENDERERS),
        since="now-6d/d",
    )


def cpu_hours(condition: str = "TRUE") -> str:
    """Their sum, exact: that of doubles depends on the order of the rows in its last digits."""
    return f"CAST(sum(CAST(total_cpu_hours AS DECIMAL(18, 4))) FILTER ({condition}) AS DOUBLE)"


def _job_rate() -> Panel:
    return against_previous(
        "Jobs that succeed",
        """100 × jobs with status success ÷ all jobs, over the range; beside it the difference, in percentage points, to
        the period of the same length before. Grain: job. Source: silver_render_stats_summary.""",
        rates_of(JOBS, CHOSEN, "Success rate", "CAST(status = 'success' AS INTEGER)"),
        SUCCESS_RATE,
    )


def _frame_rate() -> Panel:
    return against_previous(
        "Frames that succeed",
        """100 × (frames - failed frames) ÷ frames over the jobs that report both, over the range; beside it the
        difference, in percentage points, to the period before. Grain: job. Source: silver_render_stats_summary.""",
        rates_of(
            JOBS,
            CHOSEN,
            "Frame success",
            "frame_count - failed_frames",
            "CASE WHEN failed_frames IS NOT NULL THEN frame_count END",
        ),
        FRAME_SUCCESS,
        decimals=2,
    )


def _cost() -> Panel:
    return stat(
        "CPU hours",
        """Σ total_cpu_hours of all jobs over the range, its change in percent against the period before, and the share
        of it that went into jobs with status error. Grain: job. Source: silver_render_stats_summary.""",
        table(f"""
            WITH jobs AS (
                SELECT total_cpu_hours, status, {IS_CURRENT} AS is_current
                FROM silver_render_stats_summary
                WHERE {IN_BOTH} AND {CHOSEN}
            ),

            sums AS (
                SELECT
                    {cpu_hours("is_current")} AS hours,
                    {cpu_hours("NOT is_current")} AS hours_before,
                    {cpu_hours("is_current AND status = 'error'")} AS hours_lost
                FROM jobs
            )

            SELECT
                hours AS "CPU hours",
                100 * (hours / nullif(hours_before, 0) - 1) AS "vs previous",
                100 * coalesce(hours_lost, 0) / nullif(hours, 0) AS "In failed jobs"
            FROM sums
        """),
        unit="locale",
        decimals=0,
        fields=[
            field("vs previous", unit="percent", decimals=0),
            field("In failed jobs", unit="percent", decimals=1, limits=thresholds("green", (3, "yellow"), (8, "red"))),
        ],
        width=8,
    )


def _rate_by_day() -> Panel:
    title = "Job success by day and show"
    return rate_by_day_and_show(title, ", of all renderers", "gold_render_health_daily", "total_jobs")


def _cost_by_day() -> Panel:
    return timeseries(
        "CPU hours by day and show",
        """Σ total_cpu_hours of each UTC day and show, of all renderers. Grain: day, show. Source:
        gold_render_health_daily.""",
        series(f"""
            SELECT
                {DAY} AS time,
                coalesce("show", '(none)') AS "show",
                {cpu_hours()} AS "Value"
            FROM gold_render_health_daily
            WHERE {IN_DAYS} AND {IN_SHOWS}
            GROUP BY 1, 2
            ORDER BY 1, 2
        """),
        unit="locale",
        decimals=0,
        by="show",
        style="bars",
        stacked=True,
    )


def _costly_sequences() -> Panel:
    here = link("Only this show", UID, keep=["renderer"], show=row_value("Show"))
    publishes = link("Publishes of this show", "piper-publish-health", show=row_value("Show"))
    return table_panel(
        "What costs most",
        """The 15 sequences with most CPU hours over the range: Σ total_cpu_hours and its change in percent against the
        period before, jobs, 100 × failed jobs ÷ jobs, failed frames, the longest frame_time_p90_ms and the largest
        peak_memory_gb of one job. Grain: show, sequence. Source: silver_render_stats_summary.""",
        table(f"""
            WITH jobs AS (
                SELECT *, {IS_CURRENT} AS is_current
                FROM silver_render_stats_summary
                WHERE {IN_BOTH} AND {CHOSEN}
            ),

            sequences AS (
                SELECT
                    coalesce("show", '(none)') AS "Show",
                    coalesce(sequence, '(none)') AS "Sequence",
                    {cpu_hours("is_current")} AS hours,
                    {cpu_hours("NOT is_current")} AS hours_before,
                    count(*) FILTER (is_current) AS jobs,
                    100 * count(*) FILTER (is_current AND status = 'error')
                        / nullif(count(*) FILTER (is_current), 0) AS error_rate,
                    CAST(sum(failed_frames) FILTER (is_current) AS BIGINT) AS failed_frames,
                    max(frame_time_p90_ms) FILTER (is_current) AS frame_time,
                    max(peak_memory_gb) FILTER (is_current) AS memory
                FROM jobs
                GROUP BY 1, 2
            )

            SELECT
                "Show",
                "Sequence",
                hours AS "CPU hours",
                100 * (hours / nullif(hours_before, 0) - 1) AS "vs previous",
                jobs AS "Jobs",
                error_rate AS "Failed",
                failed_frames AS "Failed frames",
                frame_time AS "Frame p90, worst",
                memory AS "Peak memory"
            FROM sequences
            WHERE jobs > 0
            ORDER BY hours DESC NULLS LAST, 1, 2
            LIMIT 15
        """),
        unit="locale",
        decimals=0,
        fields=[
            field("Show", links=[here, publishes]),
            field("vs previous", unit="percent", limits=thresholds("text", (50, "orange")), cell="color-text",
                  no_value="new"),
            field("Failed", unit="percent", decimals=1, limits=ERROR_RATE, cell="color-background"),
            field("Frame p90, worst", unit="ms", decimals=1),
            field("Peak memory", unit="decgbytes", decimals=1, limits=thresholds("text", (96, "orange"), (120, "red")),
                  cell="color-text"),
        ],
        no_value="No render job in this range",
        width=16,
    )  # fmt: skip


def _errors_by_code() -> Panel:
    hours = (cpu_hours(), "CPU hours")
    return errors_by_code("render job", "the CPU hours that went into them", JOBS, CHOSEN, also=hours)


def _frame_time_by_renderer() -> Panel:
    return bar_chart(
        "Frame time and wait by renderer",
        """Median over the jobs of frame_time_p50_ms and frame_time_p90_ms, and of the time in the queue, over the
        range. Grain: renderer. Source: silver_render_stats_summary.""",
        table(f"""
            SELECT
                coalesce(renderer, '(none)') AS renderer,
                median(frame_time_p50_ms) AS "frame p50",
                median(frame_time_p90_ms) AS "frame p90",
                CAST(median(queue_wait_ms) AS DOUBLE) AS "in the queue"
            FROM silver_render_stats_summary
            WHERE {IN_RANGE} AND {CHOSEN}
            GROUP BY 1
            ORDER BY 3 DESC NULLS LAST, 1
        """),
        unit="ms",
        decimals=1,
        x="renderer",
        width=8,
    )


def _worst_jobs() -> Panel:
    return table_panel(
        "Jobs that need a look",
        """The 50 newest jobs of the range that failed or lost frames: whom to call and which job to open. Grain: job.
        Source: silver_render_stats_summary.""",
        table(f"""
            SELECT
                occurred_at_utc AS "Time",
                coalesce("show", '(none)') AS "Show",
                coalesce(shot, sequence, '(none)') AS "Shot",
                coalesce(job_id, '–') AS "Job",
                username AS "Artist",
                failed_frames AS "Failed frames",
                frame_count AS "Frames",
                retry_count AS "Retries",
                peak_memory_gb AS "Peak memory",
                coalesce(error_code, '–') AS "Code"
            FROM silver_render_stats_summary
            WHERE {IN_RANGE} AND {CHOSEN} AND (status = 'error' OR failed_frames > 0)
            ORDER BY occurred_at_utc DESC, event_id
            LIMIT 50
        """),
        unit="locale",
        fields=[
            field("Time", unit="dateTimeAsIso", width=170),
            field("Show", links=[link("Only this show", UID, keep=["renderer"], show=row_value("Show"))]),
            field("Job", unit="string"),
            field("Failed frames", limits=MORE_IS_WORSE, cell="color-text"),
            field("Peak memory", unit="decgbytes", decimals=1),
        ],
        no_value="No job failed or lost a frame in this range",
    )

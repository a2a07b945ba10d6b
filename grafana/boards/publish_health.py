"""Do publishes work, for whom do they not, and why?"""

from __future__ import annotations

from boards.dashboard import dashboard, options_of, row, variable
from boards.fields import (
    ERROR_RATE,
    MORE_IS_WORSE,
    POINTS,
    SUCCESS_RATE,
    field,
    link,
    row_value,
    thresholds,
)
from boards.panels import Panel, bar_chart, stat, table_panel, timeseries
from boards.queries import (
    BARS_MAX,
    BUCKET,
    ERROR_TEXT,
    IN_BOTH,
    IN_RANGE,
    IN_SHOWS,
    IS_CURRENT,
    Json,
    any_of,
    series,
    table,
)
from boards.shared import SHOW, against_previous, data_as_of, errors_by_code, rate_by_day_and_show, rates_of

UID = "piper-publish-health"
KIND = "split_part(event_type, '.', 2)"
"""`anim` of `publish.anim.usd`."""
CHOSEN = f"{IN_SHOWS} AND {any_of(KIND, 'kind')}"

KINDS = variable(
    "kind",
    "Kind",
    "Kind of publish: asset, anim, camera …",
    options_of(KIND, "gold_publish_health_daily"),
)


def board() -> Json:
    """The dashboard."""
    return dashboard(
        UID,
        "Publish health",
        "How many USD publishes work, how long they take, where they fail and with which error. Times are UTC.",
        row(4, data_as_of("gold_publish_health_daily"), _success_rate(), _counts(), _duration()),
        row(8, _rate_by_day(), _publishes_over_time()),
        row(8, _worst_places(), _errors_by_code()),
        row(9, _duration_by_kind(), _latest_failures()),
        variables=(SHOW, KINDS),
        since="now-6d/d",
    )


def _success_rate() -> Panel:
    return against_previous(
        "Success rate",
        """100 × publishes with status success ÷ all publishes, over the range; beside it the difference, in percentage
        points, to the period of the same length before. Grain: event. Source: silver_publish_usd.""",
        rates_of("silver_publish_usd", CHOSEN, "Success rate", "CAST(status = 'success' AS INTEGER)"),
        SUCCESS_RATE,
    )


def _counts() -> Panel:
    return stat(
        "Publishes",
        """Publishes of any status, those with status error, and the people who had at least one of those, over the
        range. Grain: event. Source: silver_publish_usd.""",
        table(f"""
            SELECT
                count(*) AS "Publishes",
                count(*) FILTER (status = 'error') AS "Failed",
                count(DISTINCT username) FILTER (status = 'error') AS "People affected"
            FROM silver_publish_usd
            WHERE {IN_RANGE} AND {CHOSEN}
        """),
        unit="locale",
        fields=[field("Failed", limits=thresholds("text", (1, "orange")))],
        width=8,
    )


def _duration() -> Panel:
    return stat(
        "Duration, 95th percentile",
        """Exact 0.95 quantile of the duration of the publishes that report one, over the range; beside it the change in
        percent against the period of the same length before. Grain: event. Source: silver_publish_usd.""",
        table(f"""
            WITH publishes AS (
                SELECT CAST(duration_ms AS DOUBLE) AS duration_ms, {IS_CURRENT} AS is_current
                FROM silver_publish_usd
                WHERE {IN_BOTH} AND {CHOSEN}
            ),

            quantiles AS (
                SELECT
                    quantile_cont(duration_ms, 0.95) FILTER (is_current) AS p95,
                    quantile_cont(duration_ms, 0.95) FILTER (NOT is_current) AS p95_before
                FROM publishes
            )

            SELECT p95 AS "p95", 100 * (p95 / nullif(p95_before, 0) - 1) AS "vs previous" FROM quantiles
        """),
        unit="ms",
        decimals=1,
        fields=[
            field("vs previous", unit="percent", limits=thresholds("green", (-5, "text"), (10, "red")), no_value="–")
        ],
    )


def _rate_by_day() -> Panel:
    title = "Success rate by day and show"
    return rate_by_day_and_show(title, "", "gold_publish_health_daily", "total_publishes", CHOSEN)


def _publishes_over_time() -> Panel:
    return timeseries(
        "Publishes over time by outcome",
        """Publishes with status success, with status error, and all other ones (warning, info). Grain: a period that
        grows with the range, from a minute up. Source: silver_publish_usd.""",
        series(f"""
            SELECT
                {BUCKET} AS time,
                count(*) FILTER (status = 'success') AS success,
                count(*) FILTER (status = 'error') AS error,
                count(*) FILTER (status NOT IN ('success', 'error')) AS other
            FROM silver_publish_usd
            WHERE {IN_RANGE} AND {CHOSEN}
            GROUP BY 1
            ORDER BY 1
        """),
        unit="locale",
        style="bars",
        stacked=True,
        points_max=BARS_MAX,
        fields=[field("success", color="green"), field("error", color="red"), field("other", color="blue")],
    )


def _worst_places() -> Panel:
    place = link("Only this show and kind", UID, show=row_value("Show"), kind=row_value("Kind"))
    tools = link("Tools of this show", "piper-tool-reliability", show=row_value("Show"))
    return table_panel(
        "Where publishes fail most",
        """Failed publishes, all publishes, 100 × failed ÷ all, and the difference of that rate to the period before, of
        the 15 places with most failures. A click narrows the dashboard to the show and kind. Grain: show, sequence (or
        asset), kind over the range. Source: silver_publish_usd.""",
        table(f"""
            WITH publishes AS (
                SELECT
                    coalesce("show", '(none)') AS "Show",
                    coalesce(sequence, asset, '(none)') AS "Sequence or asset",
                    {KIND} AS "Kind",
                    status = 'error' AS is_error,
                    {IS_CURRENT} AS is_current
                FROM silver_publish_usd
                WHERE {IN_BOTH} AND {CHOSEN}
            ),

            places AS (
                SELECT
                    "Show",
                    "Sequence or asset",
                    "Kind",
                    count(*) FILTER (is_current AND is_error) AS failed,
                    count(*) FILTER (is_current) AS publishes,
                    100 * count(*) FILTER (NOT is_current AND is_error)
                        / nullif(count(*) FILTER (NOT is_current), 0) AS rate_before
                FROM publishes
                GROUP BY 1, 2, 3
            )

            SELECT
                "Show",
                "Sequence or asset",
                "Kind",
                failed AS "Failed",
                publishes AS "Publishes",
                100 * failed / publishes AS "Error rate",
                100 * failed / publishes - rate_before AS "vs previous"
            FROM places
            WHERE failed > 0
            ORDER BY failed DESC, "Error rate" DESC, 1, 2, 3
            LIMIT 15
        """),
        unit="locale",
        fields=[
            field("Show", links=[place, tools]),
            field("Error rate", unit="percent", decimals=1, limits=ERROR_RATE, cell="color-background"),
            field("vs previous", unit=POINTS, decimals=1, limits=MORE_IS_WORSE, cell="color-text", no_value="new"),
        ],
        no_value="No failed publish in this range",
        width=14,
    )


def _errors_by_code() -> Panel:
    people = ("count(DISTINCT username)", "People")
    return errors_by_code("publish", "the people who met it", "silver_publish_usd", CHOSEN, also=people)


def _duration_by_kind() -> Panel:
    return bar_chart(
        "Duration by kind",
        """Exact median and 0.95 quantile of the duration of the publishes that report one. Grain: kind over the range.
        Source: silver_publish_usd.""",
        table(f"""
            SELECT
                {KIND} AS kind,
                quantile_cont(CAST(duration_ms AS DOUBLE), 0.5) AS median,
                quantile_cont(CAST(duration_ms AS DOUBLE), 0.95) AS p95
            FROM silver_publish_usd
            WHERE {IN_RANGE} AND {CHOSEN} AND duration_ms IS NOT NULL
            GROUP BY 1
            ORDER BY p95 DESC, 1
        """),
        unit="ms",
        x="kind",
        width=8,
    )


def _latest_failures() -> Panel:
    return table_panel(
        "Latest failures",
        """The 50 newest publishes with status error: who to call and what to look at. Grain: event. Source:
        silver_publish_usd.""",
        table(f"""
            SELECT
                occurred_at_utc AS "Time",
                coalesce("show", '(none)') AS "Show",
                coalesce(shot, asset, sequence, '–') AS "Where",
                {KIND} AS "Kind",
                coalesce(dcc, '–') AS "DCC",
                username AS "Artist",
                {ERROR_TEXT} AS "Error"
            FROM silver_publish_usd
            WHERE {IN_RANGE} AND {CHOSEN} AND status = 'error'
            ORDER BY occurred_at_utc DESC, event_id
            LIMIT 50
        """),
        unit="string",
        fields=[
            field("Time", unit="dateTimeAsIso", width=170),
            field("Show", links=[link("Only this show", UID, keep=["kind"], show=row_value("Show"))], width=110),
            field("Where", width=110),
            field("Kind", width=120),
            field("DCC", width=90),
            field("Artist", width=100),
            field("Error", custom={"inspect": True}),
        ],
        no_value="No failed publish in this range",
    )

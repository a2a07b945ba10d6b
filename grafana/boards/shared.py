"""Variables and panels that several dashboards have in common."""

from __future__ import annotations

from boards.dashboard import options_of, variable
from boards.fields import MORE_IS_BETTER, NEUTRAL, POINTS, SUCCESS_RATE, field, thresholds
from boards.panels import Panel, stat, table_panel, timeseries
from boards.queries import DAY, IN_BOTH, IN_DAYS, IN_RANGE, IN_SHOWS, IS_CURRENT, NOW, Json, series, table

SHOW: Json = variable(
    "show",
    "Show",
    "Shows of publishes, renders and tool runs; (none) stands for events that name no show.",
    options_of(
        '"show"', "gold_publish_health_daily", "gold_render_health_daily", f"silver_tool_events WHERE {IN_DAYS}"
    ),
)
"""The same options everywhere, so that a choice can be carried from one dashboard to the next."""
CARRIED_SHOW: Json = SHOW | {"hide": 2}
"""For a dashboard that knows no shows: hidden, so that the link bar hands the choice on to the next dashboard."""


DAYTIME = thresholds("green", (12 * 3_600, "yellow"), (3 * 86_400, "red"))
"""Age in seconds of what people cause: a night is normal, a weekend just about."""


def data_as_of(model: str, *, limits: Json = DAYTIME, width: int = 4) -> Panel:
    """How far the data behind a gold model reaches: the first panel of every dashboard.

    `limits` are thresholds of the age in seconds of the newest event: when does silence mean that something is broken?
    """
    return stat(
        "Data as of",
        f"""Age of the newest event behind {model}: events reach gold within seconds while piperd runs. If it is old,
        nothing happened or piperd does not run: the piperd dashboard tells which. Grain: model, whatever the range.
        Source: gold_as_of.""",
        table(f"""
            SELECT greatest(0, epoch({NOW}) - epoch(last_event_at)) AS "ago"
            FROM gold_as_of
            WHERE model = '{model}'
        """),
        unit="s",
        decimals=1,
        limits=limits,
        show_names=True,
        no_value="Nothing yet",
        width=width,
    )


def against_previous(title: str, description: str, target: Json, limits: Json, *, decimals: int = 1) -> Panel:
    """A headline rate in percent and, beside it, its difference to the period before; `target`: `rates_of`."""
    return stat(
        title,
        description,
        target,
        unit="percent",
        decimals=decimals,
        limits=limits,
        fields=[field("vs previous", unit=POINTS, decimals=decimals, limits=MORE_IS_BETTER, no_value="–")],
    )


def rates_of(source: str, condition: str, label: str, numerator: str, denominator: str = "1") -> Json:
    """100 × Σ numerator ÷ Σ denominator over the range, and its difference to the period before.

    `source` is a domain dataset, `condition` what is chosen in the variables, the others SQL of a row.
    """
    return table(f"""
        WITH rows AS (
            SELECT {numerator} AS numerator, {denominator} AS denominator, {IS_CURRENT} AS is_current
            FROM {source}
            WHERE {IN_BOTH} AND {condition}
        ),

        rates AS (
            SELECT
                CAST(100 * sum(numerator) FILTER (is_current)
                    / nullif(sum(denominator) FILTER (is_current), 0) AS DOUBLE) AS rate,
                CAST(100 * sum(numerator) FILTER (NOT is_current)
                    / nullif(sum(denominator) FILTER (NOT is_current), 0) AS DOUBLE) AS rate_before
            FROM rows
        )

        SELECT rate AS "{label}", rate - rate_before AS "vs previous" FROM rates
    """)


def rate_by_day_and_show(title: str, description: str, model: str, total: str, condition: str = IN_SHOWS) -> Panel:
    """100 × Σ success_count ÷ Σ total of each day and show, with the limits of the headline."""
    return timeseries(
        title,
        f"""100 × Σ success_count ÷ Σ {total} of each UTC day and show{description}; today is not over. The dashed lines
        are the limits of the headline. Grain: day, show. Source: {model}.""",
        series(f"""
            SELECT
                {DAY} AS time,
                coalesce("show", '(none)') AS "show",
                CAST(100 * sum(success_count) / nullif(sum({total}), 0) AS DOUBLE) AS "Value"
            FROM {model}
            WHERE {IN_DAYS} AND {condition}
            GROUP BY 1, 2
            ORDER BY 1, 2
        """),
        unit="percent",
        decimals=1,
        limits=SUCCESS_RATE,
        by="show",
        high=100,
        fill=0,
        mark_limits=True,
    )


def errors_by_code(
    what: str, description: str, source: str, condition: str, *, also: tuple[str, str], width: int | None = None
) -> Panel:
    """The error codes of a domain dataset; `what` failed, `also` is SQL and name of one more column."""
    return table_panel(
        "Errors by code",
        f"""Failed {what}s by error code, their share of all failures, {description}, and when the code was last seen.
        Grain: error code over the range. Source: {source}.""",
        table(f"""
            SELECT
                coalesce(error_code, '(none)') AS "Code",
                count(*) AS "Failed",
                100 * count(*) / sum(count(*)) OVER () AS "Share",
                {also[0]} AS "{also[1]}",
                max(occurred_at_utc) AS "Last seen"
            FROM {source}
            WHERE {IN_RANGE} AND {condition} AND status = 'error'
            GROUP BY 1
            ORDER BY "Failed" DESC, 1
            LIMIT 15
        """),
        unit="locale",
        decimals=0,
        fields=[
            field("Share", unit="percent", limits=NEUTRAL, cell="gauge", low=0, high=100, width=150),
            field("Last seen", unit="dateTimeFromNow"),
        ],
        no_value=f"No failed {what} in this range",
        width=width,
    )

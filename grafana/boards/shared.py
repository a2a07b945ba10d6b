"""Variables and panels that several dashboards have in common."""

from __future__ import annotations

from boards.dashboard import options_of, variable
from boards.fields import thresholds
from boards.panels import Panel, stat
from boards.queries import IN_DAYS, NOW, Json, table

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

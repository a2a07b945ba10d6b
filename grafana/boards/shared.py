"""Variables and panels that several dashboards have in common."""

from __future__ import annotations

from boards.dashboard import options_of, variable
from boards.fields import field
from boards.panels import Panel, stat
from boards.queries import IN_DAYS, Json, table

SHOW: Json = variable(
    "show",
    "Show",
    "Shows of publishes, renders and tool runs; (none) stands for events that name no show.",
    options_of(
        '"show"', "gold_publish_health_daily", "gold_render_health_daily", f"silver_tool_events WHERE {IN_DAYS}"
    ),
)
"""The same options everywhere, so that a choice can be carried from one dashboard to the next."""


def data_as_of(model: str, *, day: str = "event_date", width: int = 4) -> Panel:
    """How fresh the data behind a gold model is: the first panel of every dashboard. `day` is its date column."""
    return stat(
        "Data as of",
        f"""Newest day in {model}. If it lags behind the present, no event came or piperd does not run: see piperd.
        Grain: all shows and times. Source: {model}.""",
        table(f'SELECT epoch_ms(CAST(max({day}) AS TIMESTAMP)) AS "Newest day" FROM {model}'),
        unit="dateTimeFromNow",
        fields=[field("Newest day", unit="dateTimeFromNow")],
        no_value="Nothing yet",
        width=width,
    )

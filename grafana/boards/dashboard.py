"""A whole dashboard: its frame, its variables, and the place of every panel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from boards.panels import Panel
from boards.queries import DUCKDB, NONE, Json, sql

GRID_COLUMNS = 24
SCHEMA_VERSION = 42
"""Of Grafana 12.1 and later, 13 included; an older 12 shows it too."""
TAG = "piper"


@dataclass(frozen=True, slots=True)
class Row:
    """Panels side by side; `height` is in grid units of 30 pixels."""

    height: int
    panels: tuple[Panel, ...]


def row(height: int, *panels: Panel) -> Row:
    """Panels side by side. Those without a width share what the others leave of the 24 columns."""
    return Row(height, panels)


def dashboard(
    uid: str,
    title: str,
    description: str,
    *rows: Row,
    variables: Sequence[Json] = (),
    annotations: Sequence[Json] = (),
    since: str = "now-7d",
    refresh: str = "5m",
) -> Json:
    """The dashboard as classic JSON: in UTC, not editable, shared crosshair, links to all others.

    Links keep time and variables. `rows` come from top to bottom.
    """
    return {
        "annotations": {"list": [_grafana_annotations(), *annotations]},
        "description": " ".join(description.split()),
        "editable": False,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [_link_bar()],
        "panels": list(_placed(rows)),
        "preload": False,
        "refresh": refresh,
        "schemaVersion": SCHEMA_VERSION,
        "tags": [TAG],
        "templating": {"list": list(variables)},
        "time": {"from": since, "to": "now"},
        "timepicker": {"refresh_intervals": ["30s", "1m", "5m", "15m", "1h"]},
        "timezone": "utc",
        "title": title,
        "uid": uid,
        "version": 1,
        "weekStart": "monday",
    }


def variable(name: str, label: str, description: str, query: str, datasource: Json = DUCKDB) -> Json:
    """A variable of several values, all of them at first.

    `query` gives one column, the options; begin it with `NONE`, see there.
    """
    text = sql(query)
    return {
        "current": {"text": ["All"], "value": ["$__all"]},
        "datasource": datasource,
        "definition": text,
        "description": " ".join(description.split()),
        "hide": 0,
        "includeAll": True,
        "label": label,
        "multi": True,
        "name": name,
        "options": [],
        "query": text,
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 0,
        "type": "query",
    }


def options_of(column: str, *sources: str) -> str:
    """Query of a variable: the distinct values of `column` in the relations, which may carry a WHERE."""
    parts = "".join(f"\nUNION SELECT {column} FROM {source}" for source in sources)
    values = f"SELECT '{NONE}' AS value{parts}"
    return f"SELECT value FROM (\n{values}\n) WHERE value IS NOT NULL ORDER BY value"


def _placed(rows: Sequence[Row]) -> Iterator[Json]:
    """The panels with ids and places, row below row."""
    number = y = 0
    for this in rows:
        x = 0
        for panel, width in zip(this.panels, _widths(this), strict=True):
            number += 1
            yield {"id": number, **panel.body, "gridPos": {"h": this.height, "w": width, "x": x, "y": y}}
            x += width
        y += this.height


def _widths(this: Row) -> list[int]:
    """The columns of each panel of a row, which must fill it; what does not divide goes to the first open ones."""
    left = GRID_COLUMNS - sum(panel.width or 0 for panel in this.panels)
    open_ended = sum(panel.width is None for panel in this.panels)
    if left < open_ended or (left and not open_ended):
        titles = ", ".join(panel.body["title"] for panel in this.panels)
        raise ValueError(f"the panels {titles} do not fill a row of {GRID_COLUMNS} columns")
    shares = iter((left + open_ended - 1 - index) // open_ended for index in range(open_ended))
    return [panel.width or next(shares) for panel in this.panels]


def _grafana_annotations() -> Json:
    return {
        "builtIn": 1,
        "datasource": {"type": "grafana", "uid": "-- Grafana --"},
        "enable": True,
        "hide": True,
        "iconColor": "rgba(0, 211, 255, 1)",
        "name": "Annotations & Alerts",
        "type": "dashboard",
    }


def _link_bar() -> Json:
    return {
        "asDropdown": False,
        "icon": "dashboard",
        "includeVars": True,
        "keepTime": True,
        "tags": [TAG],
        "targetBlank": False,
        "title": "piper dashboards",
        "tooltip": "",
        "type": "dashboards",
        "url": "",
    }

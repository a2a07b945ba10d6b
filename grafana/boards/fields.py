"""How values look: thresholds, mappings, links, and what differs for one column of a panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from boards.queries import Json

NEUTRAL: Json = {"mode": "absolute", "steps": [{"color": "text", "value": None}]}
"""Thresholds of a value that is neither good nor bad."""


def thresholds(lowest: str, *steps: tuple[float, str]) -> Json:
    """Colours by value: `thresholds("red", (90, "yellow"), (98, "green"))` is red below 90 and green from 98 on."""
    rest = [{"color": color, "value": value} for value, color in steps]
    return {"mode": "absolute", "steps": [{"color": lowest, "value": None}, *rest]}


SUCCESS_RATE = thresholds("red", (90, "yellow"), (98, "green"))
"""In percent."""
ERROR_RATE = thresholds("green", (2, "yellow"), (10, "red"))
"""In percent: the complement of SUCCESS_RATE."""
MORE_IS_BETTER = thresholds("red", (-1, "text"), (1, "green"))
"""A change of a rate, in percentage points; less than a point either way is noise."""
MORE_IS_WORSE = thresholds("green", (-1, "text"), (1, "red"))
POINTS = "suffix: pp"
"""Unit of a difference of two percentages."""


def mapping(texts: Mapping[str, tuple[str, str]]) -> Json:
    """Value mapping: `{"error": ("Failed", "red")}`."""
    options = {
        value: {"color": color, "index": index, "text": text}
        for index, (value, (text, color)) in enumerate(texts.items())
    }
    return {"type": "value", "options": options}


def link(title: str, uid: str, keep: Sequence[str] = (), **variables: str) -> Json:
    """Data link to a piper dashboard, with the same time range.

    `keep` names variables that go along as they are; `show="${__data.fields.show}"` sets one from the row.
    """
    parts = ["${__url_time_range}", *(f"${{{name}:queryparam}}" for name in keep)]
    parts += [f"var-{name}={value}" for name, value in variables.items()]
    return {"title": title, "url": f"/d/{uid}?{'&'.join(parts)}", "targetBlank": False}


def row_value(column: str) -> str:
    """Value of a column in the row of the link, for `link`."""
    return f'${{__data.fields["{column}"]}}'


def field(
    name: str,
    *,
    unit: str | None = None,
    decimals: int | None = None,
    limits: Json | None = None,
    mappings: Sequence[Json] = (),
    links: Sequence[Json] = (),
    color: str | None = None,
    label: str | None = None,
    no_value: str | None = None,
    width: int | None = None,
    low: float | None = None,
    high: float | None = None,
    cell: str | None = None,
    hide: bool = False,
    custom: Mapping[str, Any] | None = None,
) -> Json:
    """What differs for the column or series `name`.

    `limits` are thresholds, `low` and `high` the axis; `cell` is a table's cell type: `color-background`, `color-text`
    or `gauge`. `custom` holds further options of the panel's kind, such as `{"axisPlacement": "right"}`.
    """
    properties: Json = {"unit": unit, "decimals": decimals, "thresholds": limits, "displayName": label}
    properties |= {"noValue": no_value, "min": low, "max": high, "custom.width": width}
    properties |= {"mappings": list(mappings) or None, "links": list(links) or None}
    properties["color"] = {"mode": "fixed", "fixedColor": color} if color else None
    properties["custom.cellOptions"] = cell_options(cell) if cell else None
    properties["custom.hidden"] = True if hide else None
    properties |= {f"custom.{key}": value for key, value in (custom or {}).items()}
    chosen = [{"id": key, "value": value} for key, value in properties.items() if value is not None]
    return {"matcher": {"id": "byName", "options": name}, "properties": chosen}


def cell_options(kind: str) -> Json:
    """Options of a table cell's type."""
    return {"type": kind, "mode": "basic"} if kind in ("color-background", "gauge") else {"type": kind}


STATUS_COLORS = (
    field("success", color="green"),
    field("info", color="blue"),
    field("warning", color="yellow"),
    field("error", color="red"),
)
"""Series or columns that are named after a status."""

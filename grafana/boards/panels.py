"""The kinds of panel that our dashboards are made of, as classic Grafana JSON.

A panel states its formula, grain and source in `description`, has a unit, a text for "nothing here" and, where a number
can be good or bad, thresholds; `tests/unit/test_dashboard_lint.py` holds every dashboard to that. Ids and places are
given by `dashboard.dashboard`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase

from boards.fields import NEUTRAL, cell_options
from boards.queries import Json

NO_VALUE = "No data in this range"


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel's JSON without id and place. `width` is in columns of 24; None shares what its row has left."""

    body: Json
    width: int | None = None


def stat(
    title: str,
    description: str,
    *targets: Json,
    unit: str,
    limits: Json = NEUTRAL,
    decimals: int | None = None,
    fields: Sequence[Json] = (),
    mappings: Sequence[Json] = (),
    links: Sequence[Json] = (),
    no_value: str = NO_VALUE,
    sparkline: bool = False,
    show_names: bool | None = None,
    width: int | None = None,
) -> Panel:
    """One number, or one a column, of a query's only row (of a series: its last value)."""
    names = {None: "auto", True: "value_and_name", False: "value"}[show_names]
    options = {
        "colorMode": "value",
        "graphMode": "area" if sparkline else "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "percentChangeColorMode": "standard",
        "reduceOptions": _reduce(),
        "showPercentChange": False,
        "textMode": names,
        "wideLayout": True,
    }
    defaults = _defaults(unit, limits, decimals, no_value, "thresholds", mappings, links)
    return _panel("stat", title, description, targets, defaults, fields, options, width)


def timeseries(
    title: str,
    description: str,
    *targets: Json,
    unit: str,
    limits: Json = NEUTRAL,
    decimals: int | None = None,
    fields: Sequence[Json] = (),
    links: Sequence[Json] = (),
    no_value: str = NO_VALUE,
    style: str = "line",
    stacked: bool = False,
    fill: int = 10,
    by: str | None = None,
    name: str | None = None,
    low: float | None = None,
    high: float | None = None,
    mark_limits: bool = False,
    legend_calcs: Sequence[str] = (),
    points_max: int | None = None,
    last: str | None = None,
    width: int | None = None,
) -> Panel:
    """Values over time. `style`: line, bars or points.

    `by` is the text column whose values name the series; `name` names the only one. `mark_limits` draws the thresholds.
    `$__interval_ms` gives at most `points_max` points (else one a pixel). `last` (`48h`) is a range of the panel's own,
    up to the end of the dashboard's.
    """
    custom = {
        "axisBorderShow": False,
        "axisPlacement": "auto",
        "barAlignment": 0,
        "drawStyle": style,
        "fillOpacity": 70 if style == "bars" else fill,
        "gradientMode": "none",
        "lineInterpolation": "linear",
        "lineWidth": 1 if style == "bars" else 2,
        "pointSize": 5,
        "scaleDistribution": {"type": "linear"},
        "showPoints": "auto",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        "thresholdsStyle": {"mode": "dashed" if mark_limits else "off"},
    }
    options = {
        "legend": {"calcs": list(legend_calcs), "displayMode": "table" if legend_calcs else "list"}
        | {"placement": "bottom", "showLegend": True},
        "tooltip": {"hideZeros": False, "mode": "multi", "sort": "desc"},
    }
    defaults = _defaults(unit, limits, decimals, no_value, "palette-classic-by-name", (), links, low, high)
    defaults["custom"] = custom
    if by or name:
        defaults["displayName"] = f"${{__field.labels.{by}}}" if by else name
    panel = _panel("timeseries", title, description, targets, defaults, fields, options, width)
    own = {"maxDataPoints": points_max, "timeFrom": last}
    return replace(panel, body=panel.body | {key: value for key, value in own.items() if value is not None})


def bar_gauge(
    title: str,
    description: str,
    *targets: Json,
    unit: str,
    limits: Json = NEUTRAL,
    decimals: int | None = None,
    fields: Sequence[Json] = (),
    links: Sequence[Json] = (),
    no_value: str = NO_VALUE,
    low: float | None = None,
    high: float | None = None,
    rows_max: int = 20,
    width: int | None = None,
) -> Panel:
    """A ranking: a horizontal bar a row (one text and one numeric column, in order), or a series of Prometheus."""
    options = {
        "displayMode": "basic",
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
        "maxVizHeight": 32,
        "minVizHeight": 16,
        "minVizWidth": 8,
        "namePlacement": "left",
        "orientation": "horizontal",
        "reduceOptions": _reduce(rows_max if "rawSql" in targets[0] else None),
        "showUnfilled": True,
        "sizing": "auto",
        "valueMode": "color",
    }
    defaults = _defaults(unit, limits, decimals, no_value, "thresholds", (), links, low, high)
    return _panel("bargauge", title, description, targets, defaults, fields, options, width)


def bar_chart(
    title: str,
    description: str,
    *targets: Json,
    unit: str,
    x: str,
    limits: Json = NEUTRAL,
    decimals: int | None = None,
    fields: Sequence[Json] = (),
    links: Sequence[Json] = (),
    no_value: str = NO_VALUE,
    stacked: bool = False,
    horizontal: bool = False,
    show_legend: bool = True,
    width: int | None = None,
) -> Panel:
    """Bars over the categories of the text column `x`; every numeric column is a series: a distribution."""
    options = {
        "barRadius": 0,
        "barWidth": 0.9,
        "fullHighlight": False,
        "groupWidth": 0.8,
        "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": show_legend},
        "orientation": "horizontal" if horizontal else "vertical",
        "showValue": "auto",
        "stacking": "normal" if stacked else "none",
        "tooltip": {"hideZeros": False, "mode": "multi", "sort": "desc"},
        "xField": x,
        "xTickLabelRotation": 0,
        "xTickLabelSpacing": 0,
    }
    defaults = _defaults(unit, limits, decimals, no_value, "palette-classic-by-name", (), links)
    defaults["custom"] = {"axisPlacement": "auto", "fillOpacity": 80, "gradientMode": "none", "lineWidth": 1}
    return _panel("barchart", title, description, targets, defaults, fields, options, width)


def table_panel(
    title: str,
    description: str,
    *targets: Json,
    unit: str = "none",
    limits: Json = NEUTRAL,
    decimals: int | None = None,
    fields: Sequence[Json] = (),
    no_value: str = NO_VALUE,
    sort_by: str | None = None,
    width: int | None = None,
) -> Panel:
    """Rows as they come. `sort_by` marks the column, largest first, that the query already sorts by."""
    sorting = [{"desc": True, "displayName": sort_by}] if sort_by else []
    options = {"cellHeight": "sm", "showHeader": True, "sortBy": sorting}
    defaults = _defaults(unit, limits, decimals, no_value, "thresholds")
    defaults["custom"] = {"align": "auto", "cellOptions": cell_options("auto"), "filterable": False, "inspect": False}
    return _panel("table", title, description, targets, defaults, fields, options, width)


def heatmap(
    title: str,
    description: str,
    *targets: Json,
    unit: str,
    scheme: str = "Oranges",
    decimals: int | None = None,
    fields: Sequence[Json] = (),
    no_value: str = NO_VALUE,
    by: str | None = None,
    limits: Json = NEUTRAL,
    low: float | None = None,
    high: float | None = None,
    show_zero: bool = False,
    width: int | None = None,
) -> Panel:
    """Time across, a row a series (`by` is the text column that names them), the value as colour from `low` to `high`.

    Without `show_zero` a zero looks like no value.
    """
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"exponent": 0.5, "fill": "dark-orange", "mode": "scheme", "reverse": False}
        | {"scale": "exponential", "scheme": scheme, "steps": 64}
        | {key: value for key, value in (("max", high), ("min", low)) if value is not None},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "filterValues": {"le": -1 if show_zero else 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "short"},
        "cellValues": {"unit": unit} | ({"decimals": decimals} if decimals is not None else {}),
    }
    defaults = _defaults(unit, limits, decimals, no_value, "thresholds")
    defaults["custom"] = {"scaleDistribution": {"type": "linear"}}
    if by:
        defaults["displayName"] = f"${{__field.labels.{by}}}"
    return _panel("heatmap", title, description, targets, defaults, fields, options, width)


def _reduce(rows_max: int | None = None) -> Json:
    """The last value of every numeric column; with `rows_max`, the values of so many rows."""
    if rows_max is None:
        return {"calcs": ["lastNotNull"], "fields": "", "values": False}
    return {"calcs": [], "fields": "", "limit": rows_max, "values": True}


def _defaults(
    unit: str,
    limits: Json,
    decimals: int | None,
    no_value: str,
    color: str,
    mappings: Sequence[Json] = (),
    links: Sequence[Json] = (),
    low: float | None = None,
    high: float | None = None,
) -> Json:
    given: Json = {"color": {"mode": color}, "mappings": list(mappings), "noValue": no_value}
    given |= {"thresholds": limits, "unit": unit}
    optional = {"decimals": decimals, "links": list(links) or None, "max": high, "min": low}
    return given | {key: value for key, value in optional.items() if value is not None}


def _panel(
    kind: str,
    title: str,
    description: str,
    targets: Sequence[Json],
    defaults: Json,
    overrides: Sequence[Json],
    options: Json,
    width: int | None,
) -> Panel:
    if not 0 < len(targets) <= len(ascii_uppercase):
        raise ValueError(f"{title!r} has {len(targets)} targets")
    lettered = [{"refId": letter, **target} for letter, target in zip(ascii_uppercase, targets, strict=False)]
    body = {
        "datasource": targets[0]["datasource"],
        "description": " ".join(description.split()),
        "fieldConfig": {"defaults": defaults, "overrides": list(overrides)},
        "options": options,
        "targets": lettered,
        "title": title,
        "type": kind,
    }
    return Panel(body, width)

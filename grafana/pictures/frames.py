"""What a panel's queries return, in the shape that Grafana gives its panels: frames of fields.

A DuckDB target of format 0 (time series) that has a text column is turned from long to wide, as the plugin does: one
field for each value of the text column, which becomes its label.
"""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from typing import Any, Protocol

import duckdb

from boards.macros import TimeRange, expand

Json = dict[str, Any]
ALL = "$__all"


@dataclass(slots=True)
class Field:
    """A column. `kind`: time, number or string; times are naive UTC."""

    name: str
    kind: str
    values: list[Any]
    labels: dict[str, str] = field(default_factory=dict)
    legend: str = ""
    """Name that the query itself gives the series (Prometheus)."""


Frame = list[Field]


class Source(Protocol):
    """Answers targets and variables of one datasource type."""

    def frame(self, target: Json, time_range: TimeRange, points_max: int) -> Frame:
        """The target's answer for a panel of this range, in at most so many points."""


class DuckDB:
    """The plugin's side: a connection to the catalog, and the values of the dashboard's variables."""

    def __init__(self, con: duckdb.DuckDBPyConnection, variables: Sequence[Json], time_range: TimeRange) -> None:
        self._con = con
        self._values: dict[str, str | Sequence[str]] = {}
        for variable in variables:
            self._values[variable["name"]] = self._value_of(variable, time_range)

    def _value_of(self, variable: Json, time_range: TimeRange) -> str | list[str]:
        chosen = variable.get("current", {}).get("value", [])
        if variable["type"] == "query" and ALL in (chosen if isinstance(chosen, list) else [chosen]):
            query = expand(variable["query"], time_range, self._values)
            return [str(row[0]) for row in self._con.execute(query).fetchall()]
        return chosen if isinstance(chosen, (str, list)) else str(chosen)

    def frame(self, target: Json, time_range: TimeRange, points_max: int) -> Frame:
        """Run the query and turn its rows into fields."""
        interval = time_range.interval_ms(points_max)
        result = self._con.execute(expand(target["rawSql"], time_range, self._values, interval))
        names = [column[0] for column in result.description or ()]
        rows = result.fetchall()
        fields = [_field(name, [row[index] for row in rows]) for index, name in enumerate(names)]
        return _wide(fields) if target["format"] == 0 else fields


def _field(name: str, values: list[Any]) -> Field:
    seen = next((value for value in values if value is not None), None)
    if isinstance(seen, (bool, str)) or seen is None:
        return Field(name, "string", values)
    if isinstance(seen, date):
        return Field(name, "time", [_moment(value) for value in values])
    return Field(name, "number", [None if value is None else float(value) for value in values])


def _moment(value: date | None) -> datetime | None:
    """A day is its midnight."""
    return value if value is None or isinstance(value, datetime) else datetime.combine(value, time.min)


def _wide(fields: Frame) -> Frame:
    """From one row a time and label to one row a time."""
    times = next((each for each in fields if each.kind == "time"), None)
    texts = [each for each in fields if each.kind == "string" and any(value is not None for value in each.values)]
    if times is None or not texts:
        return [each for each in fields if each.kind != "string" or each in texts]
    distinct = sorted(set(times.values))
    place = {moment: index for index, moment in enumerate(distinct)}
    wide: dict[tuple[str, ...], Field] = {}
    for number in (each for each in fields if each.kind == "number"):
        for row, value in enumerate(number.values):
            labels = {text.name: str(text.values[row]) for text in texts}
            key = (number.name, *labels.values())
            if key not in wide:
                wide[key] = Field(number.name, "number", [None] * len(distinct), labels)
            wide[key].values[place[times.values[row]]] = value
    return [Field(times.name, "time", distinct), *(wide[key] for key in sorted(wide))]


class Prometheus:
    """A running Prometheus, asked over its HTTP interface at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def frame(self, target: Json, time_range: TimeRange, points_max: int) -> Frame:
        """Ask for the range, or for its end where the target is instant."""
        span = (time_range.end - time_range.start).total_seconds()
        step = max(1.0, span / min(300, points_max))
        interval = f"{max(15, int(4 * step))}s"
        replaced = {"$__rate_interval": interval, "$__interval": f"{int(step)}s", "$__range": f"{int(span)}s"}
        expr = target["expr"]
        for name, value in replaced.items():
            expr = expr.replace(name, value)
        end = time_range.end.timestamp()
        if target.get("instant"):
            return self._instant(target, self._ask("query", {"query": expr, "time": end}))
        start = time_range.start.timestamp()
        asked = {"query": expr, "start": start, "end": end, "step": step}
        return self._range(target, self._ask("query_range", asked))

    def _ask(self, what: str, parameters: Mapping[str, object]) -> list[Json]:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - the caller's own Prometheus
            data = json.load(answer)["data"]
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        return list(data["result"])

    def _range(self, target: Json, series: list[Json]) -> Frame:
        stamps = sorted({float(stamp) for each in series for stamp, _ in each["values"]})
        frame = [Field("Time", "time", [datetime.fromtimestamp(stamp, UTC).replace(tzinfo=None) for stamp in stamps])]
        for each in series:
            known = {float(stamp): float(value) for stamp, value in each["values"]}
            frame.append(_prometheus_field(target, each["metric"], [known.get(stamp) for stamp in stamps]))
        return frame

    def _instant(self, target: Json, series: list[Json]) -> Frame:
        if target.get("format") == "table":
            labels = sorted({name for each in series for name in each["metric"] if name != "__name__"})
            texts = [Field(name, "string", [each["metric"].get(name) for each in series]) for name in labels]
            return [*texts, Field("Value", "number", [float(each["value"][1]) for each in series])]
        return [_prometheus_field(target, each["metric"], [float(each["value"][1])]) for each in series]


def _prometheus_field(target: Json, metric: dict[str, str], values: list[float | None]) -> Field:
    legend = target.get("legendFormat", "")
    if legend in ("", "__auto"):
        legend = ", ".join(value for name, value in metric.items() if name not in ("__name__", "instance", "job"))
    else:
        for name, value in metric.items():
            legend = legend.replace("{{" + name + "}}", value).replace("{{ " + name + " }}", value)
    finite = [None if value is None or value != value else value for value in values]
    return Field(legend or target["expr"], "number", finite, metric, legend)

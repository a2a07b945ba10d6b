"""What Grafana and the DuckDB plugin make of a query before DuckDB sees it, for tests, pictures and benchmarks.

Grafana's front end puts in the variables: a list as quoted values with commas, and `$__interval` and `$__interval_ms`
as plain text. The plugin then expands `$__timeFilter(column)`, `$__timeFrom()` and `$__timeTo()` to RFC 3339 literals
of whole seconds in UTC. `$__timeGroup` is broken on DuckDB and refused here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from boards.queries import Json

_VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)(?::(\w+))?\}")
_ROUND_MS = (1_000, 2_000, 5_000, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000, 600_000, 900_000, 1_800_000)
_ROUND_HOURS = (1, 2, 3, 6, 12, 24, 7 * 24, 30 * 24)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class MacroError(ValueError):
    """A query that Grafana would not expand, or would expand to something that is no SQL."""


@dataclass(frozen=True, slots=True)
class TimeRange:
    """The dashboard's range, both ends aware and in UTC."""

    start: datetime
    end: datetime

    @classmethod
    def of(cls, board: Json, now: datetime) -> TimeRange:
        """The range that a dashboard opens with."""
        return cls(moment(board["time"]["from"], now), moment(board["time"]["to"], now, is_end=True))

    @classmethod
    def of_panel(cls, board: Json, panel: Json, now: datetime) -> TimeRange:
        """The range of one panel: the dashboard's, or the last so many hours of it that the panel names itself."""
        whole = cls.of(board, now)
        own = panel.get("timeFrom")
        return cls(moment(f"now-{own}", whole.end), whole.end) if own else whole

    def interval_ms(self, points_max: int = 1_000) -> int:
        """A round interval that gives at most so many points, as Grafana chooses one for a panel's width in pixels."""
        exact = (self.end - self.start) / timedelta(milliseconds=1) / points_max
        steps = (*_ROUND_MS, *(hours * 3_600_000 for hours in _ROUND_HOURS))
        return next((step for step in steps if step >= exact), steps[-1])


def moment(text: str, now: datetime, *, is_end: bool = False) -> datetime:
    """The time of `now`, `now-7d` or `now-6d/d` (rounded to the day: down, or to its last second for an end)."""
    found = re.fullmatch(r"now(?:-(\d+)([smhdw]))?(/d)?", text)
    if not found:
        raise MacroError(f"not a relative time that is understood here: {text}")
    count, unit, rounded = found.groups()
    then = now - timedelta(**{_UNITS[unit]: int(count)}) if count else now
    if rounded:
        then = then.replace(hour=0, minute=0, second=0, microsecond=0)
        then += timedelta(days=1, seconds=-1) if is_end else timedelta()
    return then


def expand(
    query: str, time_range: TimeRange, variables: Mapping[str, str | Sequence[str]], interval_ms: int | None = None
) -> str:
    """The SQL that DuckDB gets. A variable with a list is one of several values, or with "All"."""
    milliseconds = interval_ms or time_range.interval_ms()
    builtin = {"__interval_ms": str(milliseconds), "__interval": _duration(milliseconds)}

    def value(found: re.Match[str]) -> str:
        name, form = found[1] or found[2], found[3]
        if name in builtin:
            return builtin[name]
        if name.startswith("__time"):
            return found[0]
        if name not in variables:
            raise MacroError(f"nothing gives ${name} a value")
        return _interpolated(name, variables[name], form)

    return _time_macros(_VARIABLE.sub(value, query), time_range)


def _interpolated(name: str, value: str | Sequence[str], form: str | None) -> str:
    if form not in (None, "raw", "sqlstring"):
        raise MacroError(f"${{{name}:{form}}} is a format that is not understood here")
    values = [value] if isinstance(value, str) else list(value)
    if not values:
        raise MacroError(f"${name} is an empty list, IN () is no SQL")
    if form == "raw":
        return ",".join(values)
    escaped = [each.replace("'", "''") for each in values]
    if isinstance(value, str) and form is None:
        return escaped[0]
    return ",".join(f"'{each}'" for each in escaped)


def _time_macros(query: str, time_range: TimeRange) -> str:
    start, end = (f"'{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}'" for at in (time_range.start, time_range.end))
    # The column may itself be a call: one level of brackets is enough for ours.
    filtered = re.sub(
        r"\$__timeFilter\(((?:[^()]|\([^()]*\))*)\)",
        lambda found: f"{found[1].strip()} >= {start} AND {found[1].strip()} <= {end}",
        query,
    )
    done = filtered.replace("$__timeFrom()", start).replace("$__timeTo()", end)
    if left := re.search(r"\$\w+", done):
        raise MacroError(f"the plugin does not expand {left[0]}")
    return done


def _duration(milliseconds: int) -> str:
    """As Grafana writes `$__interval`: 500ms, 30s, 5m, 2h, 1d."""
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"

"""Which rows of a model's table a change of silver touches, and which dates of silver decide them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

from piper.gold.models import GoldModel

_WEEK = timedelta(weeks=1)


class Scope(NamedTuple):
    """The part of a table that a refresh computes anew; `stale` and `fresh` are conditions in SQL."""

    dates: list[date] | None
    """Event dates of silver to read, None: all."""
    stale: str
    """Which rows of the table go."""
    fresh: str
    """Which rows of the query over `dates` come in their place."""
    is_whole: bool = True
    """Whether those are all of them: the window of a live model begins within a date."""


EVERYTHING = Scope(None, "TRUE", "TRUE")


def scope_of(model: GoldModel, dates: Sequence[date], now: datetime, first: date | None = None) -> Scope:
    """What news about `dates` makes stale. `now`: naive UTC, decides where the window of a live model begins.

    `first`: the first day or week that is computed; earlier rows stay as they are.
    """
    if model.period == "now":
        return EVERYTHING
    if model.period == "live":
        return _live_scope(model, dates, now)
    periods = [period for period in changed_periods(model, dates) if first is None or period >= first]
    stale = f"{model.period_column} IN ({_literals(periods)})"
    return Scope(input_dates(model, periods), stale, stale)


def full_scope(model: GoldModel, dates: Sequence[date], now: datetime, first: date | None = None) -> Scope:
    """All that the model holds at `now`. `dates`: every date that silver has; for days and weeks it is not needed.

    `first`: as for `scope_of`.
    """
    if model.period == "live":
        return _live_scope(model, dates, now)
    if first is None:
        return EVERYTHING
    computed = f"{model.period_column} >= DATE '{first.isoformat()}'"
    return Scope(None, computed, computed)


def first_period(model: GoldModel, kept_before: date) -> date | None:
    """Give the first day or week whose input dates all are at or after `kept_before`; None: none are kept."""
    if model.period not in ("day", "week"):
        return None
    if model.period == "day":
        return kept_before
    monday = kept_before + timedelta(days=-kept_before.weekday() % 7)
    return monday + _WEEK


def window_start(model: GoldModel, now: datetime) -> datetime:
    """Give the first bucket that a live model holds at `now` (naive UTC)."""
    start = now - model.window
    return start - (start - datetime.combine(start.date(), datetime.min.time())) % model.bucket


def changed_periods(model: GoldModel, dates: Iterable[date]) -> list[date]:
    """Give the days or weeks to recompute: the dates themselves, or their weeks' Mondays and the Mondays after.

    A week's growth is measured against the week before it, so that a changed week changes the next one too.
    """
    if model.period == "day":
        return sorted(set(dates))
    mondays = {day - timedelta(days=day.weekday()) for day in dates}
    return sorted(mondays | {monday + _WEEK for monday in mondays if monday <= date.max - _WEEK})


def input_dates(model: GoldModel, periods: Sequence[date]) -> list[date]:
    """Give the event dates whose silver rows decide these periods; for weeks, the week before included."""
    if model.period == "day":
        return sorted(periods)
    # Clipped to the calendar that Python has: an artist's clock can say year 1.
    first, last = date.min.toordinal(), date.max.toordinal()
    days = {monday.toordinal() + offset for monday in periods for offset in range(-7, 7)}
    return [date.fromordinal(day) for day in sorted(days) if first <= day <= last]


def naive_utc(moment: datetime) -> datetime:
    """Give an aware time as DuckDB columns hold it."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def _live_scope(model: GoldModel, dates: Sequence[date], now: datetime) -> Scope:
    start = window_start(model, now)
    inside = sorted(day for day in dates if day >= start.date())
    of_dates = f"CAST({model.period_column} AS DATE) IN ({_literals(inside)})"
    begin = f"TIMESTAMP '{start.isoformat(sep=' ')}'"
    column = model.period_column
    is_whole = start.date() not in inside or start.time() == time.min
    return Scope(inside, f"{of_dates} OR {column} < {begin}", f"{of_dates} AND {column} >= {begin}", is_whole)


def _literals(dates: Iterable[date]) -> str:
    return ", ".join(f"DATE '{day.isoformat()}'" for day in dates) or "NULL"

"""Macros become what Grafana and the DuckDB plugin make of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from boards.macros import MacroError, TimeRange, expand, moment

NOW = datetime(2026, 3, 4, 10, 30, 15, 999_999, tzinfo=UTC)
RANGE = TimeRange(NOW - timedelta(hours=6), NOW)


def test_time_macros_are_literals_of_whole_seconds_in_utc() -> None:
    assert expand("$__timeFilter(ts)", RANGE, {}) == "ts >= '2026-03-04T04:30:15Z' AND ts <= '2026-03-04T10:30:15Z'"
    assert expand("$__timeFrom() $__timeTo()", RANGE, {}) == "'2026-03-04T04:30:15Z' '2026-03-04T10:30:15Z'"
    column = "CAST(day AS TIMESTAMP)"
    assert expand(f"($__timeFilter({column}))", RANGE, {}).startswith(f"({column} >= '2026")


def test_variables_are_quoted_when_they_are_lists() -> None:
    chosen = {"show": ["a", "O'Brien"], "one": "it's", "showcase": ["x"]}
    assert expand("IN ($show)", RANGE, chosen) == "IN ('a','O''Brien')"
    assert expand("${show:raw} '$one' ${one:sqlstring}", RANGE, chosen) == "a,O'Brien 'it''s' 'it''s'"
    assert expand("$showcase", RANGE, chosen) == "'x'"


def test_the_interval_follows_the_range() -> None:
    assert expand("$__interval_ms $__interval", RANGE, {}) == "30000 30s"
    assert expand("${__interval_ms}", RANGE, {}, interval_ms=7_200_000) == "7200000"
    assert TimeRange(NOW - timedelta(days=90), NOW).interval_ms() == 3 * 3_600_000


@pytest.mark.parametrize(
    "query", ["$show", "IN ($empty)", "$__timeGroup(ts, day)", "$__unixEpochFilter(ts)", "${list:pipe}"]
)
def test_what_grafana_would_not_expand_is_an_error(query: str) -> None:
    with pytest.raises(MacroError):
        expand(query, RANGE, {"empty": [], "list": ["a"]})


@pytest.mark.parametrize(
    ("text", "is_end", "expected"),
    [
        ("now", True, NOW),
        ("now-90m", False, NOW - timedelta(minutes=90)),
        ("now-6d/d", False, datetime(2026, 2, 26, tzinfo=UTC)),
        ("now/d", True, datetime(2026, 3, 4, 23, 59, 59, tzinfo=UTC)),
    ],
)
def test_relative_times(text: str, is_end: bool, expected: datetime) -> None:
    assert moment(text, NOW, is_end=is_end) == expected


def test_a_panel_can_have_a_range_of_its_own() -> None:
    board = {"time": {"from": "now-7d", "to": "now"}}
    assert TimeRange.of_panel(board, {}, NOW) == TimeRange(NOW - timedelta(days=7), NOW)
    assert TimeRange.of_panel(board, {"timeFrom": "48h"}, NOW) == TimeRange(NOW - timedelta(hours=48), NOW)


def test_an_absolute_time_is_refused() -> None:
    with pytest.raises(MacroError):
        moment("2026-01-01", NOW)

"""The pictures say what Grafana would say: units, thresholds, mappings, long to wide."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from tests.support import dashboards

from pictures.draw import KINDS
from pictures.frames import Field, _wide
from pictures.options import COLORS, look_of
from pictures.units import text_of


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (12.345, "percent", 1, "12.3%"),
        (0.5, "percentunit", None, "50%"),
        (1234567.0, "locale", None, "1,234,567"),
        (90_000.0, "ms", 1, "1.5 mins"),
        (0.25, "s", None, "250 ms"),
        (3 * 2**30, "bytes", None, "3 GiB"),
        (1_500.0, "short", None, "1.5 K"),
        (-2.0, "suffix: pp", None, "-2.0 pp"),
        (None, "percent", 1, ""),
        ("maya", "string", None, "maya"),
        (datetime(2026, 3, 1, 4, 5, 6), "dateTimeAsIso", None, "2026-03-01 04:05:06"),  # noqa: DTZ001
    ],
)
def test_values_are_written_with_their_unit(value: Any, unit: str, decimals: int | None, text: str) -> None:
    assert text_of(value, unit, decimals) == text


def panel(**defaults: Any) -> dict[str, Any]:
    steps = [{"color": "red", "value": None}, {"color": "yellow", "value": 90}, {"color": "green", "value": 98}]
    given = {"color": {"mode": "thresholds"}, "thresholds": {"mode": "absolute", "steps": steps}, "unit": "percent"}
    override = {
        "matcher": {"id": "byName", "options": "Other"},
        "properties": [{"id": "unit", "value": "ms"}, {"id": "custom.width", "value": 90}],
    }
    return {"fieldConfig": {"defaults": given | defaults, "overrides": [override]}}


@pytest.mark.parametrize(("value", "color"), [(89.9, "red"), (90, "yellow"), (98, "green"), (None, "red")])
def test_a_threshold_holds_from_its_value_on(value: float | None, color: str) -> None:
    assert look_of(panel(), Field("Rate", "number", [])).color(value) == COLORS[color]


def test_an_override_holds_for_its_field_only_and_nothing_shows_as_no_value() -> None:
    rate, other = (look_of(panel(noValue="none yet"), Field(name, "number", [])) for name in ("Rate", "Other"))
    assert (rate.text(50.0), other.text(50.0)) == ("50%", "50 ms")
    assert (rate.custom, other.custom) == ({}, {"width": 90})
    assert rate.text(None) == "none yet"


def test_long_rows_become_a_series_for_each_text() -> None:
    early, late = datetime(2026, 1, 1), datetime(2026, 1, 2)  # noqa: DTZ001
    long = [
        Field("time", "time", [early, early, late]),
        Field("show", "string", ["a", "b", "a"]),
        Field("value", "number", [1.0, 2.0, 3.0]),
    ]
    time, first, second = _wide(long)
    assert time.values == [early, late]
    assert (first.labels, first.values) == ({"show": "a"}, [1.0, 3.0])
    assert (second.labels, second.values) == ({"show": "b"}, [2.0, None])


def test_every_kind_of_panel_that_a_dashboard_has_can_be_drawn() -> None:
    kinds = {each["type"] for board in dashboards.committed().values() for each in board["panels"]}
    assert kinds <= KINDS
    assert kinds


def test_every_dashboard_has_its_picture_and_no_picture_is_left_over() -> None:
    pictures = dashboards.DIRECTORY.parents[1] / "docs" / "dashboards"
    assert {path.stem for path in pictures.glob("*.png")} == set(dashboards.committed())

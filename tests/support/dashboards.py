"""The dashboards that are committed, and their queries with the macros expanded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from boards import macros

DIRECTORY = Path(__file__).resolve().parents[2] / "grafana" / "dashboards"
DEFAULT_POINTS = 1_000
"""Of a panel that does not say how many: about its width in pixels."""
UIDS = (
    "piper-publish-health",
    "piper-render-health",
    "piper-farm-pressure",
    "piper-tool-reliability",
    "piper-storage-growth",
    "piper-data-quality",
    "piper-daemon",
)


def committed() -> dict[str, dict[str, Any]]:
    """The dashboards by uid, as they are in the files."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(DIRECTORY.glob("*.json"))}


def sql_targets(board: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The DuckDB targets of a dashboard, each with its panel, by panel title and letter."""
    return {
        f"{panel['title']} {target['refId']}": (panel, target)
        for panel in board["panels"]
        for target in panel["targets"]
        if "rawSql" in target
    }


def promql_targets() -> list[tuple[str, str]]:
    """Every PromQL expression of a committed dashboard, with the uid of its dashboard."""
    return [
        (uid, target["expr"])
        for uid, board in committed().items()
        for panel in board["panels"]
        for target in panel["targets"]
        if "expr" in target
    ]


def expanded(board: Mapping[str, Any], now: datetime, values: Mapping[str, str | Sequence[str]]) -> dict[str, str]:
    """The SQL of those targets as DuckDB gets it, for the range that the dashboard opens with."""
    done = {}
    for name, (panel, target) in sql_targets(board).items():
        time_range = macros.TimeRange.of_panel(board, panel, now)
        points_max = panel.get("maxDataPoints", DEFAULT_POINTS)
        done[name] = macros.expand(target["rawSql"], time_range, values, time_range.interval_ms(points_max))
    return done


def variable_queries(board: Mapping[str, Any], now: datetime) -> dict[str, str]:
    """The SQL of the dashboard's variables, by name."""
    time_range = macros.TimeRange.of(board, now)
    return {
        variable["name"]: macros.expand(variable["query"], time_range, {})
        for variable in board["templating"]["list"]
        if variable["datasource"]["type"] == "motherduck-duckdb-datasource"
    }

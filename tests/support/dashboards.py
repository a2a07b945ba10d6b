"""The dashboards that are committed, and their queries with the macros expanded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boards import macros

DIRECTORY = Path(__file__).resolve().parents[2] / "grafana" / "dashboards"
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


def sql_targets(board: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The DuckDB targets of a dashboard, by panel title and letter."""
    return {
        f"{panel['title']} {target['refId']}": target
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


def variable_queries(board: Mapping[str, Any], time_range: macros.TimeRange) -> dict[str, str]:
    """The SQL of the dashboard's variables, by name."""
    return {
        variable["name"]: macros.expand(variable["query"], time_range, {})
        for variable in board["templating"]["list"]
        if variable["datasource"]["type"] == "motherduck-duckdb-datasource"
    }

"""Every dashboard keeps to the rules, and every rule can be broken."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from tests.support import dashboard_rules as rules
from tests.support import dashboards

from boards import BOARDS, fields, panels, queries
from boards.dashboard import dashboard, row, variable
from boards.shared import data_as_of

BUILD = Path(__file__).resolve().parents[2] / "grafana" / "build.py"
COMMITTED = dashboards.committed()
SETS = r"\bvar-(\w+)=|\$\{(\w+):queryparam\}"
"""Where the URL of a link gives a variable a value."""
Board = dict[str, Any]


@pytest.mark.parametrize("check", rules.RULES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("uid", COMMITTED)
def test_dashboard(uid: str, check: rules.Rule) -> None:
    assert list(check(COMMITTED[uid])) == []


def test_files_are_named_after_the_uid_and_each_is_what_its_board_gives() -> None:
    assert {uid: board["uid"] for uid, board in COMMITTED.items()} == {uid: uid for uid in COMMITTED}
    assert sorted(make()["uid"] for make in BOARDS) == sorted(COMMITTED)
    done = subprocess.run([sys.executable, str(BUILD), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("uid", COMMITTED)
def test_links_set_variables_that_the_other_dashboard_has(uid: str) -> None:
    for link in (link for panel in COMMITTED[uid]["panels"] for link in rules.links_of(panel)):
        found = re.match(r"/d/([\w-]+)", link["url"])
        assert found, link
        if there := COMMITTED.get(found[1]):
            names = {each["name"] for each in there["templating"]["list"]}
            assert {name or kept for name, kept in re.findall(SETS, link["url"])} <= names, link


def example() -> Board:
    """A dashboard that keeps every rule."""
    sql = f'SELECT count(*) AS "All" FROM silver_tool_events WHERE {queries.IN_RANGE} AND {queries.IN_SHOWS}'
    here = fields.link("Here", "piper-daemon", keep=["show"], show=fields.row_value("All"))
    return dashboard(
        "piper-daemon",
        "Example",
        "An example.",
        row(
            4,
            data_as_of("gold_tool_reliability_daily"),
            panels.stat(
                "Rate",
                "Grain: all. Source: silver_tool_events.",
                queries.table(sql),
                unit="percent",
                limits=fields.SUCCESS_RATE,
                fields=[fields.field("All", unit="s", links=[here])],
            ),
            panels.timeseries(
                "Lines", "Rate of piper_x_total.", queries.prom("rate(piper_x_total[$__rate_interval])"), unit="cps"
            ),
        ),
        variables=[variable("show", "Show", "A show.", "SELECT '(none)'")],
    )


def put(path: str, value: object) -> Callable[[Board], None]:
    """A change of the example: `panels.1.title` is one place in it."""

    def change(board: Board) -> None:
        *way, last = path.split(".")
        place: Any = board
        for name in way:
            place = place[int(name) if isinstance(place, list) else name]
        place[int(last) if isinstance(place, list) else last] = value

    return change


BREAKS: dict[str, list[Callable[[Board], None]]] = {
    "has_a_stable_identity": [put("uid", "other"), put("id", 3), put("schemaVersion", 30), put("title", "")],
    "is_not_editable": [put("editable", True)],
    "opens_on_a_relative_range_and_refreshes": [
        put("time.from", "2026-01-01"),
        put("time.to", "now-1h"),
        put("refresh", ""),
        put("timezone", "browser"),
        put("graphTooltip", 0),
    ],
    "is_linked_to_the_others": [put("tags", []), put("links", []), put("links.0.keepTime", False)],
    "has_few_panels_with_ids_of_their_own": [put("panels", []), put("panels.0.id", 2)],
    "panels_do_not_overlap": [put("panels.1.gridPos.x", 1), put("panels.2.gridPos.w", 24)],
    "says_first_how_fresh_the_data_is": [put("panels.0.gridPos.y", 9), put("panels.0.targets.0.rawSql", "SELECT 1")],
    "variables_are_complete": [
        put("templating.list.0.label", ""),
        put("templating.list.0.refresh", 1),
        put("templating.list.0.datasource", {"uid": "x"}),
        put("templating.list.0.multi", False),
        put("templating.list.0.query", "SELECT 1 WHERE false"),
    ],
    "variables_and_queries_agree": [put("templating.list", []), put("templating.list.0.name", "shows")],
    "panels_say_what_they_show": [
        put("panels.0.title", "Rate"),
        put("panels.0.description", "Grain: all."),
        put("panels.0.description", "Source: silver_tool_events."),
        put("panels.2.description", "A rate."),
        put("panels.2.description", "Rate of piper_x_total"),
    ],
    "panels_ask_a_fixed_datasource": [
        put("panels.0.targets", []),
        put("panels.0.datasource", {"type": "prometheus", "uid": "${ds}"}),
        put("panels.0.targets.0.datasource.type", "prometheus"),
        put("panels.0.targets.0.rawSql", " "),
    ],
    "numbers_have_units": [
        put("panels.0.fieldConfig.defaults.unit", ""),
        put("panels.1.fieldConfig.overrides.0.properties.0.value", "furlong"),
    ],
    "emptiness_is_explained": [put("panels.0.fieldConfig.defaults.noValue", "")],
    "thresholds_are_in_order_and_rates_have_some": [
        put("panels.1.fieldConfig.defaults.thresholds", fields.NEUTRAL),
        put("panels.0.fieldConfig.defaults.thresholds", fields.thresholds("red", (9, "green"), (3, "blue"))),
    ],
    "overrides_name_columns_that_exist": [
        put("panels.1.fieldConfig.overrides.0.matcher.options", "Al"),
        put("panels.0.fieldConfig.defaults.displayName", "${__field.labels.show}"),
    ],
    "links_lead_somewhere": [
        put("panels.1.fieldConfig.overrides.0.properties.1.value.0.url", "/d/nowhere?${__url_time_range}"),
        put("panels.1.fieldConfig.overrides.0.properties.1.value.0.url", "/d/piper-daemon?var-show=x"),
        put("panels.1.targets.0.rawSql", "SELECT 1"),
        put("templating.list", []),
    ],
    "queries_have_no_dates_of_their_own": [
        put("panels.0.targets.0.rawSql", "SELECT DATE '2026-01-31'"),
        put("templating.list.0.query", "SELECT 1767225600"),
    ],
    "sql_reads_little_and_means_utc": [
        put("panels.0.targets.0.rawSql", "SELECT 1 FROM silver_events WHERE event_date >= '$x'"),
        put("panels.0.targets.0.rawSql", "SELECT 1 FROM silver_tool_events"),
        put("panels.0.targets.0.rawSql", "SELECT current_date"),
        put("panels.0.targets.0.rawSql", "SELECT now()"),
        put("panels.0.targets.0.rawSql", "SELECT $__timeGroup(a, day)"),
    ],
    "promql_rates_are_rates": [
        put("panels.2.targets.0.expr", "rate(piper_x_total[5m])"),
        put("panels.2.targets.0.expr", "sum(piper_x_total)"),
        put("panels.2.targets.0.expr", "histogram_quantile(0.9, sum(rate(x_bucket[$__rate_interval])))"),
        put("panels.2.targets.0.expr", "rate(piper_x_total[$__rate_interval]"),
    ],
}


def test_an_example_keeps_every_rule() -> None:
    board = example()
    assert [found for check in rules.RULES for found in check(board)] == []


@pytest.mark.parametrize("check", rules.RULES, ids=lambda check: check.__name__)
def test_breaking_a_rule_is_noticed(check: rules.Rule) -> None:
    for change in BREAKS[check.__name__]:
        board = deepcopy(example())
        change(board)
        assert list(check(board)), json.dumps(board)


def test_a_row_is_filled_and_what_does_not_fit_is_refused() -> None:
    def placed(*widths: int | None) -> list[tuple[int, int]]:
        stats = [
            panels.stat(f"Panel {index}", "A number.", queries.table("SELECT 1"), unit="short", width=width)
            for index, width in enumerate(widths)
        ]
        board = dashboard("piper-daemon", "Example", "An example.", row(4, *stats))
        return [(panel["gridPos"]["x"], panel["gridPos"]["w"]) for panel in board["panels"]]

    assert placed(None, 5, None, None) == [(0, 7), (7, 5), (12, 6), (18, 6)]
    for widths in [(20,), (20, 5), (12, 12, None), (12, 13, None)]:
        with pytest.raises(ValueError, match="do not fill a row"):
            placed(*widths)


def test_an_outdated_file_is_named(tmp_path: Path) -> None:
    copy = tmp_path / "grafana"
    (copy / "dashboards").mkdir(parents=True)
    (copy / "build.py").write_text(BUILD.read_text("utf-8"), "utf-8")
    (copy / "boards").symlink_to(BUILD.parent / "boards")
    (copy / "dashboards" / "stray.json").write_text("{}", "utf-8")
    command = [sys.executable, str(copy / "build.py")]
    done = subprocess.run([*command, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "piper-publish-health.json" in done.stderr
    assert "stray.json" in done.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    assert subprocess.run([*command, "--check"], capture_output=True, check=False).returncode == 0
    assert not (copy / "dashboards" / "stray.json").exists()

"""Every query of every dashboard does in the plugin's DuckDB what its panel needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.support import dashboards, panel_queries
from tests.support.commands import Place
from tests.support.reader_engine import require_reader_site

from boards.queries import NONE, TIME_SERIES

BOARDS = {uid: board for uid, board in dashboards.committed().items() if dashboards.sql_targets(board)}
TARGETS = {
    f"{uid}: {name}": target
    for uid, board in BOARDS.items()
    for name, (_, target) in dashboards.sql_targets(board).items()
}
NUMBERS = {"BIGINT", "INTEGER", "DOUBLE"}
SAFE_TYPES = NUMBERS | {"VARCHAR", "BOOLEAN", "DATE", "TIMESTAMP"}
"""What the plugin passes on as what it is. It sends HUGEINT as text, and knows no unsigned or nested types."""
ROWS_MAX = 5_000
SECONDS_MAX = 1.0
DEMO_DAYS, DEMO_EVENTS = 42, 25_000

Answers = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Warehouse:
    """A warehouse and what DuckDB of the readers' version answers there, with "All" in every variable."""

    site: Path
    catalog: Path
    now: datetime
    variables: Answers
    panels: Answers

    @classmethod
    def asked(cls, place: Place) -> Warehouse:
        asked = cls(require_reader_site(), place.layout.catalog, datetime.now(UTC), {}, {})
        queries = {
            f"{uid}: {name}": sql
            for uid, board in BOARDS.items()
            for name, sql in dashboards.variable_queries(board, asked.now).items()
        }
        asked.variables.update(panel_queries.run(asked.site, asked.catalog, queries))
        chosen = {name: [row[0] for row in answer.get("rows", [])] for name, answer in asked.variables.items()}
        asked.panels.update(asked.ask(lambda name: chosen[name] or [NONE]))
        return asked

    def ask(self, choose: Callable[[str], list[str]]) -> Answers:
        """The answers of all panels with these values of the variables, named `<uid>: <variable>`."""
        queries = {}
        for uid, board in BOARDS.items():
            values = {each["name"]: choose(f"{uid}: {each['name']}") for each in board["templating"]["list"]}
            for name, sql in dashboards.expanded(board, self.now, values).items():
                queries[f"{uid}: {name}"] = sql
        return panel_queries.run(self.site, self.catalog, queries)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    place = Place(tmp_path_factory.mktemp("demo"))
    place.simulate(DEMO_EVENTS, days=DEMO_DAYS, hosts=6)
    done = place.piper("ingest")
    assert done.returncode == 0, done.stderr
    return Warehouse.asked(place)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Warehouse:
    place = Place(tmp_path_factory.mktemp("empty"))
    place.raw.mkdir()
    done = place.piper("init")
    assert done.returncode == 0, done.stderr
    return Warehouse.asked(place)


@pytest.mark.parametrize("name", TARGETS)
def test_a_query_gives_its_panel_what_it_needs(demo: Warehouse, name: str) -> None:
    answer = demo.panels[name]
    assert "error" not in answer, answer["error"]
    unsafe = [column for column in answer["columns"] if column[1] not in SAFE_TYPES]
    assert not unsafe
    assert 1 <= len(answer["rows"]) <= ROWS_MAX
    assert answer["seconds"] < SECONDS_MAX
    if TARGETS[name]["format"] == TIME_SERIES:
        check_series(answer)
    else:
        assert any(value is not None for row in answer["rows"] for value in row)


@pytest.mark.parametrize("name", TARGETS)
def test_no_answer_depends_on_the_time_zone_of_the_session(demo: Warehouse, name: str) -> None:
    assert demo.panels[name]["zones_differ"] is False


@pytest.mark.parametrize("name", TARGETS)
def test_a_query_works_on_an_empty_warehouse(empty: Warehouse, name: str) -> None:
    answer = empty.panels[name]
    assert "error" not in answer, answer["error"]
    assert not [column for column in answer["columns"] if column[1] not in SAFE_TYPES]


@pytest.mark.parametrize("uid", BOARDS)
def test_variables_always_have_an_option_and_a_warehouse_adds_its_own(
    demo: Warehouse, empty: Warehouse, uid: str
) -> None:
    for variable in BOARDS[uid]["templating"]["list"]:
        name = f"{uid}: {variable['name']}"
        assert empty.variables[name].get("rows") == [[NONE]], empty.variables[name]
        options = [row[0] for row in demo.variables[name]["rows"]]
        assert len(options) > 1
        assert len(set(options)) == len(options)


def test_no_choice_of_a_variable_breaks_a_query(demo: Warehouse) -> None:
    answers = demo.ask(lambda _name: ["O'Brien's \"show\"; --"])
    assert {name: answer["error"] for name, answer in answers.items() if "error" in answer} == {}


def check_series(answer: dict[str, Any]) -> None:
    """What the plugin needs to make series of the rows."""
    names, types = zip(*answer["columns"], strict=True)
    assert (names[0], types[0]) == ("time", "TIMESTAMP")
    times = [row[0] for row in answer["rows"]]
    assert None not in times
    assert all(before <= after for before, after in pairwise(times))
    assert types.count("VARCHAR") <= 1
    assert NUMBERS & set(types)
    text = types.index("VARCHAR") if "VARCHAR" in types else 0
    keys = [(row[0], row[text]) for row in answer["rows"]]
    assert len(set(keys)) == len(keys), "two values of one series at one time"

"""Each folder `<model>/<case>` holds inputs and the rows that the model must give, and is one test.

`input.ndjson` holds raw events, which must give the same rows in the plain-Python recomputation; a case about
columns that raw events lack has `<relation>.ndjson` files of rows of its inputs instead. `ingest_counts.ndjson` may
stand beside either. Raw events were ingested 2 s after they occurred; the refresh is at NOW.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
from tests.support import gold_live_reference, gold_reference
from tests.support.gold_source import TableSource, arrival_of

from piper.gold.inputs import INPUT_COLUMNS, OWN_COLUMNS
from piper.gold.models import GoldModel, load_models
from piper.gold.own import own_relation_sql

NOW = datetime(2026, 3, 3, 0, 0, 30)  # noqa: DTZ001 - naive UTC, as DuckDB's columns are
FOLDER = Path(__file__).parent
MODELS = {model.name: model for model in load_models()}
CASES = sorted(path.parent for path in FOLDER.glob("*/*/expect.ndjson"))
RAW_CASES = [case for case in CASES if (case / "input.ndjson").exists()]


def _id(case: Path) -> str:
    return f"{case.parent.name}/{case.name}"


def _read(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def _typed(value: Any, sql_type: str) -> Any:
    parse = {"DATE": date.fromisoformat, "TIMESTAMP": datetime.fromisoformat}.get(sql_type)
    return value if parse is None or value is None else parse(value)


def _expected(case: Path, model: GoldModel) -> list[dict[str, Any]]:
    types = {column.name: column.type for column in model.columns}
    rows = [{name: _typed(value, types[name]) for name, value in row.items()} for row in _read(case / "expect.ndjson")]
    return gold_reference.sort_rows(rows)


def _rows_sql(name: str, rows: list[dict[str, Any]]) -> str:
    """A SELECT of the rows of one of gold's own tables."""
    columns = OWN_COLUMNS[name]
    text = [[f"CAST('{row[c]}' AS {kind})" for c, kind in columns.items()] for row in rows]
    return " UNION ALL ".join("SELECT " + ", ".join(map(" AS ".join, zip(row, columns, strict=True))) for row in text)


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as opened:
        yield opened


def test_every_model_has_cases() -> None:
    assert {case.parent.name for case in CASES} == MODELS.keys()


@pytest.mark.parametrize("case", CASES, ids=_id)
def test_the_model_gives_the_expected_rows(case: Path, con: duckdb.DuckDBPyConnection) -> None:
    model = MODELS[case.parent.name]
    source = TableSource(con)
    source.commit(_read(case / "input.ndjson"))
    for relation in INPUT_COLUMNS:
        source.insert(relation, _read(case / f"{relation}.ndjson"))

    own = {name: _read(case / f"{name}.ndjson") for name in OWN_COLUMNS}
    query = model.with_inputs(
        {
            name: source.relation_sql(con, name, None)
            if name in INPUT_COLUMNS
            else _rows_sql(name, own[name])
            if own[name]
            else own_relation_sql(name, NOW)
            for name in model.inputs
        }
    )
    names = [column.name for column in model.columns]
    given = [dict(zip(names, row, strict=True)) for row in con.execute(query).fetchall()]

    given = gold_reference.sort_rows(given)
    expected = _expected(case, model)
    assert gold_reference.rows_agree(given, expected), f"{given}\n!=\n{expected}"


@pytest.mark.parametrize("case", RAW_CASES, ids=_id)
def test_the_recomputation_in_python_gives_the_expected_rows(case: Path) -> None:
    model = MODELS[case.parent.name]
    counts = {date.fromisoformat(row["event_date"]): row for row in _read(case / "ingest_counts.ndjson")}

    events = _read(case / "input.ndjson")
    tables = gold_reference.recompute(
        events,
        quarantined={day: row["quarantined_lines"] for day, row in counts.items()},
        duplicates={day: row["duplicate_events"] for day, row in counts.items()},
    )

    tables = gold_live_reference.recompute(map(arrival_of, events), NOW, {}) | tables

    expected = _expected(case, model)
    for row in expected:
        for name in gold_reference.UNCHECKED.get(model.name, ()):
            del row[name]
    given = tables[model.name]
    assert gold_reference.rows_agree(given, expected), f"{given}\n!=\n{expected}"

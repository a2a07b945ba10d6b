"""Each folder `<model>/<case>` holds inputs and the rows that the model must give, and is one test.

`input.ndjson` holds raw events, which must give the same rows in the plain-Python recomputation; a case about
columns that raw events lack has `<relation>.ndjson` files of silver rows instead. `ingest_counts.ndjson` may
stand beside either.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
from tests.support import gold_reference
from tests.support.gold_source import TableSource

from piper.gold.inputs import INPUT_COLUMNS
from piper.gold.models import GoldModel, load_models

FOLDER = Path(__file__).parent
MODELS = {model.name: model for model in load_models()}
CASES = sorted(path.parent for path in FOLDER.glob("*/*/expect.ndjson"))
RAW_CASES = [case for case in CASES if (case / "input.ndjson").exists()]


def _id(case: Path) -> str:
    return f"{case.parent.name}/{case.name}"


def _read(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def _expected(case: Path, model: GoldModel) -> list[dict[str, Any]]:
    rows = _read(case / "expect.ndjson")
    for row in rows:
        row[model.period_column] = date.fromisoformat(row[model.period_column])
    return gold_reference.sort_rows(rows)


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

    query = model.with_inputs({name: source.relation_sql(con, name, None) for name in model.inputs})
    names = [column.name for column in model.columns]
    given = [dict(zip(names, row, strict=True)) for row in con.execute(query).fetchall()]

    given = gold_reference.sort_rows(given)
    expected = _expected(case, model)
    assert gold_reference.rows_agree(given, expected), f"{given}\n!=\n{expected}"


@pytest.mark.parametrize("case", RAW_CASES, ids=_id)
def test_the_recomputation_in_python_gives_the_expected_rows(case: Path) -> None:
    model = MODELS[case.parent.name]
    counts = {date.fromisoformat(row["event_date"]): row for row in _read(case / "ingest_counts.ndjson")}

    tables = gold_reference.recompute(
        _read(case / "input.ndjson"),
        quarantined={day: row["quarantined_lines"] for day, row in counts.items()},
        duplicates={day: row["duplicate_events"] for day, row in counts.items()},
    )

    expected = _expected(case, model)
    for row in expected:
        for name in gold_reference.UNCHECKED.get(model.name, ()):
            del row[name]
    given = tables[model.name]
    assert gold_reference.rows_agree(given, expected), f"{given}\n!=\n{expected}"

"""The gold store on real DuckDB files: what a refresh recomputes, what survives, what is set aside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests.support.gold_source import TableSource

from piper.errors import DataRootError
from piper.gold.inputs import INPUT_COLUMNS
from piper.gold.models import GoldModel, load_models
from piper.gold.own import in_turn
from piper.gold.periods import changed_periods, input_dates
from piper.gold.refresh import GoldStore, ModelOutcome

NOW = datetime(2026, 3, 20, 12, tzinfo=UTC)
TOOLS = "gold_tool_reliability_daily"
STORAGE = "gold_storage_growth_weekly"
QUALITY = "gold_data_quality_daily"


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "it's state" / "gold.duckdb"


HOLD = "import duckdb, sys; con = duckdb.connect(sys.argv[1]); print('held', flush=True); input()"


@contextmanager
def holding(path: Path) -> Iterator[None]:
    """Hold the database open in another process until the block ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield
        finally:
            process.communicate("\n")


def open_store(con: duckdb.DuckDBPyConnection, path: Path, models: Sequence[GoldModel] | None = None) -> GoldStore:
    return GoldStore.open(con, path, models=models, clock=lambda: NOW)


def event(event_id: str, day: str, event_type: str = "file.open", **more: Any) -> dict[str, Any]:
    return {
        "schema_version": "1.0",
        "event_id": event_id,
        "event_type": event_type,
        "occurred_at_utc": f"{day}T10:00:00Z",
        "status": "success",
        "pipeline": {"name": "p"},
        "host": {"hostname": "ws1", "user": "ana"},
        "session": {"session_id": "s"},
        **more,
    }


def scan(event_id: str, day: str, size: int) -> dict[str, Any]:
    payload = {"category": "cache", "path": "/r"}
    return event(event_id, day, "storage.scan.bucket", status="info", payload=payload, metrics={"size_bytes": size})


def rows(con: duckdb.DuckDBPyConnection, query: str) -> list[tuple[Any, ...]]:
    return con.execute(query).fetchall()


def changed(name: str, sql: str) -> list[GoldModel]:
    return [replace(model, sql=sql) if model.name == name else model for model in load_models()]


def test_tables_can_be_read_before_the_first_refresh(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    for model in open_store(con, path).models:
        described = rows(con, f"DESCRIBE gold.main.{model.name}")
        assert [(row[0], row[1]) for row in described] == [(c.name, c.type) for c in model.columns]


def test_a_refresh_recomputes_only_the_dates_that_changed(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    store, source = open_store(con, path), TableSource(con)
    source.commit([event("a", "2026-03-02"), event("b", "2026-03-03")])
    store.refresh(con, source)
    con.execute(f"UPDATE gold.main.{TOOLS} SET active_users = -1")

    source.commit([event("c", "2026-03-03"), event("d", "2026-03-04")])
    report = store.refresh(con, source)

    assert report.dates == [date(2026, 3, 3), date(2026, 3, 4)]
    assert report.through_seq == source.seq
    assert report.models[TOOLS].rows == 2
    assert rows(con, f"SELECT event_date, total_invocations, active_users FROM gold.main.{TOOLS} ORDER BY ALL") == [
        (date(2026, 3, 2), 1, -1),
        (date(2026, 3, 3), 2, 1),
        (date(2026, 3, 4), 1, 1),
    ]


def test_a_date_that_lost_its_last_event_loses_its_row(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    store, source = open_store(con, path), TableSource(con)
    source.commit([event("a", "2026-03-02")])
    store.refresh(con, source)
    source.remove("a")
    assert store.refresh(con, source).models[TOOLS].rows == 0
    assert rows(con, f"SELECT * FROM gold.main.{TOOLS}") == []


def test_nothing_changed_writes_nothing(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    store, source = open_store(con, path), TableSource(con)
    source.commit([event("a", "2026-03-02")])
    store.refresh(con, source)
    files = [file for file in path.parent.iterdir() if file.is_file()]
    before = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    source.seq += 1  # a commit that changed no date
    report = store.refresh(con, source)

    assert (report.models, report.failed, report.dates, report.through_seq) == ({}, {}, [], source.seq)
    assert [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files] == before


def test_a_changed_week_changes_the_growth_of_the_next(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    store, source = open_store(con, path), TableSource(con)
    source.commit([scan("b", "2026-03-11", 300), scan("c", "2026-03-18", 350)])
    store.refresh(con, source)
    source.commit([scan("a", "2026-03-08", 100)])
    report = store.refresh(con, source)
    assert report.models[STORAGE].rows == 2
    assert rows(con, f"SELECT week_start, growth_bytes FROM gold.main.{STORAGE} ORDER BY ALL") == [
        (date(2026, 3, 2), None),
        (date(2026, 3, 9), 200),
        (date(2026, 3, 16), 50),
    ]


def test_weeks_at_the_ends_of_the_calendar_do_not_overflow() -> None:
    weekly = next(model for model in load_models() if model.period == "week")
    for day in (date.min, date.max):
        periods = changed_periods(weekly, [day])
        assert day in input_dates(weekly, periods)


def test_a_nonsense_clock_does_not_stop_a_model(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    store, source = open_store(con, path), TableSource(con)
    source.commit([event("a", "2026-03-02")])
    store.refresh(con, source)
    source.commit([scan("b", "0001-01-01", 1), scan("c", "9999-12-31", 2**63 - 1), event("d", "0001-01-01")])
    assert store.refresh(con, source).failed == {}
    assert len(rows(con, f"SELECT * FROM gold.main.{STORAGE}")) == 2


def test_quarantined_lines_alone_make_a_row(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    store, source = open_store(con, path), TableSource(con)
    store.refresh(con, source)
    source.commit([], quarantined=[date(2026, 3, 2)])
    store.refresh(con, source)
    found = rows(con, f"SELECT event_date, total_events, quarantined_lines FROM gold.main.{QUALITY}")
    assert found == [(date(2026, 3, 2), 0, 1)]


def test_result_and_watermark_survive_a_reopen_together(path: Path) -> None:
    with duckdb.connect() as con:
        source = TableSource(con)
        source.commit([event("a", "2026-03-02")])
        open_store(con, path).refresh(con, source)
    with duckdb.connect() as con:
        source = TableSource(con)
        source.seq = 1
        assert open_store(con, path).refresh(con, source).models == {}
        assert rows(con, f"SELECT count(*) FROM gold.main.{TOOLS}") == [(1,)]
        marks = rows(con, "SELECT DISTINCT through_seq, refreshed_at_utc FROM gold.main.gold_watermark")
        assert marks == [(1, NOW.replace(tzinfo=None))]


def test_a_failing_model_keeps_its_rows_and_does_not_stop_the_others(
    con: duckdb.DuckDBPyConnection, path: Path
) -> None:
    source = TableSource(con)
    source.commit([event("a", "2026-03-02")])
    open_store(con, path).refresh(con, source)
    tools = next(model for model in load_models() if model.name == TOOLS)
    failing = open_store(con, path, changed(TOOLS, f"SELECT * FROM ({tools.sql}) WHERE error('no luck') IS NULL"))
    source.commit([event("b", "2026-03-03")])
    outcomes: list[ModelOutcome] = []

    report = failing.refresh(con, source, on_model=outcomes.append)

    assert set(report.failed) == {TOOLS}
    assert "no luck" in str(report.failed[TOOLS])
    assert len(report.models) == len(load_models()) - 1
    assert report.through_seq == 1
    assert [(o.name, o.error is None) for o in outcomes] == [(m.name, m.name != TOOLS) for m in in_turn(load_models())]
    assert rows(con, f"SELECT event_date FROM gold.main.{TOOLS}") == [(date(2026, 3, 2),)]

    mended = open_store(con, path).refresh(con, source)
    assert set(mended.models) == {TOOLS}
    assert mended.through_seq == source.seq
    assert len(rows(con, f"SELECT * FROM gold.main.{TOOLS}")) == 2


def test_a_changed_definition_rebuilds_that_model_alone(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    source = TableSource(con)
    source.commit([event("a", "2026-03-02"), event("b", "2026-03-03")])
    open_store(con, path).refresh(con, source)
    new = """SELECT event_date, COUNT(*) AS invocations FROM silver_tool_events GROUP BY event_date"""
    models = [
        replace(model, sql=new, columns=(model.columns[0], replace(model.columns[2], name="invocations")))
        if model.name == TOOLS
        else model
        for model in load_models()
    ]

    report = open_store(con, path, models).refresh(con, source)

    assert {name: run.rows for name, run in report.models.items()} == {TOOLS: 2}
    assert rows(con, f"FROM gold.main.{TOOLS} ORDER BY ALL") == [(date(2026, 3, 2), 1), (date(2026, 3, 3), 1)]


def test_a_silver_that_started_over_rebuilds_gold(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    store, source = open_store(con, path), TableSource(con)
    for number in range(3):
        source.commit([event(str(number), "2026-03-02")])
    store.refresh(con, source)
    for name in [*INPUT_COLUMNS, "changes"]:
        con.execute(f"DELETE FROM memory.main.{name}")
    source.seq = 0
    source.commit([event("x", "2026-03-09")])

    assert store.refresh(con, source).through_seq == 1

    assert rows(con, f"SELECT event_date FROM gold.main.{TOOLS}") == [(date(2026, 3, 9),)]
    assert store.refresh(con, source).models == {}


def test_rebuild_repairs_whatever_the_tables_hold(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    store, source = open_store(con, path), TableSource(con)
    source.commit([event("a", "2026-03-02")])
    store.refresh(con, source)
    con.execute(f"INSERT INTO gold.main.{TOOLS} BY NAME SELECT DATE '2020-01-01' AS event_date")

    report = store.rebuild(con, source, [TOOLS])

    assert set(report.models) == {TOOLS}
    assert rows(con, f"SELECT event_date FROM gold.main.{TOOLS}") == [(date(2026, 3, 2),)]
    with pytest.raises(KeyError, match="gold_nothing"):
        store.rebuild(con, source, ["gold_nothing"])


def test_readers_on_other_cursors_see_a_refresh_whole(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    store, source, reader = open_store(con, path), TableSource(con), con.cursor()
    source.commit([event("a", "2026-03-02")])
    store.refresh(con.cursor(), source)
    reader.execute("BEGIN")
    before = rows(reader, f"FROM gold.main.{TOOLS}")
    source.commit([event("b", "2026-03-02")])
    store.refresh(con.cursor(), source)
    store.rebuild(con.cursor(), source)
    assert rows(reader, f"FROM gold.main.{TOOLS}") == before
    reader.execute("COMMIT")
    assert rows(reader, f"SELECT total_invocations FROM gold.main.{TOOLS}") == [(2,)]


def test_a_death_before_commit_leaves_the_last_refresh(path: Path, tmp_path: Path) -> None:
    with duckdb.connect() as con:
        store, source = open_store(con, path), TableSource(con)
        source.commit([event("a", "2026-03-02")])
        store.refresh(con, source)
        source.commit([event("b", "2026-03-02")])
        con.execute("BEGIN")
        con.execute(f"DELETE FROM gold.main.{TOOLS}")
        # What a kill leaves on disk: the files as they are, with the transaction open.
        survived = tmp_path / "survived" / path.name
        survived.parent.mkdir()
        for file in (path, path.with_name(f"{path.name}.wal")):
            if file.exists():
                survived.with_name(file.name).write_bytes(file.read_bytes())
        con.execute("ROLLBACK")
        con.execute("DETACH gold")

        store = open_store(con, survived)
        assert rows(con, f"SELECT total_invocations FROM gold.main.{TOOLS}") == [(1,)]
        store.refresh(con, source)
        assert rows(con, f"SELECT total_invocations FROM gold.main.{TOOLS}") == [(2,)]


def _overwrite_a_block(path: Path) -> None:
    content = path.read_bytes()
    middle = content.index(b"gold_tool_reliability_daily")
    path.write_bytes(content[:middle] + b"\xff" * 64 + content[middle + 64 :])


def _cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _delete_but_keep_a_log(path: Path) -> None:
    path.unlink()
    path.with_name(f"{path.name}.wal").write_bytes(b"a log of nothing")


@pytest.mark.parametrize("damage", [_overwrite_a_block, _cut_in_half, _empty, _delete_but_keep_a_log])
def test_a_damaged_file_is_set_aside_and_gold_rebuilt(
    damage: Any, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with duckdb.connect() as con:
        source = TableSource(con)
        source.commit([event("a", "2026-03-02")])
        open_store(con, path).refresh(con, source)
        con.execute("DETACH gold")
        damage(path)

        store = open_store(con, path)
        report = store.refresh(con, source)

        assert len(report.models) == len(load_models())
        assert rows(con, f"SELECT total_invocations FROM gold.main.{TOOLS}") == [(1,)]
    written = capsys.readouterr()  # to one or the other, as the tests before this one have left the logging
    assert "gold_set_aside" in written.out + written.err
    assert [file.name for file in path.parent.glob("*.damaged-1*")]


def test_a_path_that_cannot_be_a_database_is_an_error_with_a_hint(con: duckdb.DuckDBPyConnection, path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(DataRootError, match=r"gold\.duckdb cannot be opened") as refusal:
        open_store(con, path)
    assert refusal.value.hint
    assert path.is_dir()


def test_a_file_held_by_another_program_is_not_set_aside(
    con: duckdb.DuckDBPyConnection, path: Path, tmp_path: Path
) -> None:
    open_store(con, path)
    con.execute("DETACH gold")
    with holding(path), pytest.raises(DataRootError, match="lock"):
        open_store(con, path)
    with duckdb.connect(path), pytest.raises(DataRootError, match="already attached"):
        open_store(con, path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]

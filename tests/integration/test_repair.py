"""Broken chunks: doctor names them, repair makes their rows again from what is left, and says exactly what is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests.support.ground import ALL_STEPS, KILLED, Ground, check_all, check_datasets, check_gold

from piper.errors import EX_FAILURE, DataRootError, PiperError
from piper.oneshot import repair
from piper.ops.doctor import Check, examine
from piper.silver.datasets import EMPTY_CHUNK
from piper.silver.rebuild import rebuild

EVENTS = 150
FAILPOINTS = ("repair.set_aside", "repair.dropped", "backfill.read", "backfill.applied", "repair.completed")


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    made = Ground(tmp_path)
    made.simulate(EVENTS)
    made.run(*ALL_STEPS)
    return made


def chunks_of(ground: Ground, dataset: str) -> list[Path]:
    """The chunks of a dataset, the largest first."""
    found = sorted((ground.layout.silver / dataset).rglob("*.parquet"), key=lambda path: (-path.stat().st_size, path))
    return [path for path in found if path.name != EMPTY_CHUNK and not path.is_symlink()]


def overwrite(chunk: Path) -> None:
    """Damage the rows and keep the size."""
    data = bytearray(chunk.read_bytes())
    data[8 : len(data) // 2] = b"\xa5" * (len(data) // 2 - 8)
    chunk.write_bytes(data)


def no_progress(_done: int, _total: int) -> None:
    pass


def mend(ground: Ground, **options: bool) -> dict[str, Any]:
    return repair(ground.settings, no_progress, **options)


def chunk_files(ground: Ground, *, deep: bool = False) -> Check:
    return next(check for check in examine(ground.settings, deep=deep) if check.name == "chunk_files")


def rows(ground: Ground, view: str) -> list[tuple[Any, ...]]:
    """A view's rows without what says when they came, and from which of the places where the event was written."""
    without = " EXCLUDE (ingested_at_utc, source_file, source_offset, source_line)" if view == "silver_events" else ""
    return ground.query(f"SELECT *{without} FROM {view} ORDER BY event_id")


def assert_places_are_true(ground: Ground) -> None:
    """Each event's line is where silver says that it came from."""
    places = ground.query("SELECT event_id, source_file, source_offset, source_line FROM silver_events")
    assert places
    for event_id, file, offset, number in places:
        data = (ground.raw / file).read_bytes()
        assert json.loads(data[offset : data.index(b"\n", offset)])["event_id"] == event_id
        assert data.count(b"\n", 0, offset) + 1 == number


def test_every_fault_is_named_and_the_rows_come_back_from_raw(ground: Ground) -> None:
    before = {view: rows(ground, view) for view in ("silver_events", "silver_tool_events", "silver_publish_usd")}
    assert chunk_files(ground, deep=True).level == "PASS"
    missing, empty, inside, *_ = chunks_of(ground, "events")
    domain = chunks_of(ground, "tool_events")[0]
    missing.unlink()
    empty.write_bytes(b"")
    domain.write_bytes(b"no parquet")
    overwrite(inside)
    foreign = chunks_of(ground, "publish_usd")[0].with_name("000000000001-7.parquet")
    shutil.copy(chunks_of(ground, "publish_usd")[0], foreign)

    assert chunk_files(ground).value.startswith("4 of ")
    assert chunk_files(ground, deep=True).value.startswith("5 of ")
    with pytest.raises(duckdb.Error):
        rows(ground, "silver_events")

    planned = mend(ground, deep=True, dry_run=True)
    assert empty.stat().st_size == 0
    done = mend(ground, deep=True)
    assert planned["chunks"] == done["chunks"]
    assert {chunk["path"]: chunk["fault"] for chunk in done["chunks"]} == {
        str(path.relative_to(ground.layout.silver)): fault
        for path, fault in (
            (missing, "missing"),
            (empty, "size"),
            (domain, "size"),
            (inside, "content"),
            (foreign, "foreign"),
        )
    }
    assert (done["restored"], done["lost"], done["lost_by_day"]) == (done["rows"], 0, {})
    assert {view: rows(ground, view) for view in before} == before
    assert_places_are_true(ground)
    assert chunk_files(ground, deep=True).level == "PASS"
    assert inside.with_name(f"{inside.name}.damaged").exists()
    check_all(ground)
    check_gold(ground)
    assert mend(ground)["chunks"] == []


def test_what_nothing_can_make_again_is_told_by_day_dataset_and_file(ground: Ground) -> None:
    files = sorted(str(path.relative_to(ground.raw)) for path in ground.raw.rglob("*.jsonl"))
    tools = rows(ground, "silver_tool_events")
    lost = next(chunk for chunk in chunks_of(ground, "events") if "event_type=render.stats.summary" in str(chunk))
    day = lost.parts[-3].removeprefix("event_date=")
    [(number,)] = ground.query(
        f"SELECT count(*) FROM silver_events WHERE event_type = 'render.stats.summary' AND event_date = '{day}'"
    )
    ground.remove_raw()
    (ground.raw / "ws01" / "amara").mkdir(parents=True)
    (ground.raw / "ws01" / "amara" / "empty.jsonl").touch()  # the spool is there, its files are not
    lost.unlink()
    chunks_of(ground, "tool_events")[0].unlink()

    process = ground.piper_process("repair", "--json")
    out, err = process.communicate()
    assert process.returncode == EX_FAILURE, err
    done = json.loads(out)
    assert done["lost_by_day"] == {day: {"events": number}}
    assert (done["lost"], done["restored"]) == (number, done["rows"] - number)
    assert set(done["files_gone"]) <= set(files)
    assert done["files_gone"]
    kept = [column for column in range(len(tools[0])) if column != 13]  # duration_ms of flat events is in raw only
    assert [[row[i] for i in kept] for row in rows(ground, "silver_tool_events")] == [
        [row[i] for i in kept] for row in tools
    ]
    assert ground.seen() == (EVENTS - number, EVENTS - number)


def test_a_repair_that_dies_again_and_again_is_finished_by_the_last_one(ground: Ground) -> None:
    for chunk in chunks_of(ground, "events")[:2]:
        chunk.write_bytes(b"")
    for failpoint in FAILPOINTS:
        process = ground.piper_process("repair", PIPER_FAILPOINT=failpoint)
        process.communicate()
        assert process.returncode == KILLED, failpoint
    assert chunk_files(ground).value == "a repair was not finished"

    done = mend(ground)
    assert (done["restored"], done["lost"]) == (done["rows"], 0)
    assert chunk_files(ground).level == "PASS"
    check_all(ground)
    check_gold(ground)


def test_when_every_chunk_or_the_spool_is_missing_nothing_is_touched(ground: Ground) -> None:
    chunk = chunks_of(ground, "events")[0]
    chunk.write_bytes(b"")
    ground.set_raw_aside()
    with pytest.raises(PiperError, match="spool"):
        mend(ground)
    assert chunk.exists()
    ground.bring_raw_back()

    silver = ground.layout.silver
    for path in silver.rglob("*.parquet"):
        path.unlink()
    with pytest.raises(DataRootError, match=r"all .* chunks are missing"):
        mend(ground)
    assert chunk_files(ground).level == "FAIL"


def test_a_rebuild_after_compaction_backfill_and_repair_gives_the_same_silver(ground: Ground) -> None:
    ground.simulate(80)
    ground.run(*ALL_STEPS)
    ground.run("rewrite", "publish")
    chunks_of(ground, "events")[0].write_bytes(b"")
    mend(ground)
    changed = next(path for path in sorted(ground.raw.rglob("*.jsonl")) if b'"status":"success"' in path.read_bytes())
    changed.write_bytes(changed.read_bytes().replace(b'"status":"success"', b'"status":"warning"', 3))
    assert ground.piper_json("backfill", "--all")["replaced"]
    views = ("silver_events", "silver_tool_events", "silver_publish_usd", "silver_render_stats_summary")
    before = {view: rows(ground, view) for view in views}
    check_datasets(ground)

    ground.layout.manifest.unlink()
    ground.layout.manifest.with_name(f"{ground.layout.manifest.name}.wal").unlink(missing_ok=True)
    ground.remove_raw()
    rebuild(ground.settings)
    ground.run("publish", "gold")
    assert {view: rows(ground, view) for view in views} == before
    check_gold(ground)


def test_a_data_root_is_rebuilt_elsewhere_only_when_it_is_taken_over(ground: Ground, tmp_path: Path) -> None:
    elsewhere = {"PIPER_PATHS__STATE_ROOT": str(tmp_path / "another machine's disk")}

    def run(*arguments: str, **environment: str) -> tuple[int, str]:
        process = ground.piper_process(*arguments, **environment)
        out, err = process.communicate()
        return process.returncode, out + err

    code, said = run("rebuild", "--yes", **elsewhere)
    assert (code, "belongs to the manifest in state on" in said, "--take-over" in said) == (EX_FAILURE, True, True)
    code, said = run("rebuild", "--yes", "--take-over", **elsewhere)
    assert code == 0, said
    code, said = run("ingest")
    assert (code, "not to the one in" in said) == (EX_FAILURE, True), said
    code, said = run("ingest", **elsewhere)
    assert code == 0, said
    check_all(ground)

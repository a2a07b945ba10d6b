"""piper rebuild on real damage: what it finds, and that the ingest after it makes silver exact again."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest
from tests.support.ground import (
    ALL_STEPS,
    KILLED,
    Ground,
    check_all,
    check_datasets,
    check_gold,
    check_quarantine,
    ingest,
)  # fmt: skip

from piper.errors import ManifestDamagedError, ManifestNewerError, WriterLockedError
from piper.silver.datasets import EMPTY_CHUNK
from piper.silver.rebuild import RebuildSummary, forget_recounts, rebuild

REBUILD_FAILPOINTS = (
    "rebuild.renamed",
    "rebuild.set_aside",
    "rebuild.begun",
    "rebuild.unfolded",
    "rebuild.read",
    "rebuild.filled",
    "rebuild.committed",
)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    return Ground(tmp_path)


def damage(ground: Ground) -> None:
    """Overwrite the beginning of the manifest: no row of it can be had back."""
    with ground.layout.manifest.open("r+b") as stream:
        stream.write(b"\xa5" * 20_000)


def finish(ground: Ground) -> None:
    """What the command does after the rebuild itself."""
    with ground.writer() as writer:
        ingest(writer)
        forget_recounts(writer.store)
        writer.seal()
        writer.publish()
        writer.export_quarantine()
        writer.refresh_gold(writer.store.con)


def chunks_of(ground: Ground, dataset: str) -> list[Path]:
    found = sorted((ground.layout.silver / dataset).rglob("*.parquet"))
    return [path for path in found if path.name != EMPTY_CHUNK]


def contents(ground: Ground) -> list[tuple[object, ...]]:
    return ground.query("SELECT * EXCLUDE (ingested_at_utc) FROM silver_events ORDER BY event_id")


def test_after_damage_everything_is_there_once_and_raw_adds_nothing(ground: Ground) -> None:
    ground.simulate(300)
    ground.run(*ALL_STEPS)  # in chunks
    ground.simulate(200)
    ground.run("ingest", "publish", "export")  # in the published tail
    before = contents(ground)
    damage(ground)
    with pytest.raises(ManifestDamagedError, match="piper rebuild"):
        ground.run()

    summary = rebuild(ground.settings)
    assert (summary.chunk_events, summary.salvaged_events) == (300, 200)
    assert summary.quarantined_keys == ground.written.malformed
    assert summary.keys == 500 + ground.written.malformed
    assert summary.damaged_to is not None
    assert summary.damaged_to.read_bytes().startswith(b"\xa5")
    assert summary.damaged_chunks == []
    finish(ground)
    check_all(ground)
    check_gold(ground)
    assert contents(ground) == before
    assert ground.query("SELECT sum(duplicate_events) FROM gold_data_quality_daily") == [(0,)]

    ground.simulate(100)
    ground.run(*ALL_STEPS)
    check_all(ground)
    check_gold(ground)


def test_what_only_silver_and_the_published_tail_hold_survives_the_loss_of_manifest_and_raw(ground: Ground) -> None:
    ground.simulate(300)
    ground.run(*ALL_STEPS)
    ground.simulate(200)
    ground.run("ingest", "publish", "export")
    before = contents(ground)
    ground.layout.manifest.unlink()
    ground.remove_raw()

    summary = rebuild(ground.settings)
    assert summary.damaged_to is None
    finish(ground)
    assert contents(ground) == before
    check_all(ground)
    check_gold(ground)


@pytest.mark.parametrize(
    ("failpoint", "raw_is_there"),
    [
        ("seal.copied", False),
        ("commit.staged", True),
        ("commit.staged", False),
        ("commit.committed", False),
        ("reveal.moved:20", True),
        ("reveal.moved:20", False),
        ("commit.revealed", True),
    ],
)
def test_chunks_that_a_death_left_in_staging_are_neither_lost_nor_doubled(
    ground: Ground, failpoint: str, raw_is_there: bool
) -> None:
    ground.simulate(300)
    ground.run("ingest", "publish", "export")
    assert ground.die_at(failpoint, "seal", "publish") == KILLED
    damage(ground)
    if not raw_is_there:
        ground.remove_raw()

    summary = rebuild(ground.settings)
    assert summary.chunk_events + summary.salvaged_events == 300
    assert ground.seen() == (300, 300)  # the old tail is still what readers see
    finish(ground)
    check_all(ground)
    assert list(ground.layout.staging.iterdir()) == []


def test_rows_that_only_a_readable_old_manifest_holds_come_along(ground: Ground) -> None:
    ground.simulate(100)
    ground.run("publish")
    ground.run("ingest")  # committed, neither published nor exported
    ground.remove_raw()

    summary = rebuild(ground.settings)
    assert summary.salvaged_events == 100
    assert rebuild(ground.settings).salvaged_events == 100
    finish(ground)
    check_all(ground)


@pytest.mark.parametrize("failpoint", REBUILD_FAILPOINTS)
def test_a_rebuild_that_dies_anywhere_is_finished_by_the_next_one(ground: Ground, failpoint: str) -> None:
    ground.simulate(200)
    ground.run(*ALL_STEPS)
    ground.simulate(100)
    ground.run("ingest", "publish", "export")
    assert ground.die_at("commit.committed", "seal") == KILLED
    damage(ground)
    ground.set_raw_aside()
    assert ground.die_at(failpoint, "rebuild") == KILLED
    if failpoint != "rebuild.committed":
        with pytest.raises(ManifestDamagedError):
            ground.run()

    summary = rebuild(ground.settings)
    assert summary.chunk_events + summary.salvaged_events == 300
    ground.run("publish")
    check_all(ground)
    ground.bring_raw_back()
    finish(ground)
    check_all(ground)
    check_gold(ground)


def test_a_second_rebuild_changes_nothing(ground: Ground) -> None:
    ground.simulate(300)
    ground.run("ingest", "publish", "export")
    assert ground.die_at("reveal.moved:3", "seal") == KILLED
    damage(ground)
    first: RebuildSummary = rebuild(ground.settings)
    second = rebuild(ground.settings)
    assert (second.chunks, second.keys, second.quarantined_keys) == (first.chunks, first.keys, first.quarantined_keys)
    assert second.salvaged_events == first.salvaged_events
    finish(ground)
    check_all(ground)


def test_a_chunk_of_events_that_cannot_be_read_is_set_aside_and_comes_again_from_raw(ground: Ground) -> None:
    ground.simulate(400)
    ground.run(*ALL_STEPS)
    damage(ground)
    for broken in chunks_of(ground, "events")[:3]:
        data = bytearray(broken.read_bytes())
        data[4 : len(data) // 2] = b"\xa5" * (len(data) // 2 - 4)  # the footer stays sound
        broken.write_bytes(data)

    summary = rebuild(ground.settings)
    assert len(summary.damaged_chunks) >= 3
    assert all((ground.layout.silver / (path + ".damaged")).exists() for path in summary.damaged_chunks)
    finish(ground)
    check_all(ground)
    check_gold(ground)


def test_rows_of_a_domain_chunk_that_cannot_be_read_are_made_again_without_raw(ground: Ground) -> None:
    ground.simulate(400)
    ground.run(*ALL_STEPS)
    before = ground.query("FROM silver_tool_events ORDER BY event_id")
    damage(ground)
    ground.remove_raw()
    for broken in chunks_of(ground, "tool_events"):
        broken.write_bytes(broken.read_bytes()[:-100])
    summary = rebuild(ground.settings)
    assert len(summary.damaged_chunks) == len({Path(path).parent for path in summary.damaged_chunks}) > 0
    finish(ground)
    assert ground.query("FROM silver_tool_events ORDER BY event_id") == before
    check_all(ground)


def test_a_quarantine_file_with_a_cut_record_is_cut_back_and_goes_on(ground: Ground) -> None:
    ground.simulate(400)
    ground.run("ingest", "publish", "export")
    file = next(ground.layout.quarantine.glob("*/*.jsonl"))
    file.write_bytes(file.read_bytes()[:-30])
    damage(ground)
    summary = rebuild(ground.settings)
    assert summary.quarantined_keys == ground.written.malformed - 1
    finish(ground)
    check_quarantine(ground)
    check_gold(ground)


def test_new_chunks_never_take_the_names_of_damaged_ones(ground: Ground) -> None:
    ground.simulate(50)
    ground.run(*ALL_STEPS)
    for broken in ground.layout.silver.rglob("*-0.parquet"):
        broken.write_bytes(b"not parquet")
    shutil.rmtree(ground.layout.tail)
    ground.layout.manifest.unlink()
    summary = rebuild(ground.settings)
    assert summary.chunks == 0
    finish(ground)
    names = {path.name.split("-")[0] for path in chunks_of(ground, "events")}
    assert names.isdisjoint({Path(path).name.split("-")[0] for path in summary.damaged_chunks})
    check_all(ground)


def test_it_refuses_while_another_process_writes(ground: Ground) -> None:
    ground.simulate(10)
    child = ground.child("ingest", "hold")
    try:
        assert child.stdout is not None
        while "holding" not in child.stdout.readline():
            assert child.poll() is None
        before = ground.layout.manifest.stat().st_ino
        with pytest.raises(WriterLockedError) as caught:
            rebuild(ground.settings)
        assert "piper test" in str(caught.value)
        assert str(child.pid) in str(caught.value)
        assert ground.layout.manifest.stat().st_ino == before
        assert list(ground.layout.state.glob("*damaged*")) == []
    finally:
        child.kill()
        child.communicate()


def test_it_refuses_a_manifest_of_a_newer_piper(ground: Ground) -> None:
    ground.run()
    with duckdb.connect(str(ground.layout.manifest)) as con:
        con.execute("UPDATE manifest_meta SET value = '999' WHERE key = 'schema_version'")
    with pytest.raises(ManifestNewerError, match="999"):
        rebuild(ground.settings)
    assert ground.layout.manifest.exists()


def test_readers_that_are_connected_see_no_row_twice_and_none_missing_while_it_works(ground: Ground) -> None:
    ground.simulate(300)
    ground.run("ingest", "publish", "export")
    assert ground.die_at("reveal.moved:10", "seal") == KILLED
    damage(ground)
    with duckdb.connect(str(ground.layout.catalog), read_only=True) as reader:
        count = "SELECT count(*), count(DISTINCT event_id) FROM silver_events"
        rebuild(ground.settings)
        assert reader.execute(count).fetchone() == (300, 300)
        ground.run("publish")
        assert reader.execute(count).fetchone() == (300, 300)
        finish(ground)
        assert reader.execute(count).fetchone() == (300, 300)


def test_on_an_empty_place_it_is_an_init(ground: Ground) -> None:
    summary = rebuild(ground.settings)
    assert (summary.damaged_to, summary.chunks, summary.keys) == (None, 0, 0)
    ground.simulate(20)
    finish(ground)
    check_all(ground)
    check_datasets(ground)
